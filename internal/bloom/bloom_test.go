package bloom_test

import (
	"math/rand/v2"
	"testing"

	"github.com/millrace-io/millrace/internal/bloom"
)

// A "no" is always right, and most strangers are told "no".
func TestNoKeyIsDenied(t *testing.T) {
	const keys = 50_000
	for bits, most := range map[int]float64{10: .03, 16: .005} {
		f := bloom.New(keys * bits / 8)
		own := rand.New(rand.NewPCG(1, 1)) //nolint:gosec // a test's choices
		for range keys {
			f.Add(own.Uint64())
		}
		own = rand.New(rand.NewPCG(1, 1))     //nolint:gosec // the same ones
		others := rand.New(rand.NewPCG(2, 2)) //nolint:gosec // a test's choices
		wrong := 0
		for i := range keys {
			if f.Absent(own.Uint64()) {
				t.Fatalf("key %d was denied", i)
			}
			if !f.Absent(others.Uint64()) {
				wrong++
			}
		}
		if share := float64(wrong) / keys; share > most {
			t.Errorf("%d bits a key: %.2f %% of strangers are not told apart", bits, 100*share)
		}
	}
}
