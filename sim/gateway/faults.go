package gateway

import (
	"errors"
	"math"
	"time"

	"github.com/cespare/xxhash/v2"

	pay "github.com/millrace-io/millrace/internal/payment"
)

// Faults are how the gateway misbehaves. Rates are shares of the orders, from 0 to 1, for each kind of request apart. The zero
// value behaves.
type Faults struct {
	// Decline is the share of authorisations that are declined.
	Decline float64 `json:"decline"`
	// Lose is the share of requests that are done, and whose connection is then cut before the answer, LoseTimes times.
	Lose float64 `json:"lose"`
	// Hang is the share of requests that are done, and then not answered for as long as the caller waits, LoseTimes times.
	Hang float64 `json:"hang"`
	// LoseTimes is how many answers to a key are lost, or hang, before one arrives. Defaults to 1.
	LoseTimes int `json:"lose_times,omitzero"`
	// Fail is the share of requests that are answered with 500 before anything is done, FailTimes times.
	Fail float64 `json:"fail"`
	// FailTimes is how many attempts under a key fail. Defaults to 1.
	FailTimes int `json:"fail_times,omitzero"`
	// Twice is the share of requests that are answered two times on their connection. In process there is no such thing.
	Twice float64 `json:"twice"`
	// Slow is the share of requests whose answer takes SlowMS longer, in milliseconds. Each attempt does.
	Slow   float64 `json:"slow"`
	SlowMS int64   `json:"slow_ms,omitzero"`
	// Down has all requests be answered with 503.
	Down bool `json:"down,omitzero"`
	// DownForMS is for how long it is down at the end of each period of DownEveryMS, in milliseconds, counted from when the
	// faults were set. Defaults to never.
	DownForMS   int64 `json:"down_for_ms,omitzero"`
	DownEveryMS int64 `json:"down_every_ms,omitzero"`
	// Mute has the gateway cut connections while it is down, instead of answering. Defaults to answering.
	Mute bool `json:"mute,omitzero"`
}

const (
	// maxTimes bounds LoseTimes and FailTimes: who wants a gateway that never answers has Down.
	maxTimes = 1000
	// maxDelay bounds times: SlowMS, and how long an answer hangs. No caller waits as long.
	maxDelay = time.Minute
	// maxPeriod bounds DownEveryMS.
	maxPeriod = 24 * time.Hour
)

// Check says what is wrong with faults.
func (f *Faults) Check() error {
	for _, rate := range []float64{f.Decline, f.Lose, f.Hang, f.Fail, f.Twice, f.Slow} {
		if math.IsNaN(rate) || rate < 0 || rate > 1 {
			return errors.New("a rate must be between 0 and 1")
		}
	}
	switch {
	case f.LoseTimes < 0 || f.LoseTimes > maxTimes || f.FailTimes < 0 || f.FailTimes > maxTimes:
		return errors.New("times must be between 0 and 1000")
	case f.SlowMS < 0 || f.SlowMS > maxDelay.Milliseconds():
		return errors.New("slow answers take at most a minute")
	case f.DownForMS < 0 || f.DownEveryMS < 0 || f.DownEveryMS > maxPeriod.Milliseconds():
		return errors.New("a period of being down is at most a day")
	case f.DownForMS > f.DownEveryMS:
		return errors.New("it cannot be down for longer than the period in which it is")
	}
	return nil
}

func (f *Faults) loseTimes() uint32 { return uint32(max(f.LoseTimes, 1)) } //nolint:gosec // at most maxTimes
func (f *Faults) failTimes() uint32 { return uint32(max(f.FailTimes, 1)) } //nolint:gosec // at most maxTimes

// misbehaviour is what is set, and since when.
type misbehaviour struct {
	Faults
	since time.Time
}

// down says whether the gateway is down, and for how much longer; that is zero where nobody knows.
func (m *misbehaviour) down(now time.Time) (is bool, left time.Duration) {
	if m.Down {
		return true, 0
	}
	every, lasts := time.Duration(m.DownEveryMS)*time.Millisecond, time.Duration(m.DownForMS)*time.Millisecond
	if lasts <= 0 {
		return false, 0
	}
	at := now.Sub(m.since) % every
	if at < every-lasts {
		return false, 0
	}
	return true, every - at
}

// draw is a number from 0 to 1 that follows from the seed, the order, the kind of request and what is drawn for.
func (g *Gateway) draw(what string, kind pay.Kind, order string) float64 {
	return float64(g.hash(what, kind, order)>>11) / (1 << 53)
}

func (g *Gateway) hash(what string, kind pay.Kind, text string) uint64 {
	var d xxhash.Digest
	d.ResetWithSeed(g.seed)
	for _, s := range [...]string{what, "\x00", string(kind), "\x00", text} {
		_, _ = d.WriteString(s) // a hash never fails
	}
	return d.Sum64()
}

func (g *Gateway) strikes(what string, rate float64, kind pay.Kind, order string) bool {
	return rate > 0 && g.draw(what, kind, order) < rate
}

// The reasons for which authorisations are declined.
const (
	CodeCardDeclined      = "card_declined"
	CodeInsufficientFunds = "insufficient_funds"
	CodeExpiredCard       = "expired_card"
)

// declined is why an authorisation is declined, or nothing.
func (g *Gateway) declined(f *Faults, kind pay.Kind, order string) string {
	if kind != pay.Authorise || !g.strikes("decline", f.Decline, kind, order) {
		return ""
	}
	codes := [...]string{CodeCardDeclined, CodeInsufficientFunds, CodeExpiredCard}
	return codes[g.hash("code", kind, order)%uint64(len(codes))]
}
