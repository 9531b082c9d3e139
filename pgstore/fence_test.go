package pgstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/millrace-io/millrace"
)

var day = time.Date(2026, 3, 1, 12, 0, 0, 1, time.UTC)

// command is a command of a stream in a partition of a store of four.
func command(id string, partition int) *millrace.Command {
	for i := 0; ; i++ {
		s := millrace.NewStream("tally", fmt.Sprintf("%s-%d", id, i))
		if s.Partition(4) == partition {
			return &millrace.Command{ID: id, Stream: s, Type: "Add", Data: []byte(`{"n":1}`), Time: day, CorrelationID: id, Source: "test"}
		}
	}
}

func accepted(c *millrace.Command) millrace.AcceptedCommand {
	return millrace.AcceptedCommand{Command: c, Fingerprint: c.Fingerprint()}
}

// decided is a decision on the first command of a stream.
func decided(c *millrace.Command, fresh bool, events int) millrace.Decision {
	d := millrace.Decision{Command: c, Fresh: fresh, Fingerprint: c.Fingerprint(), Status: millrace.StatusDecided, Time: day.Add(time.Second)}
	for i := range events {
		d.Events = append(d.Events, millrace.NewEvent{Type: "Added", Data: fmt.Appendf(nil, `{"of":%q,"n":%d}`, c.ID, i)})
	}
	return d
}

// send hands a batch to the store; the error comes through the channel.
func send(s *millrace.Store, b *millrace.Batch) <-chan error {
	done := make(chan error, 1)
	s.Commit(b, func(err error) { done <- err })
	return done
}

func commitOne(s *millrace.Store, partition int, ds ...millrace.Decision) error {
	return <-send(s, &millrace.Batch{Partition: partition, Decisions: ds})
}

// node opens a store of four partitions as a node that owns what it acquires.
func node(t testing.TB, dsn, name string, change func(*Options)) (*millrace.Store, *Driver) {
	t.Helper()
	o := options(t, "fence")
	o.Node, o.OwnAll, o.Partitions = name, false, 4
	if change != nil {
		change(o)
	}
	s := open(t, dsn, o)
	return s, driverOf(s)
}

func acquire(t testing.TB, s *millrace.Store, partitions ...int) {
	t.Helper()
	for _, p := range partitions {
		epoch, ok, err := driverOf(s).Acquire(patient(t), p)
		if !ok || err != nil {
			t.Fatalf("acquire %d: %v %v", p, ok, err)
		}
		s.Own(p, epoch)
	}
}

func verify(t testing.TB, s *millrace.Store) {
	t.Helper()
	must(t, s.Verify(patient(t), func(problem string) { t.Errorf("verify: %s", problem) }))
}

// expire ends a lease in the database, as time would.
func expire(t testing.TB, dsn string, partition int) {
	t.Helper()
	exec(t, dsn, `update fence.partitions set lease_until = clock_timestamp() - interval '1 second' where partition = $1`, partition)
}

// patientLease is for tests in which only the database may end a lease.
func patientLease(o *Options) { o.LeaseTTL = time.Hour }

