//go:build !race

package localstore

// raced: the race detector is on.
const raced = false
