package millrace_test

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/jsonx"
)

// What an instance writes is what the generic encoder writes, byte for byte.
func TestInstanceJSON(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		text := func() string { return rapid.StringMatching(`[a-z "\\é\n☃]{0,6}`).Draw(r, "text") }
		at := func() time.Time {
			if rapid.Bool().Draw(r, "never") {
				return time.Time{}
			}
			return time.Unix(rapid.Int64Range(0, 4e9).Draw(r, "s"), rapid.Int64Range(0, 999_999_999).Draw(r, "ns")).UTC()
		}
		raw := func() jsonx.RawValue {
			return jsonx.RawValue(rapid.SampledFrom([]string{`{}`, `{"a":[1,"x"]}`, `null`, `"text"`, `[]`}).Draw(r, "raw"))
		}
		rawOr := func() jsonx.RawValue {
			if rapid.Bool().Draw(r, "none") {
				return nil
			}
			return raw()
		}
		timers := func() (all []millrace.Timer) {
			for range rapid.IntRange(0, 2).Draw(r, "timers") {
				all = append(all, millrace.Timer{Name: text(), At: at()})
			}
			return all
		}
		i := &millrace.Instance{
			Stream: millrace.Stream(text()), Version: rapid.Uint64().Draw(r, "version"), State: text(), Waits: text(), Key: text(),
			Done: rapid.Bool().Draw(r, "done"), Failed: text(), BeganAt: at(), SinceAt: at(), UpdatedAt: at(), CorrelationID: text(),
			Timers: timers(), Fired: timers(), Data: raw(),
		}
		for range rapid.IntRange(0, 3).Draw(r, "steps") {
			i.Steps = append(i.Steps, millrace.InstanceStep{
				Name: text(), Stream: millrace.Stream(text()), Status: text(), Code: text(), Type: text(), Data: rawOr(), Of: text(), CausationID: text(),
			})
		}
		for range rapid.IntRange(0, 3).Draw(r, "calls") {
			i.Calls = append(i.Calls, millrace.InstanceCall{
				Name: text(), Request: raw(), BeganAt: at(), DoneAt: at(), CancelledAt: at(), Result: rawOr(),
				Attempts: rapid.IntRange(0, 9).Draw(r, "attempts"), Error: text(), NextAt: at(),
			})
		}
		type plain millrace.Instance // without the method
		want, err := jsonx.Marshal((*plain)(i))
		if err != nil {
			r.Fatal(err)
		}
		if got := i.AppendJSON(nil); string(got) != string(want) {
			r.Fatalf("it writes\n%s\nand the generic encoder\n%s", got, want)
		}
		data, _, err := millrace.InstancesTable.Encode(i)
		if err != nil || string(data) != string(want) {
			r.Fatalf("the table writes %s %v", data, err)
		}
		if back, err := millrace.InstancesTable.Decode(data); err != nil || string(back.AppendJSON(nil)) != string(want) {
			r.Fatalf("it comes back as %+v %v", back, err)
		}
	})
}