// An owner that was asleep while its lease ended commits neither facts nor views, and goes on only after it has
// acquired the partition again.
func TestFencedOwnerCannotCommit(t *testing.T) {
	dsn := server(t).DSN("postgres")
	a, da := node(t, dsn, "a", patientLease)
	acquire(t, a, 1, 2)
	must(t, commitOne(a, 1, decided(command("first", 1), true, 2)))
	must(t, a.CommitViews(patient(t), []millrace.ViewBatch{{Consumer: "c", Partition: 1, Checkpoint: 1}}))

	expire(t, dsn, 1)
	b, _ := node(t, dsn, "b", patientLease)
	acquire(t, b, 1)

	// The first one that a sends is in flight when it does not know yet; the next two go on from it.
	var late []<-chan error
	for _, id := range []string{"late1", "late2"} {
		late = append(late, send(a, &millrace.Batch{Partition: 1, Decisions: []millrace.Decision{decided(command(id, 1), true, 1)}}))
	}
	for _, done := range late {
		if err := <-done; !errors.Is(err, millrace.ErrFenced) {
			t.Errorf("a fenced owner's commit: %v", err)
		}
	}
	if err := a.CommitViews(patient(t), []millrace.ViewBatch{{Consumer: "c", Partition: 1, Checkpoint: 2}}); !errors.Is(err, millrace.ErrFenced) {
		t.Errorf("a fenced owner's views: %v", err)
	}
	if _, err := a.Lookup(patient(t), "late1"); !errors.Is(err, millrace.ErrNotFound) {
		t.Errorf("what was fenced is there: %v", err)
	}
	if owned := da.Owned(); !slices.Equal(owned, []int{2}) {
		t.Errorf("a still thinks that it owns %v", owned)
	}
	must(t, commitOne(a, 2, decided(command("elsewhere", 2), true, 1))) // other partitions go on
	// Acceptances need no owner.
	must(t, a.Accept(patient(t), 1, []millrace.AcceptedCommand{accepted(command("kept", 1))}))
	must(t, commitOne(b, 1, decided(command("kept", 1), false, 1)))

	expire(t, dsn, 1)
	acquire(t, a, 1)
	must(t, commitOne(a, 1, decided(command("again", 1), true, 1)))
	if err := commitOne(b, 1, decided(command("later", 1), true, 1)); !errors.Is(err, millrace.ErrFenced) {
		t.Errorf("b commits after a took over: %v", err)
	}
	verify(t, a)
}

// lateViews has an owner write a document after another one has taken its partition over, and written none yet. It says what
// it was told, and what the document is then.
func lateViews(t *testing.T, edit func(string) string) (text string, late error) {
	t.Helper()
	dsn := server(t).DSN("postgres")
	a, da := node(t, dsn, "a", func(o *Options) { patientLease(o); o.edit = edit })
	acquire(t, a, 0)
	put := func(s *millrace.Store, text string) error {
		return s.CommitViews(patient(t), []millrace.ViewBatch{{Consumer: "c", Puts: []millrace.Put{{Document: millrace.Document{Collection: "c.d", ID: "x", Data: []byte(text)}}}}})
	}
	must(t, put(a, `"a"`))
	expire(t, dsn, 0)
	b, _ := node(t, dsn, "b", patientLease)
	acquire(t, b, 0)
	late = put(a, `"late"`)
	doc, err := b.Document(patient(t), "c.d", 0, "x")
	must(t, err)
	must(t, put(b, `"b"`))
	if again := put(a, `"later"`); !errors.Is(again, millrace.ErrFenced) {
		t.Errorf("a document behind one of the new owner: %v", again) // without the fence, the checkpoint's token tells
	}
	if edit == nil && len(da.Owned()) != 0 {
		t.Error("a still thinks that it owns the partition")
	}
	return string(doc.Data), late
}

// Views alone are fenced too: here the owner learns it from them. In the control the document is written over.
func TestFencedOwnerCannotWriteViews(t *testing.T) {
	if text, late := lateViews(t, nil); !errors.Is(late, millrace.ErrFenced) || text != `"a"` {
		t.Errorf("a fenced owner's document: %v, and it is %s", late, text)
	}
	t.Run("control", func(t *testing.T) {
		if text, late := lateViews(t, without(t, " and p.epoch = u.epoch -- the fence")); late != nil || text != `"late"` {
			t.Errorf("without the fence: %v, and it is %s", late, text)
		}
	})
}

// takeover has a commit of a meet a takeover by b, and says what a was told. Where between is true, b takes over between
// a's look at the epoch and a's write, if it looks apart from it.
func takeover(t *testing.T, edit func(string) string, checkFirst, between bool) (b *millrace.Store, err error) {
	t.Helper()
	dsn := server(t).DSN("postgres")
	steal := func() {
		expire(t, dsn, 1)
		b, _ = node(t, dsn, "b", patientLease)
		acquire(t, b, 1)
	}
	armed := false
	a, _ := node(t, dsn, "a", func(o *Options) {
		patientLease(o)
		o.edit, o.checkFirst = edit, checkFirst
		o.beforeWrite = func() {
			if armed && between {
				armed = false
				steal()
			}
		}
	})
	acquire(t, a, 1)
	must(t, commitOne(a, 1, decided(command("first", 1), true, 1)))
	armed = true
	if !between {
		steal()
	}
	err = commitOne(a, 1, decided(command("late", 1), true, 1))
	return b, err
}

