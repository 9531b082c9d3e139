//go:build race

package localstore

// raced: the race detector is on. What is exhaustive is sampled then: it takes ten times as long and finds no more races.
const raced = true
