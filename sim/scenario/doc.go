// Package scenario tells short stories of a shop to a running server, and settles accounts with it at the end of each.
//
// A [Scenario] receives stock of SKUs of its own, places orders that carry themselves through, does to them what its name
// says, and waits until each has come to its end. Then every order, every stock level and, where the payment gateway is
// the simulator, every payment is read back: what was promised was kept, what was taken was owed, and nothing is left
// over. A figure that differs is named.
package scenario