// without takes the epoch out of a fence.
func without(t *testing.T, epoch string) func(string) string {
	t.Helper()
	return instead(t, epoch, "")
}

// instead has other words in the migrations, wherever some are in them.
func instead(t *testing.T, words, other string) func(string) string {
	t.Helper()
	all, err := steps(&Options{Schema: "s"})
	must(t, err)
	if !slices.ContainsFunc(all, func(m migration) bool { return strings.Contains(m.text, words) }) {
		t.Errorf("%q is not where the test looks for it", words)
	}
	return func(text string) string { return strings.ReplaceAll(text, words, other) }
}

// decideEpoch is the epoch in the fence of decisions.
const decideEpoch = "p.epoch = u.epoch and "

// The controls of TestFencedOwnerCannotCommit: without the fence, and with one that is looked at in a transaction before,
// the late commit is acknowledged after another owner has taken over, and that one, which was told where the log ends, cannot
// go on.
func TestFenceControls(t *testing.T) {
	for _, c := range []struct {
		name                string
		edit                func(string) string
		checkFirst, between bool
		fenced              bool
	}{
		{name: "protected", fenced: true},
		{name: "protected between check and write", checkFirst: true, between: true, fenced: true},
		{name: "no fence", edit: without(t, decideEpoch)},
		{name: "fence in a transaction of its own", edit: without(t, decideEpoch), checkFirst: true, between: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, err := takeover(t, c.edit, c.checkFirst, c.between)
			if c.fenced != errors.Is(err, millrace.ErrFenced) || !c.fenced && err != nil {
				t.Errorf("the late commit says %v", err)
			}
			err = commitOne(b, 1, decided(command("next", 1), true, 1))
			if c.fenced != (err == nil) {
				t.Errorf("the new owner's commit says %v", err)
			}
		})
	}
}

// places are the rows that hold a command of a store of nodes: those of commands, and those of outcomes.
func places(t *testing.T, dsn, id string) (commands, outcomes int) {
	t.Helper()
	return ask[int](t, dsn, "select count(*) from fence.commands where id = $1", id),
		ask[int](t, dsn, "select count(*) from fence.outcomes where command_id = $1 and type is not null", id)
}

// foundIn checks that a command is kept once, in commands or in its outcome's row, and that readers find it whole there.
func foundIn(t *testing.T, s *millrace.Store, dsn string, c *millrace.Command, inCommands bool) {
	t.Helper()
	commands, outcomes := places(t, dsn, c.ID)
	if (commands == 1) != inCommands || commands+outcomes != 1 {
		t.Errorf("%s: %d rows of commands and %d of outcomes hold it", c.ID, commands, outcomes)
	}
	got, err := s.Command(patient(t), c.ID)
	if diff := cmp.Diff(*c, got); err != nil || diff != "" {
		t.Errorf("%s: %v, sent -, found +:\n%s", c.ID, err, diff)
	}
	o, err := s.Lookup(patient(t), c.ID)
	if err != nil || o.Fingerprint != c.Fingerprint() || o.Stream != c.Stream {
		t.Errorf("%s: its outcome is %+v %v", c.ID, o, err)
	}
}

