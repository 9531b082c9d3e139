package pgstore

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/millrace-io/millrace"
)

// The few undecided commands of one category are found among many others, in the order in which they were accepted, and without
// reading those. Without the index, which is the control, they would all be read.
func TestPendingOfCategory(t *testing.T) {
	dsn := server(t).DSN("postgres")
	s := open(t, dsn, four(t, nil))
	ctx := patient(t)
	const many = 20_000
	var cs []millrace.AcceptedCommand
	for i := range many {
		c := command(fmt.Sprint("c", i), 1)
		cs = append(cs, accepted(c))
	}
	of := func(id, stream string) millrace.AcceptedCommand {
		c := command(id, 1)
		c.Stream = millrace.Stream(stream)
		return accepted(c)
	}
	must(t, s.Accept(ctx, 1, []millrace.AcceptedCommand{of("z", "consumer-a"), of("other", "consumers-a"), of("another", "consume-a")}))
	must(t, s.Accept(ctx, 1, cs))
	must(t, s.Accept(ctx, 1, []millrace.AcceptedCommand{of("y", "consumer-b"), of("x", "consumer-a")}))
	found := func(want ...string) {
		t.Helper()
		var got []string
		for c, err := range s.PendingOf(ctx, 1, "consumer") {
			must(t, err)
			got = append(got, c.Command.ID)
		}
		if !slices.Equal(got, want) {
			t.Errorf("found %q, want %q", got, want)
		}
	}
	found("z", "y", "x")
	for _, err := range s.PendingOf(ctx, 2, "consumer") {
		t.Errorf("in another partition: %v", err)
	}
	z := of("z", "consumer-a").Command
	must(t, commitOne(s, 1, decided(z, false, 1)))
	found("y", "x")
	for _, bad := range []string{"", "a'b", "a-b", "A"} {
		for _, err := range s.PendingOf(ctx, 1, bad) {
			if err == nil {
				t.Errorf("%q is a category", bad)
			}
		}
	}

	exec(t, dsn, "analyze s.commands, s.pending")
	plan := func() string {
		sql := strings.NewReplacer("$C", "consumer", "$1", "1", "$2", "100").Replace(driverOf(s).sql.pendingOf)
		return ask[string](t, dsn, "select string_agg(l, ' ') from regexp_split_to_table((select s.plan_of($1)), '\n') l", sql)
	}
	exec(t, dsn, `create function s.plan_of(q text) returns text language plpgsql as $$
		declare l text; out text := ''; begin for l in execute 'explain ' || q loop out := out || l || E'\n'; end loop; return out; end $$`)
	if p := plan(); !strings.Contains(p, "commands_control") {
		t.Errorf("the index is not used: %s", p)
	}
	exec(t, dsn, "drop index s.commands_control")
	if p := plan(); strings.Contains(p, "commands_control") {
		t.Errorf("without it: %s", p)
	}
}
