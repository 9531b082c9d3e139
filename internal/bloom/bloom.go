// Package bloom says of most keys that they were never added.
package bloom

import "sync/atomic"

// Filter is a Bloom filter whose probes for one key lie in one cache line. Keys are given by 64-bit hashes. It may be used by
// several goroutines: who is told by another one that a key was added, finds it.
type Filter struct {
	blocks [][block]atomic.Uint64
}

const (
	// block words are a cache line.
	block = 8
	// probes bits are set for a key: enough for one error in a hundred at ten bits a key, and one in five hundred at sixteen.
	probes = 6
)

// New makes a filter that takes so many bytes.
func New(bytes int) *Filter {
	return &Filter{blocks: make([][block]atomic.Uint64, max(bytes/(8*block), 1))}
}

// line finds a key's cache line and the bits that it has there. The high half of the hash names the line; the whole of
// it, stirred, gives nine bits for each probe.
func (f *Filter) line(hash uint64) (line *[block]atomic.Uint64, bits uint64) {
	return &f.blocks[(hash>>32)*uint64(len(f.blocks))>>32], hash * 0x9e3779b97f4a7c15
}

// Add adds a key.
func (f *Filter) Add(hash uint64) {
	line, bits := f.line(hash)
	for range probes {
		word, bit := &line[bits>>61], uint64(1)<<(bits>>55&63)
		if word.Load()&bit == 0 {
			word.Or(bit)
		}
		bits = bits<<9 | bits>>55
	}
}

// Absent says that a key was certainly not added.
func (f *Filter) Absent(hash uint64) bool {
	line, bits := f.line(hash)
	for range probes {
		if line[bits>>61].Load()&(1<<(bits>>55&63)) == 0 {
			return true
		}
		bits = bits<<9 | bits>>55
	}
	return false
}