// A command that comes with its decision is a part of its outcome's row; one that was kept first has its own. Whoever reads
// does not see which: all of it is there, and the log is the same.
func TestCommandsInEitherPlace(t *testing.T) {
	dsn := server(t).DSN("postgres")
	s, _ := node(t, dsn, "a", nil)
	acquire(t, s, 1)
	expected := ^uint64(0)
	full := func(id string) *millrace.Command {
		c := command(id, 1)
		c.Expected, c.CausationID, c.CorrelationID = &expected, "cause", "correlation"
		return c
	}
	refused := func(c *millrace.Command, fresh bool) millrace.Decision {
		d := decided(c, fresh, 0)
		d.Status, d.Refusal = millrace.StatusRefused, &millrace.Refusal{Kind: millrace.RefusedVersion, Code: "no"}
		return d
	}
	kept := []*millrace.Command{full("kept"), command("kept plain", 1), full("kept and refused"), full("waiting")}
	fresh := []*millrace.Command{full("fresh"), command("fresh plain", 1), full("fresh and refused")}
	var acceptances []millrace.AcceptedCommand
	for _, c := range kept {
		acceptances = append(acceptances, accepted(c))
	}
	must(t, s.Accept(patient(t), 1, acceptances))
	must(t, commitOne(s, 1, decided(fresh[0], true, 2), decided(kept[0], false, 2), decided(fresh[1], true, 0)))
	must(t, commitOne(s, 1, decided(kept[1], false, 1), refused(kept[2], false)))
	must(t, commitOne(s, 1, refused(fresh[2], true)))
	for _, c := range kept {
		foundIn(t, s, dsn, c, true)
	}
	for _, c := range fresh {
		foundIn(t, s, dsn, c, false)
	}
	var logged []millrace.Command
	for l, err := range driverOf(s).Log(patient(t)) {
		must(t, err)
		if l.Decision.Fingerprint != l.Decision.Command.Fingerprint() {
			t.Errorf("%s: another fingerprint in the log", l.Decision.Command.ID)
		}
		logged = append(logged, *l.Decision.Command)
	}
	if diff := cmp.Diff([]millrace.Command{*fresh[0], *kept[0], *fresh[1], *kept[1], *kept[2], *fresh[2]}, logged); diff != "" {
		t.Errorf("sent -, in the log +:\n%s", diff)
	}
	pending, err := collect(s.Pending(patient(t), 1))
	if diff := cmp.Diff([]millrace.AcceptedCommand{accepted(kept[3])}, pending); err != nil || diff != "" {
		t.Errorf("%v, waiting -, pending +:\n%s", err, diff)
	}
	foundTogether(t, s, kept[2], fresh[0], kept[3], fresh[2], kept[0])
	verify(t, s)

	// An outcome whose command is gone is no shorter log.
	exec(t, dsn, "delete from fence.commands where id = 'kept and refused'")
	if _, err := collect(driverOf(s).Log(patient(t))); !errors.Is(err, millrace.ErrCorrupt) {
		t.Errorf("a log without one of its commands: %v", err)
	}
}

// A node accepts a command that the owner has at the same moment with its decision: it is decided once.
func TestFreshCommandKeptElsewhere(t *testing.T) {
	for _, separate := range []bool{false, true} {
		t.Run(fmt.Sprintf("separate claims %v", separate), func(t *testing.T) { freshCommandKeptElsewhere(t, separate) })
	}
}

func freshCommandKeptElsewhere(t *testing.T, separate bool) {
	dsn := server(t).DSN("postgres")
	with := func(o *Options) { o.separateClaims = separate }
	a, _ := node(t, dsn, "a", with)
	b, _ := node(t, dsn, "b", with)
	acquire(t, a, 3)
	c := command("both", 3)
	must(t, b.Accept(patient(t), 3, []millrace.AcceptedCommand{accepted(c)}))
	must(t, b.Accept(patient(t), 3, []millrace.AcceptedCommand{accepted(c)})) // again: harmless
	must(t, commitOne(a, 3, decided(c, true, 1), decided(command("other", 3), true, 1)))
	must(t, b.Accept(patient(t), 3, []millrace.AcceptedCommand{accepted(c)})) // decided by now: still harmless
	o, err := b.Lookup(patient(t), "both")
	if must(t, err); o.Status != millrace.StatusDecided || o.Position != 1 {
		t.Errorf("%+v", o)
	}
	for p, err := range b.Pending(patient(t), 3) {
		t.Errorf("still pending: %+v %v", p, err)
	}
	foundIn(t, b, dsn, c, true)
	verify(t, b)

	// The other way round: what came with its decision is sent to another node afterwards, and not kept again.
	alone := command("alone", 3)
	must(t, commitOne(a, 3, decided(alone, true, 1)))
	must(t, b.Accept(patient(t), 3, []millrace.AcceptedCommand{accepted(alone), accepted(command("with it", 3))}))
	foundIn(t, b, dsn, alone, separate)
	for p, err := range b.Pending(patient(t), 3) {
		if must(t, err); p.Command.ID != "with it" {
			t.Errorf("pending: %s", p.Command.ID)
		}
	}
	must(t, commitOne(a, 3, decided(command("with it", 3), false, 1)))
	verify(t, b)

	// Twice decided is once too often.
	var conflict *ConflictError
	err = commitOne(a, 3, decided(command("before", 3), true, 1), decided(c, true, 1), decided(alone, true, 1))
	if !errors.As(err, &conflict) || !slices.Equal(conflict.IDs, []string{"both", "alone"}) {
		t.Errorf("a second decision says %v", err)
	}
	a.Reload(3)
	if err := commitOne(a, 3, decided(alone, false, 1)); !errors.As(err, &conflict) || !slices.Equal(conflict.IDs, []string{"alone"}) {
		t.Errorf("a second decision, as on a command that was kept, says %v", err)
	}
	if _, err := a.Lookup(patient(t), "before"); !errors.Is(err, millrace.ErrNotFound) {
		t.Errorf("a part of the batch is there: %v", err)
	}
	err = commitOne(a, 3, decided(command("behind", 3), true, 1))
	if !errors.Is(err, millrace.ErrConflict) {
		t.Errorf("a batch that continues the one that failed says %v", err)
	}
	a.Reload(3)
	must(t, commitOne(a, 3, decided(command("anew", 3), true, 1)))
	verify(t, a)
}

