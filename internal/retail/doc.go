// Package retail reads the "Online Retail" data set as orders.
//
// The data set (Daqing Chen, 2015, UCI Machine Learning Repository, https://doi.org/10.24432/C5BW33, CC BY 4.0) holds
// the invoices of a wholesaler, one line of an invoice in each row. An invoice becomes one order; an invoice whose
// number starts with C is a credit note and becomes one return. Nothing is left out: an invoice of which a row cannot be
// read becomes a dead letter that says why, because half an order would be worse than none.
//
// The rules of the mapping:
//
//   - The rows of one invoice number are one order, wherever in the file they stand, in file order; its time, and its
//     place among the others, are those of its first row.
//   - The customer is the one that the rows name. Two different ones make the invoice unmappable; none is fine.
//   - Numbers are read exactly, as decimals: "6.0", "1e3" and "2.5500" are 6, 1000 and 2.55. Nothing is rounded here.
//   - Quantities and prices that no order can have (0 pieces, a negative price) are passed on as they are: the rules of
//     the domain answer them, by the name of the line.
//   - Descriptions are kept as they are, but for control characters, which become spaces.
//   - A credit note writes quantities below zero; a return has them above: the sign is turned.
//   - The country has no place in an order without an address, and is left out.
package retail
