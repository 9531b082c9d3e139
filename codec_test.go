package millrace_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/millrace-io/millrace"
)

var noon = time.Date(2026, 3, 4, 12, 0, 0, 123456789, time.UTC)

func fullCommand() millrace.Command {
	seven := uint64(7)
	return millrace.Command{
		ID: "c-17", Stream: "order-42", Type: "PlaceOrder", Data: []byte(`{"n":1}`), Expected: &seven, Time: noon,
		CorrelationID: "story", CausationID: "order-41/3", Source: "http",
	}
}

func decisions() map[string]millrace.Decision {
	c := fullCommand()
	base := millrace.Decision{Command: &c, Fingerprint: c.Fingerprint(), Position: 300, Version: 7, Time: noon}
	decided, refused, dead, nothing := base, base, base, base
	decided.Status = millrace.StatusDecided
	decided.Events = []millrace.NewEvent{{Type: "OrderPlaced", Data: []byte(`{"a":1}`)}, {Type: "OrderConfirmed", Data: []byte(`{}`)}}
	nothing.Status = millrace.StatusDecided
	refused.Status = millrace.StatusRefused
	refused.Refusal = &millrace.Refusal{
		Kind: millrace.RefusedRule, Code: "bad_line", Detail: "a line is wrong",
		Errors: []millrace.FieldError{{Pointer: "/lines/0", Detail: "must be positive"}},
	}
	dead.Status = millrace.StatusDead
	dead.Failure = &millrace.Failure{Reason: millrace.ReasonDecide, Error: "panic", Attempts: 3}
	return map[string]millrace.Decision{"decided": decided, "nothing": nothing, "refused": refused, "dead": dead}
}

// The canonical encodings are what the hash chain is computed over: these bytes never change. A new form gets a new
// leading byte and golden values of its own.
func TestGoldenEncodings(t *testing.T) {
	c := fullCommand()
	bare := millrace.Command{ID: "x", Stream: "a-b", Type: "T", Time: time.Unix(0, 0).UTC()}
	check := func(what string, got []byte, want string) {
		t.Helper()
		if h := hex.EncodeToString(got); h != want {
			t.Errorf("%s is encoded as\n%s, must be\n%s", what, h, want)
		}
	}
	check("command", millrace.AppendCommand(nil, &c), goldenCommand)
	check("bare command", millrace.AppendCommand(nil, &bare), goldenBareCommand)
	fp := c.Fingerprint()
	check("fingerprint", fp[:], goldenFingerprint)
	var chain millrace.ChainHash
	all := decisions()
	for _, name := range []string{"decided", "nothing", "refused", "dead"} {
		d := all[name]
		encoded := millrace.AppendDecision(nil, &d)
		check(name, encoded, goldenDecisions[name])
		chain = millrace.NextChain(chain, encoded)
	}
	check("chain", chain[:], goldenChain)
}

// The chain is SHA-256 over the link before and the encoding, as documented; anybody can compute it.
func TestChainIsPlainSHA256(t *testing.T) {
	prev := millrace.ChainHash(sha256.Sum256([]byte("before")))
	want := sha256.Sum256(append(prev[:], "encoded"...))
	if got := millrace.NextChain(prev, []byte("encoded")); got != want {
		t.Errorf("%x, want %x", got, want)
	}
}

func TestDecisionViews(t *testing.T) {
	d := decisions()["decided"]
	o := d.Outcome(3)
	want := millrace.Outcome{
		CommandID: "c-17", Stream: "order-42", Partition: 3, Fingerprint: d.Fingerprint, Status: millrace.StatusDecided,
		Position: 302, Version: 9, Events: 2, Time: noon,
	}
	if diff := cmp.Diff(want, o); diff != "" {
		t.Error(diff)
	}
	recorded := d.Recorded(3)
	wantEvent := millrace.Recorded{
		Partition: 3, Position: 302, Stream: "order-42", Version: 9, Type: "OrderConfirmed", Data: []byte(`{}`), Time: noon,
		CommandID: "c-17", CorrelationID: "story", CausationID: "c-17",
	}
	if diff := cmp.Diff(wantEvent, recorded[1]); diff != "" || len(recorded) != 2 {
		t.Errorf("%d events\n%s", len(recorded), diff)
	}
	if recorded[1].ID() != "order-42/9" {
		t.Errorf("event id %q", recorded[1].ID())
	}
	if n := decisions()["dead"]; n.Recorded(3) != nil {
		t.Error("a dead letter has events")
	}
}

func TestCommandRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := drawCommand(t)
		got, err := millrace.DecodeCommand(millrace.AppendCommand([]byte("kept"), &c)[4:])
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c, got, cmpopts.EquateEmpty()); diff != "" {
			t.Fatal(diff)
		}
		if c.Fingerprint() != got.Fingerprint() {
			t.Fatal("the fingerprint changes on the way")
		}
	})
}

func drawCommand(t *rapid.T) millrace.Command {
	c := millrace.Command{
		ID: rapid.String().Draw(t, "id"), Stream: millrace.Stream(rapid.String().Draw(t, "stream")), Type: rapid.String().Draw(t, "type"),
		Data: rapid.SliceOf(rapid.Byte()).Draw(t, "data"), Time: time.Unix(0, rapid.Int64().Draw(t, "time")).UTC(),
		CorrelationID: rapid.String().Draw(t, "correlation"), CausationID: rapid.String().Draw(t, "causation"), Source: rapid.String().Draw(t, "source"),
	}
	if rapid.Bool().Draw(t, "expects") {
		v := rapid.Uint64().Draw(t, "expected")
		c.Expected = &v
	}
	return c
}

func TestDecisionRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := drawCommand(t)
		d := millrace.Decision{
			Command: &c, Fingerprint: c.Fingerprint(), Status: rapid.SampledFrom([]millrace.Status{millrace.StatusDecided, millrace.StatusRefused, millrace.StatusDead}).Draw(t, "status"),
			Position: rapid.Uint64().Draw(t, "position"), Version: rapid.Uint64().Draw(t, "version"), Time: c.Time,
		}
		for range rapid.IntRange(0, 5).Draw(t, "events") {
			d.Events = append(d.Events, millrace.NewEvent{Type: rapid.String().Draw(t, "event"), Data: rapid.SliceOf(rapid.Byte()).Draw(t, "body")})
		}
		switch d.Status {
		case millrace.StatusRefused:
			d.Refusal = &millrace.Refusal{Kind: millrace.RefusalKind(rapid.Byte().Draw(t, "kind")), Code: rapid.String().Draw(t, "code"), Detail: rapid.String().Draw(t, "detail")}
			for range rapid.IntRange(0, 3).Draw(t, "errors") {
				d.Refusal.Errors = append(d.Refusal.Errors, millrace.FieldError{Pointer: rapid.String().Draw(t, "pointer"), Detail: rapid.String().Draw(t, "what")})
			}
		case millrace.StatusDead:
			d.Failure = &millrace.Failure{Reason: rapid.String().Draw(t, "reason"), Error: rapid.String().Draw(t, "error"), Attempts: rapid.IntRange(0, 1<<40).Draw(t, "attempts")}
		default:
		}
		encoded := millrace.AppendDecision(nil, &d)
		got, err := millrace.DecodeDecision(encoded)
		if err != nil {
			t.Fatal(err)
		}
		d.Command = &millrace.Command{ID: c.ID, Stream: c.Stream, CorrelationID: c.CorrelationID}
		d.Encoded = encoded
		if diff := cmp.Diff(d, got, cmpopts.EquateEmpty()); diff != "" {
			t.Fatal(diff)
		}
		if diff := cmp.Diff(d.Outcome(1), got.Outcome(1), cmpopts.EquateEmpty()); diff != "" {
			t.Fatal(diff)
		}
	})
}

