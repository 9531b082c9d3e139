// Package feed is the one loop that runs all consumers: projections, snapshots, and whatever else follows the events.
//
// A consumer's events are handled in the order of their partition, its documents and its checkpoint are committed
// together, and an event that cannot be handled holds up its own stream only: it and what follows in the stream are parked,
// visibly, while the others go on.
package feed
