package pgstore

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/millrace-io/millrace"
)

// Whatever somebody changes in the tables by hand is noticed, and named.
func TestVerifyNotices(t *testing.T) {
	dsn := server(t).DSN("postgres")
	ctx := patient(t)
	// Not looked at otherwise: a head that goes back would end the store at once.
	s := open(t, dsn, four(t, func(o *Options) { o.NoListen, o.Poll, o.LeaseTTL = true, time.Hour, time.Hour }))
	for i := range 6 {
		refused := decided(command(fmt.Sprint("refused", i), 1), true, 0)
		refused.Status, refused.Refusal = millrace.StatusRefused, &millrace.Refusal{Kind: millrace.RefusedRule, Code: "no"}
		must(t, commitOne(s, 1, decided(command(fmt.Sprint("decided", i), 1), true, 2), refused))
	}
	must(t, s.Accept(ctx, 1, []millrace.AcceptedCommand{accepted(command("waiting", 1))}))
	kept := command("kept", 2)
	must(t, s.Accept(ctx, 2, []millrace.AcceptedCommand{accepted(kept)}))
	must(t, commitOne(s, 2, decided(kept, false, 0)))
	must(t, s.CommitViews(ctx, []millrace.ViewBatch{{Consumer: "c", Partition: 1, Checkpoint: 4, Puts: []millrace.Put{
		{Document: millrace.Document{Collection: "c.d", Partition: 1, ID: "x", Data: []byte(`{"a":1}`), Keys: []string{"k", "", "l"}}},
		{Document: millrace.Document{Collection: "c.d", Partition: 1, ID: "y", Data: []byte(`{"a":2}`), Keys: []string{"k", "m", "l"}}},
	}}}))
	verify(t, s)
	tables := []string{"store", "partitions", "keys", "commands", "pending", "outcomes", "events", "documents", "document_keys", "checkpoints"}
	for _, table := range tables {
		exec(t, dsn, fmt.Sprintf("create table s.saved_%s as table s.%s", table, table))
	}
	for _, c := range []struct{ sql, want string }{
		{"update s.events set data = data || ' ' where position = 5", "chain"},
		{"update s.events set type = 'Other' where position = 5", "chain"},
		{"update s.events set time_ns = time_ns + 1 where position = 5", "event at position 5"},
		{"update s.events set version = 3 where position = 6", "gap in their versions"},
		{"update s.events set command_id = 'x' where position = 6", "event at position 6"},
		{"delete from s.events where position = 12", "11 events"},
		{"delete from s.events where position = 3", "not what it says"},
		{"insert into s.events select partition, 13, stream, 3, type, data, time_ns, command_id, correlation_id from s.events where position = 12", "13 events"},
		{"update s.outcomes set status = 4 where ordinal = 2", "cannot be read"},
		{"update s.outcomes set encoded = set_byte(encoded, 80, 7) where ordinal = 2", "chain"},
		{"update s.outcomes set chain = chain || '' , fingerprint = sha256('x') where ordinal = 3", "chain"},
		{"update s.outcomes set time_ns = 1 where ordinal = 2", "chain"},
		{"delete from s.outcomes where ordinal = 12", "outcome 12 is missing"},
		{"delete from s.outcomes where ordinal = 4", "ordinal 4: it is missing"},
		{"update s.partitions set position = 11 where partition = 1", "head says 11"},
		{"update s.partitions set chain = sha256('x') where partition = 1", "does not end as the head says"},
		{"delete from s.partitions where partition = 3", "3 rows for 4 partitions"},
		{"update s.store set id = 'another'", "not the one that was opened"},
		{"delete from s.keys where id = 'decided0'", "without their claim"},
		{"update s.keys set partition = 2 where id = 'decided0'", "without their claim"},
		{"delete from s.keys where id = 'kept'", "without their claim"},
		{"update s.keys set ordinal = 99 where id = 'decided0'", "without their claim"},
		{"update s.keys set ordinal = null where id = 'decided0'", "without their claim"},
		{"update s.keys set fingerprint = sha256('x') where id = 'waiting'", "without their claim"},
		{"update s.outcomes set data = '{}' where command_id = 'decided0'", "outcomes: partition 1: the fingerprint"},
		{"update s.commands set data = '{}' where id = 'kept'", "commands: partition 2: the fingerprint"},
		{"delete from s.commands where id = 'kept'", "1 outcomes without their command"},
		{"update s.commands set correlation_id = 'x' where id = 'kept'", "of another content"},
		{"update s.outcomes set (type, command_time_ns, causation_id, source, data) = (null, null, null, null, null) where command_id = 'decided0'", "1 outcomes without their command"},
		{"update s.outcomes set source = null where command_id = 'decided0'", "1 outcomes with a part of a command"},
		{"update s.outcomes set type = null where command_id = 'decided0'", "1 outcomes with a part of a command"},
		{"update s.outcomes set expected = 1 where command_id = 'kept'", "1 outcomes with a part of a command"},
		{"insert into s.commands select partition, command_id, stream, type, command_time_ns, expected, correlation_id, causation_id, source, data, fingerprint from s.outcomes where command_id = 'decided0'", "1 commands that are kept twice"},
		{"update s.outcomes o set (type, command_time_ns, causation_id, source, data) = (select type, time_ns, causation_id, source, data from s.commands where id = 'kept') where command_id = 'kept'", "1 commands that are kept twice"},
		{"delete from s.pending", "not pending"},
		{"insert into s.pending values (1, now(), 1, 'decided0')", "that are decided"},
		{"insert into s.pending values (1, now(), 1, 'nobody')", "never kept"},
		{"update s.checkpoints set position = 13", "ahead of the log"},
		{"delete from s.document_keys where key = 'm'", "lack 1 of their 5"},
		{"insert into s.document_keys select partition, collection, idx, 'z', id from s.document_keys where key = 'm'", "1 entries that no document has"},
		{"delete from s.documents where id = 'x'", "2 entries that no document has"},
		{"update s.documents set keys = ''", "keys of a document"},
		{"update s.documents set doc = '{}' where id = 'y'", "jsonb"},
	} {
		t.Run(c.sql, func(t *testing.T) {
			exec(t, dsn, c.sql)
			var problems []string
			must(t, s.Verify(ctx, func(problem string) { problems = append(problems, problem) }))
			if !strings.Contains(strings.Join(problems, "\n"), c.want) {
				t.Errorf("problems %q, want one with %q", problems, c.want)
			}
			for _, table := range tables {
				exec(t, dsn, fmt.Sprintf("begin; delete from s.%s; insert into s.%s table s.saved_%s; commit", table, table, table))
			}
			verify(t, s)
		})
	}
}