// No cut and no lengthened encoding is taken for a whole one.
func TestDecodersRefuseCutsAndTails(t *testing.T) {
	c := fullCommand()
	encodings := map[string][]byte{"command": millrace.AppendCommand(nil, &c)}
	for name, d := range decisions() {
		encodings[name] = millrace.AppendDecision(nil, &d)
	}
	for name, whole := range encodings {
		decode := func(b []byte) error { _, err := millrace.DecodeDecision(b); return err }
		if name == "command" {
			decode = func(b []byte) error { _, err := millrace.DecodeCommand(b); return err }
		}
		for n := range whole {
			if err := decode(whole[:n]); !errors.Is(err, millrace.ErrCorrupt) {
				t.Errorf("%s cut to %d bytes: %v", name, n, err)
			}
		}
		for what, b := range map[string][]byte{"a tail": append(bytes.Clone(whole), 0), "another version": append([]byte{2}, whole[1:]...)} {
			if err := decode(b); !errors.Is(err, millrace.ErrCorrupt) {
				t.Errorf("%s with %s: %v", name, what, err)
			}
		}
	}
	huge := append([]byte{1}, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1)
	if _, err := millrace.DecodeCommand(huge); !errors.Is(err, millrace.ErrCorrupt) {
		t.Errorf("a length beyond all bounds: %v", err)
	}
}

// A fingerprint says what is asked for and nothing else, and no shift of bytes between its parts leaves it the same.
func TestFingerprint(t *testing.T) {
	base := fullCommand()
	same := base
	same.ID, same.Time, same.CorrelationID, same.CausationID, same.Source, same.Expected = "other", noon.Add(1), "x", "y", "z", nil
	if base.Fingerprint() != same.Fingerprint() {
		t.Error("the id, the time or the story changes the fingerprint")
	}
	seen := map[millrace.Fingerprint]string{base.Fingerprint(): "base"}
	for what, change := range map[string]func(c *millrace.Command){
		"stream": func(c *millrace.Command) { c.Stream = "order-43" }, "type": func(c *millrace.Command) { c.Type = "PlaceOrde" },
		"data":     func(c *millrace.Command) { c.Data = append(bytes.Clone(c.Data), ' ') },
		"boundary": func(c *millrace.Command) { c.Type, c.Data = c.Type+string(c.Data[:1]), c.Data[1:] },
		"border":   func(c *millrace.Command) { c.Stream, c.Type = "order-42P", "laceOrder" },
	} {
		c := base
		change(&c)
		if other := seen[c.Fingerprint()]; other != "" {
			t.Errorf("%s has the fingerprint of %s", what, other)
		}
		seen[c.Fingerprint()] = what
	}
}

func FuzzDecodeCommand(f *testing.F) {
	c := fullCommand()
	f.Add(millrace.AppendCommand(nil, &c))
	f.Add([]byte{1, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := millrace.DecodeCommand(b)
		if err != nil {
			if !errors.Is(err, millrace.ErrCorrupt) {
				t.Errorf("%v is no ErrCorrupt", err)
			}
			return
		}
		again, err := millrace.DecodeCommand(millrace.AppendCommand(nil, &c))
		if err != nil || !cmp.Equal(c, again) {
			t.Errorf("%+v comes back as %+v %v", c, again, err)
		}
	})
}

func FuzzDecodeDecision(f *testing.F) {
	for _, d := range decisions() {
		f.Add(millrace.AppendDecision(nil, &d))
	}
	f.Add([]byte(strings.Repeat("\xff", 100)))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := millrace.DecodeDecision(b)
		if err != nil {
			if !errors.Is(err, millrace.ErrCorrupt) {
				t.Errorf("%v is no ErrCorrupt", err)
			}
			return
		}
		again, err := millrace.DecodeDecision(millrace.AppendDecision(nil, &d))
		if err != nil || !cmp.Equal(d, again, cmpopts.IgnoreFields(millrace.Decision{}, "Encoded")) {
			t.Errorf("%+v comes back as %+v %v", d, again, err)
		}
	})
}
