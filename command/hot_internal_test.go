package command

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/millracetest"
)

// hotTest is a tally and its events: the n-th adds n.
type hotTest struct {
	t        *testing.T
	registry *millrace.Registry
	category *millrace.Category
	hot      *hotStreams
}

const hotTally = millrace.Stream("tally-hot")

func newHotTest(t *testing.T) *hotTest {
	t.Helper()
	r, err := millrace.NewRegistry(millracetest.Tally())
	if err != nil {
		t.Fatal(err)
	}
	c, ok := r.Category(hotTally)
	if !ok {
		t.Fatal("no category")
	}
	return &hotTest{t: t, registry: r, category: c, hot: &hotStreams{of: map[millrace.Stream]*folded{}}}
}

// event is the event of a version. It is as the feed has it: its body is not decoded yet.
func (h *hotTest) event(version uint64, note string) *millrace.Recorded {
	return &millrace.Recorded{
		Stream: hotTally, Version: version, Type: "Added", Time: time.Unix(int64(version), 0).UTC(), //nolint:gosec // a small number
		Data: fmt.Appendf(nil, `{"n":%d,"total":%d,"note":"%s"}`, version, version*(version+1)/2, note),
	}
}

// loaded is what loading folds to a version.
func (h *hotTest) loaded(version uint64) folded {
	h.t.Helper()
	f := folded{state: h.category.Initial(hotTally)}
	for v := uint64(1); v <= version; v++ {
		h.fold(&f, v)
	}
	return f
}

func (h *hotTest) fold(f *folded, version uint64) {
	h.t.Helper()
	e := h.event(version, "")
	body, err := h.registry.Body(e)
	if err != nil {
		h.t.Fatal(err)
	}
	f.apply(h.category, e, body)
}

// sameSnapshot says whether two are equal: they are where their states, versions and times are.
func (h *hotTest) sameSnapshot(a, b folded) bool {
	h.t.Helper()
	x, err := h.category.EncodeState(a.state)
	if err != nil {
		h.t.Fatal(err)
	}
	y, err := h.category.EncodeState(b.state)
	if err != nil {
		h.t.Fatal(err)
	}
	return string(x) == string(y) && a.version == b.version && a.last.Equal(b.last)
}

// TestHotStreamsFollow: what is followed event by event is what loading comes to, also where an event comes again.
func TestHotStreamsFollow(t *testing.T) {
	h := newHotTest(t)
	if _, ok := h.hot.follow(h.registry, h.event(1, "")); ok {
		t.Error("a stream is followed that has had no snapshot")
	}
	h.hot.keep(hotTally, h.loaded(SnapshotEvery))
	for v := uint64(SnapshotEvery + 1); v <= 3*SnapshotEvery; v++ {
		for range 1 + v%2 { // every second event comes twice
			f, ok := h.hot.follow(h.registry, h.event(v, ""))
			if !ok || !h.sameSnapshot(f, h.loaded(v)) {
				t.Fatalf("version %d: %v, %+v", v, ok, f)
			}
		}
	}
}

// TestHotStreamsGap: an event that does not follow says that another process had the stream, or that the feed has begun again.
// The stream is followed no more; the control folds all the same, and comes to something else.
func TestHotStreamsGap(t *testing.T) {
	for name, next := range map[string]uint64{"ahead": SnapshotEvery + 2, "behind": SnapshotEvery - 1} {
		h := newHotTest(t)
		h.hot.keep(hotTally, h.loaded(SnapshotEvery))
		control := *h.hot.of[hotTally]
		if _, ok := h.hot.follow(h.registry, h.event(next, "")); ok || len(h.hot.of) > 0 {
			t.Errorf("%s: it is followed", name)
		}
		if _, ok := h.hot.follow(h.registry, h.event(SnapshotEvery+1, "")); ok {
			t.Errorf("%s: it is followed again", name)
		}
		if h.fold(&control, next); h.sameSnapshot(control, h.loaded(next)) {
			t.Errorf("%s: without a look at the version nothing differs: the test shows nothing", name)
		}
	}
}

// TestHotStreamsUnreadable: an event that cannot be read ends the following. What loads the stream tells of it.
func TestHotStreamsUnreadable(t *testing.T) {
	h := newHotTest(t)
	h.hot.keep(hotTally, h.loaded(SnapshotEvery))
	e := h.event(SnapshotEvery+1, "")
	e.Data = []byte(`{"n":"x"}`)
	if _, ok := h.hot.follow(h.registry, e); ok || len(h.hot.of) > 0 {
		t.Error("it is followed")
	}
}

// TestHotStreamsBounds: neither many streams nor large ones are kept.
func TestHotStreamsBounds(t *testing.T) {
	h := newHotTest(t)
	for i := range maxHot + 10 {
		h.hot.keep(millrace.NewStream("tally", fmt.Sprint(i)), folded{version: SnapshotEvery})
	}
	last := millrace.NewStream("tally", fmt.Sprint(maxHot+9))
	if len(h.hot.of) != maxHot || h.hot.of[last] == nil {
		t.Errorf("%d are kept", len(h.hot.of))
	}
	before := len(h.hot.of)
	if h.hot.keep(last, folded{version: 2 * SnapshotEvery}); len(h.hot.of) != before {
		t.Error("another one went though this one was kept before")
	}
	if h.hot.keep(hotTally, folded{version: SnapshotEvery, weight: maxHotWeight + 1}); h.hot.of[hotTally] != nil {
		t.Error("a large state is kept")
	}
	h = newHotTest(t)
	h.hot.keep(hotTally, h.loaded(SnapshotEvery))
	if _, ok := h.hot.follow(h.registry, h.event(SnapshotEvery+1, strings.Repeat("x", maxHotWeight))); ok || len(h.hot.of) > 0 {
		t.Error("a state that became large is kept")
	}
}