// atOnce has the owner commit a command with its decision while another node keeps it: the one writes first, and the other
// before that is committed. It says what verify finds then.
func atOnce(t *testing.T, separate, ownerFirst bool, edit func(string) string) (a *millrace.Store, dsn string, c *millrace.Command, problems []string) {
	t.Helper()
	dsn = server(t).DSN("postgres")
	with := func(o *Options) { o.separateClaims, o.edit = separate, edit }
	a, da := node(t, dsn, "a", with)
	b, db := node(t, dsn, "b", with)
	acquire(t, a, 3)
	c = command("both", 3)
	keep := &millrace.Batch{Partition: 3, Accepted: []millrace.AcceptedCommand{accepted(c)}}
	decision := decided(c, true, 1)
	kept := db.w.build([]*part{{partition: 3, reqs: []*request{{batch: keep}}}})
	one := da.next(3, decision)
	if separate { // both have claimed before either writes
		for _, x := range []*commit{kept, one} {
			must(t, da.on(patient(t), da.call(patient(t), da.sql.claim, da.claimParams(x, false))))
		}
	}
	first := begin(t, dsn)
	var second <-chan error
	var n, m int64
	if ownerFirst {
		must(t, da.call(patient(t), da.sql.decide, da.decideParams(one, !separate, true), &n, &m)(first.Conn()))
		second = send(b, keep)
	} else {
		must(t, db.call(patient(t), db.sql.keep, db.keepParams(kept, !separate, true), &n)(first.Conn()))
		second = send(a, &millrace.Batch{Partition: 3, Decisions: []millrace.Decision{decision}})
	}
	select {
	case err := <-second: // nothing held it up
		must(t, err)
		must(t, first.Commit(patient(t)))
	case <-waits(t, dsn):
		must(t, first.Commit(patient(t)))
		must(t, <-second)
	}
	must(t, a.Verify(patient(t), func(problem string) { problems = append(problems, problem) }))
	return a, dsn, c, problems
}

// waits is closed when a statement waits for a lock.
func waits(t *testing.T, dsn string) <-chan struct{} {
	t.Helper()
	ctx, cancel := context.WithCancel(patient(t))
	conn, err := pgx.Connect(ctx, dsn)
	must(t, err)
	found, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for n := 0; pause(ctx, nil, time.Millisecond); {
			if err := conn.QueryRow(ctx, "select count(*)::integer from pg_stat_activity where wait_event_type = 'Lock'").Scan(&n); err != nil {
				return
			}
			if n > 0 {
				close(found)
				return
			}
		}
	}()
	t.Cleanup(func() { cancel(); <-ended; _ = conn.Close(context.Background()) })
	return found
}

