// Package deadletter is what people do with dead letters: find out what they are and why, try what would come of them now, and
// have many of them sent again by jobs that survive whoever runs them.
//
// Dead letters are documents that follow from outcomes, and what was done with them follows from events of their own streams;
// a list reads both side by side. What sends one of them again is a process of domain/system; a job decides for each that it is
// to be sent, one after the other of each stream, and waits for what becomes of it.
package deadletter
