package millracetest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/millrace-io/millrace"
)

// Harness is how RunStore and BenchStore get at one store of a backend.
type Harness struct {
	// Open opens the store. After the store was closed it opens the same one again.
	Open func() (*millrace.Store, error)
	// Forgets says that a store that was closed is gone, as one in memory is: what needs it opened again is skipped.
	Forgets bool
	// Many is about how many events a reader must fall behind by to leave everything that the backend keeps in memory for
	// readers who keep up. Defaults to 40,000.
	Many int
}

// Factory makes the harness of a new, empty store with as many partitions.
type Factory func(t testing.TB, partitions int) Harness

// defaultMany is beyond what the embedded store keeps in memory.
const defaultMany = 40_000

// deadline bounds each wait of the suite: whoever waits longer waits for ever.
const deadline = 60 * time.Second

// RunStore holds a backend to the rules of [millrace.Driver]. Each rule is a subtest with a store of its own.
func RunStore(t *testing.T, factory Factory) {
	t.Helper()
	for _, c := range []struct {
		name string
		run  func(t *testing.T, f *fixture)
	}{
		{"NewStoreIsEmpty", newStoreIsEmpty},
		{"PositionsHaveNoGapsAndEventsOfOneCommandAreAdjacent", positionsHaveNoGaps},
		{"DoneIsCalledOnceAndInTheOrderOfTheCalls", doneInOrder},
		{"DoneIsNeverCalledWithinAppend", doneNotWithinAppend},
		{"WhatWasAcknowledgedIsReadAtOnce", readYourWrites},
		{"ChainLinksEveryDecision", chainLinks},
		{"DecisionsThatDoNotContinueAreRefused", discontinuousRefused},
		{"UnknownPartitionIsRefused", unknownPartitionRefused},
		{"CommandsInAllStates", commandsInAllStates},
		{"OutcomesRoundTripByteForByte", outcomesRoundTrip},
		{"EventsFromAnyVersion", eventsFromAnyVersion},
		{"HotStreamOverManyBatches", hotStream},
		{"FeedFromAnyCursor", feedFromAnyCursor},
		{"FeedOfSomePartitions", feedOfSomePartitions},
		{"FeedEndsAtTheHeadOfTheCall", feedEndsAtHead},
		{"FeedRefusesForeignCursors", feedRefusesForeignCursors},
		{"FollowersSeeEverythingOnceWhileWritersWrite", followersSeeEverything},
		{"FollowerThatFellBehindMissesNothing", slowFollower},
		{"FollowEndsWithContextAndStore", followEnds},
		{"DocumentsPutReplaceDelete", documentsPutReplaceDelete},
		{"DocumentOrderAndLimits", documentOrder},
		{"DocumentKeysWithOddBytes", documentOddKeys},
		{"DocumentPagesWhileDocumentsChange", documentPages},
		{"CheckpointsMoveWithDocuments", checkpointsMoveWithDocuments},
		{"DropViewsDropsOnlyTheNamed", dropViews},
		{"PostedIsRead", postedIsRead},
		{"WaitWakesUp", waitWakesUp},
		{"ReopenKeepsEverything", reopenKeeps},
		{"ClosedStoreRefuses", closedRefuses},
		{"CloseWaitsForReads", closeWaitsForReads},
		{"AgreesWithModel", agreesWithModel},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, newFixture(t, factory, 4)) })
	}
}

// reporter is what the suite needs of a test: testing.TB's and rapid.T's.
type reporter interface {
	Helper()
	Errorf(format string, args ...any)
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// fixture is an open store together with the model of what it must hold.
type fixture struct {
	t       reporter
	ctx     context.Context
	factory Factory
	h       Harness
	s       *millrace.Store
	*model
}

func newFixture(t testing.TB, factory Factory, partitions int) *fixture {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	f := &fixture{t: t, ctx: ctx, factory: factory, h: factory(t, partitions)}
	if f.h.Many == 0 {
		f.h.Many = defaultMany
	}
	f.open()
	f.model = newModel(f.s.Partitions())
	t.Cleanup(func() {
		cancel()
		f.close()
	})
	return f
}

func (f *fixture) open() {
	f.t.Helper()
	s, err := f.h.Open()
	if err != nil {
		f.t.Fatalf("open: %v", err)
	}
	f.s = s
}

// close verifies and closes the store: every test ends with one that has nothing to complain about.
func (f *fixture) close() {
	f.t.Helper()
	if f.s == nil {
		return
	}
	f.verify()
	if err := f.s.Close(); err != nil {
		f.t.Errorf("close: %v", err)
	}
	f.s = nil
}

// reopen closes the store and opens it again; it says whether the backend can.
func (f *fixture) reopen() bool {
	f.t.Helper()
	if f.h.Forgets {
		return false
	}
	f.close()
	f.open()
	return true
}

func (f *fixture) verify() {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	if err := f.s.Verify(ctx, func(problem string) { f.t.Errorf("verify: %s", problem) }); err != nil {
		f.t.Errorf("verify: %v", err)
	}
}

// must fails the test on an error.
func (f *fixture) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// commit hands batches to the store one after the other, waits for them and notes them in the model.
func (f *fixture) commit(batches ...*millrace.Batch) {
	f.t.Helper()
	done := make(chan error, len(batches))
	for _, b := range batches {
		f.s.Commit(b, func(err error) { done <- err })
	}
	for range batches {
		select {
		case err := <-done:
			f.must(err)
		case <-f.ctx.Done():
			f.t.Fatal("done was not called")
		}
	}
	for _, b := range batches {
		f.apply(f.t, b)
	}
}

// wantErr checks an error's kind.
func wantErr(t reporter, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: got error %v, want %v", what, got, want)
	}
}