// Two nodes write the same command at the same time, one of them with its decision. The second waits for the first, and finds
// what it did: the command is there once, decided once, and waits no more.
func TestFreshCommandKeptElsewhereAtOnce(t *testing.T) {
	for _, separate := range []bool{false, true} {
		for _, ownerFirst := range []bool{false, true} {
			t.Run(fmt.Sprintf("separate claims %v, owner first %v", separate, ownerFirst), func(t *testing.T) {
				s, dsn, c, problems := atOnce(t, separate, ownerFirst, nil)
				if problems != nil {
					t.Errorf("verify: %q", problems)
				}
				foundIn(t, s, dsn, c, separate || !ownerFirst)
				if o, err := s.Lookup(patient(t), c.ID); err != nil || o.Status != millrace.StatusDecided {
					t.Errorf("%+v %v", o, err)
				}
			})
		}
	}
	// The controls: without a look into the outcomes, and with no row of commands that tells who was first where claims do
	// not, the command is there twice, and waits for a decision that it has.
	for name, change := range map[string][2]string{
		"no look":          {"k.ordinal is distinct from g.ordinal", "false"},
		"none of commands": {"alone := do_claim and ", "alone := not do_claim or "},
	} {
		t.Run("control: "+name, func(t *testing.T) {
			found := false // in one of the migrations
			_, _, _, problems := atOnce(t, name != "no look", true, func(text string) string {
				found = found || strings.Contains(text, change[0])
				return strings.Replace(text, change[0], change[1], 1)
			})
			if !found {
				t.Error("what protects is not where the test looks for it")
			}
			told := strings.Join(problems, "\n")
			if !strings.Contains(told, "kept twice") || !strings.Contains(told, "pending commands that are decided") {
				t.Errorf("verify finds %q", problems)
			}
		})
	}
}

// The same id with another content is refused wherever it comes from, and spoils nothing else that is written with it.
func TestKeyReusedOnAnotherNode(t *testing.T) {
	for _, separate := range []bool{false, true} {
		t.Run(fmt.Sprintf("separate claims %v", separate), func(t *testing.T) {
			dsn := server(t).DSN("postgres")
			with := func(o *Options) { o.separateClaims = separate }
			a, _ := node(t, dsn, "a", with)
			b, _ := node(t, dsn, "b", with)
			acquire(t, a, 0, 1)
			must(t, b.Accept(patient(t), 1, []millrace.AcceptedCommand{accepted(command("k", 1))}))
			other := command("k", 2)
			var results []<-chan error
			for i := range 50 {
				batch := &millrace.Batch{Partition: 2, Accepted: []millrace.AcceptedCommand{accepted(command(fmt.Sprint("c", i), 2))}}
				if i%10 == 5 {
					batch.Accepted = append(batch.Accepted, accepted(other))
				}
				results = append(results, send(a, batch))
			}
			for i, done := range results {
				err := <-done
				if i%10 == 5 && !errors.Is(err, millrace.ErrKeyReused) || i%10 != 5 && err != nil {
					t.Errorf("acceptance %d: %v", i, err)
				}
				_, lerr := b.Lookup(patient(t), fmt.Sprint("c", i))
				if (err == nil) != (lerr == nil) {
					t.Errorf("acceptance %d says %v, and its lookup %v", i, err, lerr)
				}
			}
			// Two with one id in one transaction.
			x, y := command("x", 2), command("x", 3)
			ex, ey := send(a, &millrace.Batch{Partition: 2, Accepted: []millrace.AcceptedCommand{accepted(x)}}), send(a, &millrace.Batch{Partition: 3, Accepted: []millrace.AcceptedCommand{accepted(y)}})
			if ex, ey := <-ex, <-ey; (ex == nil) == (ey == nil) || !errors.Is(errors.Join(ex, ey), millrace.ErrKeyReused) {
				t.Errorf("two contents of one id: %v and %v", ex, ey)
			}
			var conflict *ConflictError
			err := commitOne(a, 0, decided(command("k", 0), true, 1))
			if !errors.As(err, &conflict) || !slices.Equal(conflict.IDs, []string{"k"}) {
				t.Errorf("a decision on an id with another content: %v", err)
			}
			must(t, commitOne(a, 1, decided(command("k", 1), false, 1)))
			verify(t, a)
		})
	}
}
