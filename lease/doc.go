// Package lease spreads the partitions of a store over the nodes that share it.
//
// A node owns a partition for as long as it renews its lease. Who owns one decides its commands and writes its views; the
// backend checks the lease's epoch in each of these writes, so what this package gets wrong, because a clock jumped or a
// process stood still, costs time and never an answer.
//
// There is no leader. Every node tells the backend that it is there, sees who else is, and works out by itself how many
// partitions are its share: the same number for all, give or take one. It gives up what is too much and takes what is
// free. A node that stops hands its partitions over at once; those of a node that is gone are free when their leases
// have run out.
package lease
