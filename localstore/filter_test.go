package localstore

import (
	"fmt"
	"testing"
)

// TestFilterNeverDeniesAKey: a "no" must be right, and most strangers must be told "no".
func TestFilterNeverDeniesAKey(t *testing.T) {
	const keys = 50_000
	f := newFilter(keys * 10 / 8)
	f.ready.Store(true)
	for i := range keys {
		f.add(fmt.Appendf(nil, "ckey-%d", i))
	}
	wrong := 0
	for i := range keys {
		if f.absent(fmt.Appendf(nil, "ckey-%d", i)) {
			t.Fatalf("key %d was denied", i)
		}
		if !f.absent(fmt.Appendf(nil, "cother-%d", i)) {
			wrong++
		}
	}
	if share := float64(wrong) / keys; share > .03 {
		t.Errorf("%.1f %% of strangers are not told apart", 100*share)
	}
}

// TestFilterSaysMaybeUntilItIsFilled: before that it knows nothing of an older store's keys.
func TestFilterSaysMaybeUntilItIsFilled(t *testing.T) {
	f := newFilter(1024)
	if f.absent([]byte("c1")) {
		t.Error("an unfilled filter denied a key")
	}
}

func BenchmarkFilterAbsent(b *testing.B) {
	f := newFilter(filterBytes)
	f.ready.Store(true)
	key := []byte("corder-0190b4a2-1f2e-7000-8000-000000000000")
	b.ReportAllocs()
	for b.Loop() {
		key[len(key)-1]++
		f.absent(key)
	}
}
