//go:build !race

// Under the race detector a sync.Pool drops items at random, so that allocations cannot be counted.

package jsonx_test

import (
	"slices"
	"testing"

	"github.com/millrace-io/millrace/internal/jsonx"
)

func TestAllocations(t *testing.T) {
	data := benchDocument()
	buf := make([]byte, 0, 1024)
	var o benchOrder
	if err := jsonx.Unmarshal(data, &o); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		most float64
		f    func()
	}{
		{"Check", 0, func() { _ = jsonx.Check(data) }},
		{"Append", 0, func() { _, _ = jsonx.Append(buf, &o) }},
		{"AppendString", 0, func() { jsonx.AppendString(buf, "some \"text\" ü") }},
		{"Marshal", 1, func() { _, _ = jsonx.Marshal(&o) }},
		{"Canonical", 1, func() { _, _ = jsonx.Canonical(data) }},
	} {
		// A collection in between empties the pools, so that the least of some runs is what counts.
		var runs []float64
		for range 3 {
			runs = append(runs, testing.AllocsPerRun(100, test.f))
		}
		if n := slices.Min(runs); n > test.most {
			t.Errorf("%s: %v allocations, want at most %v", test.name, n, test.most)
		}
	}
}
