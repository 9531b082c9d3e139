package sim

import (
	"math/bits"
	"time"
)

// Percentiles of latencies, in milliseconds.
type Percentiles struct {
	Count int64   `json:"count"`
	P50   float64 `json:"p50_ms"`
	P90   float64 `json:"p90_ms"`
	P99   float64 `json:"p99_ms"`
	P999  float64 `json:"p999_ms"`
	Max   float64 `json:"max_ms"`
}

// precision is the number of buckets between a power of two and the next: a bucket is less than 1 % wide.
const (
	precisionBits = 7
	precision     = 1 << precisionBits
)

// histogram counts durations in microseconds. Its size does not depend on how many there are.
type histogram struct {
	counts [(64 - precisionBits) * precision]uint32
	count  int64
	most   time.Duration
}

func bucketOf(us uint64) int {
	if us < precision {
		return int(us)
	}
	shift := bits.Len64(us) - precisionBits - 1
	return shift*precision + int(us>>shift) //nolint:gosec // below 2*precision
}

// upper is the largest value in a bucket.
func upper(bucket int) uint64 {
	if bucket < 2*precision {
		return uint64(bucket) //nolint:gosec // an index
	}
	shift := bucket/precision - 1
	return (uint64(bucket%precision+precision)+1)<<shift - 1
}

func (h *histogram) add(d time.Duration) {
	us := max(d.Microseconds(), 0)
	h.counts[bucketOf(uint64(us))]++
	h.count++
	h.most = max(h.most, d)
}

func (h *histogram) quantile(q float64) float64 {
	rank := int64(q * float64(h.count))
	for i, n := range h.counts {
		if rank -= int64(n); rank < 0 {
			return min(float64(upper(i))/1000, ms(h.most))
		}
	}
	return ms(h.most)
}

func (h *histogram) percentiles() Percentiles {
	return Percentiles{
		Count: h.count, P50: h.quantile(0.5), P90: h.quantile(0.9), P99: h.quantile(0.99), P999: h.quantile(0.999), Max: ms(h.most),
	}
}
