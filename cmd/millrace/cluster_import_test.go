//go:build linux

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace/internal/pgtest"
	"github.com/millrace-io/millrace/internal/retail/retailtest"
)

// TestClusterImportsRealOrders imports six months of a real shop through three nodes in turn.
func TestClusterImportsRealOrders(t *testing.T) {
	name, want := clusterRealFile(t)
	sharedImport(t, name, &want)
}

// clusterRealFile is realFile where several nodes are to import it: only the long form does so.
func clusterRealFile(t *testing.T) (name string, want retailtest.Expected) {
	t.Helper()
	name, want = realFile(t)
	if os.Getenv("MILLRACE_CLUSTER") == "" {
		t.Skip("NOT RUN: several nodes take minutes for the real data set; make cluster runs it")
	}
	return name, want
}

// TestClusterImports imports a file of the same shape, with everything that is odd in the real one and some damage.
func TestClusterImports(t *testing.T) {
	clusterBeside(t)
	name, want := retailFile(t, retailtest.Options{Seed: 31, Invoices: 1200, Damage: true})
	sharedImport(t, name, &want)
}

// sharedImport imports a file through three nodes, and wants at each of them what the file says by another reckoning, and
// byte for byte what the embedded store makes of it.
func sharedImport(t *testing.T, name string, want *retailtest.Expected) {
	dsn := pgtest.Start(t, pgtest.Options{}).DSN("postgres")
	nodes := sharing(t, dsn, clusterNodes)
	runImportOf(t, name, nodes...).is(t, want)
	stream := anyOrder(t, nodes[0])
	var all map[string][]string
	for i, s := range nodes {
		// The head as any node knows it may be a little old: what this one node has decided for the last is in one of the three.
		for _, other := range nodes {
			s.caughtUp(t, other.head(t, stream))
		}
		readsBack(t, s, want)
		docs := documentsOf(t, s)
		if i > 0 && !cmp.Equal(docs, all) {
			t.Errorf("two nodes show different documents:\n%.2000s", cmp.Diff(all, docs))
		}
		all = docs
	}
	head := nodes[0].head(t, stream)
	// Again through the nodes in another order: each invoice is known, whoever took it.
	slices.Reverse(nodes)
	if again := runImportOf(t, name, nodes...); again.Replayed != want.Invoices || again.Lines != want.Rows {
		t.Errorf("the second run: %+v", again)
	}
	if now := nodes[0].head(t, stream); now != head {
		t.Errorf("the second run wrote something: the head was %s and is %s", head, now)
	}
	for _, s := range nodes {
		s.stop(t)
	}
	if stdout, stderr, code := runs(t, "verify", "--store", dsn); code != 0 {
		t.Errorf("verify: exit code %d: %s %s", code, stdout, stderr)
	}
	asEmbedded(t, name, dsn, head, want, all)
}

// asEmbedded wants the documents that nodes have made from the embedded store: of the same facts, where it makes them anew,
// byte for byte; and of the same file, but for the time at which it was imported.
func asEmbedded(t *testing.T, name, dsn, head string, want *retailtest.Expected, all map[string][]string) {
	data := filepath.Join(t.TempDir(), "copy")
	if stdout, stderr, code := runs(t, "copy", "--from", dsn, "--to", data, "--quiet"); code != 0 {
		t.Fatalf("copy: exit code %d: %s %s", code, stdout, stderr)
	}
	s := serving(t, data)
	s.rebuiltAlike(t, head)
	if docs := documentsOf(t, s); !cmp.Equal(docs, all) {
		t.Errorf("the embedded store makes other documents of the same facts:\n%.2000s", cmp.Diff(all, docs))
	}
	s.stop(t)

	s = serving(t, t.TempDir())
	runImportOf(t, name, s).is(t, want)
	s.caughtUp(t, s.head(t, anyOrder(t, s)))
	if diff := cmp.Diff(timeless(all), timeless(documentsOf(t, s))); diff != "" {
		t.Errorf("the embedded store makes other documents of the same file:\n%.2000s", diff)
	}
	s.stop(t)
}

// documentsOf are all documents that a server shows, by resource.
func documentsOf(t *testing.T, s *server) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	for _, resource := range []string{"orders", "returns", "stock"} {
		pages(t, s, "/v1/"+resource+"?limit=500", func(doc json.RawMessage) { out[resource] = append(out[resource], string(doc)) })
	}
	var totals struct{ Items []json.RawMessage }
	s.get(t, "/v1/order-totals").into(t, &totals)
	for _, row := range totals.Items {
		out["order-totals"] = append(out["order-totals"], string(row))
	}
	return out
}

// importedAt is what a document owes to the time of its import.
var importedAt = regexp.MustCompile(`"updated_at":"[^"]*",?`)

func timeless(docs map[string][]string) map[string][]string {
	out := map[string][]string{}
	for resource, all := range docs {
		for _, doc := range all {
			out[resource] = append(out[resource], importedAt.ReplaceAllString(doc, ""))
		}
	}
	return out
}
