package millrace_test

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// modulePath is the prefix of our own import paths.
const modulePath = "github.com/millrace-io/millrace"

// maxRootLines bounds the root's files, tests apart. The aim is 1,500 lines of code; comments and blank lines come on
// top. Every package depends on the root, so that whatever enters it is everybody's: a word moves in when two packages
// need it, and not before.
const maxRootLines = 2600

// wiring are the folders whose packages may put siblings together. Everybody else imports the root and internal
// packages only: what a package needs of another arrives as a value of a type that the root declares.
var wiring = []string{"cmd", "sim", "millracetest"}

// rootImports are all that the root may import beside the standard library.
var rootImports = []string{
	"github.com/cespare/xxhash/v2",
	modulePath + "/internal/jsonx",
	modulePath + "/internal/id",
}

// impure are the packages of the standard library, with all below them, that a domain may not import: each is a way to
// read a clock, a file, a network or chance, to wait, or to tell anybody anything but by events.
var impure = []string{
	"context", "crypto/rand", "database/sql", "io/fs", "log", "math/rand", "net", "os", "plugin", "runtime", "syscall",
	"testing", "unsafe", "C",
}

// library says which folders may import a third-party module. A technology has one owner, so that it can be exchanged,
// and so that the rest can be tested without it.
type library struct {
	path   string   // of the module, and of all below it
	owners []string // folders, or anyEngine
	tests  bool     // tests anywhere may import it
}

// anyEngine owns what is no technology but a format or an extension of the language.
const anyEngine = "packages other than the root and the domains"

var libraries = []library{
	{path: "github.com/cespare/xxhash", owners: []string{".", anyEngine}, tests: true},
	{path: "github.com/cockroachdb/pebble", owners: []string{"localstore", "cmd"}, tests: true}, // cmd: its benches
	{path: "github.com/emersion/go-smtp", owners: []string{"internal/smtptest"}},
	{path: "github.com/emersion/go-sasl", owners: []string{"internal/smtptest"}},
	{path: "github.com/getkin/kin-openapi", tests: true},
	{path: "github.com/go-json-experiment/json", owners: []string{"internal/jsonx"}},
	{path: "github.com/google/go-cmp", owners: []string{"millracetest", "sim"}, tests: true},
	{path: "github.com/google/uuid", owners: []string{"internal/id"}},
	{path: "github.com/jackc/pgx", owners: []string{"pgstore", "cmd"}}, // cmd: its benches, and whether a database holds a store
	{path: "github.com/pressly/goose", owners: []string{"pgstore"}},
	{path: "github.com/prometheus", owners: []string{"internal/metrics", "cmd"}, tests: true},
	{path: "github.com/rogpeppe/go-internal", tests: true},
	{path: "github.com/spf13/cobra", owners: []string{"cmd"}},
	{path: "github.com/spf13/pflag", owners: []string{"cmd"}},
	{path: "github.com/vbauerster/mpb", owners: []string{"cmd"}},
	{path: "github.com/wneessen/go-mail", owners: []string{"smtp"}},
	{path: "go.uber.org/goleak", owners: []string{"millracetest", "sim"}, tests: true},
	{path: "go.yaml.in/yaml", owners: []string{anyEngine}, tests: true},
	{path: "golang.org/x/sync", owners: []string{anyEngine}, tests: true},
	{path: "golang.org/x/time", owners: []string{anyEngine}, tests: true},
	{path: "pgregory.net/rapid", owners: []string{"millracetest", "sim"}, tests: true},
}

// TestImports holds every file of the module to the rule of the design: import the root, never a sibling; only what
// wires, wires; domains are pure; a technology has one owner. It parses the files: a test that asked the go command
// would be answered from the test cache when only the imports of another package changed.
func TestImports(t *testing.T) {
	files := sources(t)
	// Without a file to look at, the rule would hold of itself.
	if !slices.ContainsFunc(files, func(f source) bool { return f.path == "internal/jsonx/jsonx.go" }) {
		t.Fatalf("internal/jsonx/jsonx.go is not among the %d files found: run the test in the root of the module", len(files))
	}
	for _, f := range files {
		for _, v := range violations(f) {
			t.Error(v)
		}
	}
	if n := rootLines(files); n > maxRootLines {
		t.Errorf("the root has %d lines without its tests, and %d is the bound: what does only one package need?", n, maxRootLines)
	}
}

// source is a Go file by what matters here.
type source struct {
	path    string // from the root of the module, with slashes
	imports []string
	lines   int
}

func (f source) folder() string { return path.Dir(f.path) }
func (f source) isTest() bool   { return strings.HasSuffix(f.path, "_test.go") }

// topFolder is the folder that makes a package somebody's sibling: "localstore" for all below localstore, "domain/order"
// for all below that. For an internal package it is "internal".
func topFolder(folder string) string {
	parts := strings.SplitN(folder, "/", 3)
	if parts[0] == "domain" && len(parts) > 1 {
		return parts[0] + "/" + parts[1]
	}
	return parts[0]
}

// isBelow says whether a slash-separated path is another one or lies in it.
func isBelow(p, of string) bool { return p == of || strings.HasPrefix(p, of+"/") }

func isBelowAny(p string, of []string) bool {
	return slices.ContainsFunc(of, func(o string) bool { return isBelow(p, o) })
}

// violations tells every import of a file that breaks the rule, with the file and the import by name.
func violations(f source) []string {
	var out []string
	for _, imp := range f.imports {
		if why := violation(f, imp); why != "" {
			out = append(out, fmt.Sprintf("%s imports %q: %s", f.path, imp, why))
		}
	}
	return out
}

func violation(f source, imp string) string {
	isStandard := !strings.Contains(strings.Split(imp, "/")[0], ".")
	switch {
	case f.folder() == "." && !f.isTest() && !isStandard && !slices.Contains(rootImports, imp):
		return "the root imports the standard library and " + strings.Join(rootImports, ", ")
	case isStandard:
		if isBelow(f.folder(), "domain") && !f.isTest() && isBelowAny(imp, impure) {
			return "a domain is pure: what it needs to know arrives in its arguments"
		}
		return ""
	case isBelow(imp, modulePath):
		return ownViolation(f, strings.TrimPrefix(strings.TrimPrefix(imp, modulePath), "/"))
	default:
		return libraryViolation(f, imp)
	}
}

// ownViolation judges the import of a package of this module, by its folder.
func ownViolation(f source, imported string) string {
	from := topFolder(f.folder())
	switch {
	case imported == "" || isBelow(imported, "internal") || topFolder(imported) == from:
		return ""
	case f.isTest() || slices.Contains(wiring, from):
		return ""
	default:
		return fmt.Sprintf("%s and %s are siblings: import the root or an internal package, and let cmd wire the two", from, topFolder(imported))
	}
}

func libraryViolation(f source, imp string) string {
	i := slices.IndexFunc(libraries, func(l library) bool { return isBelow(imp, l.path) })
	if i < 0 {
		return "no package owns this library: add it to the table in imports_test.go, with its one owner"
	}
	l := libraries[i]
	if l.tests && f.isTest() || slices.ContainsFunc(l.owners, func(owner string) bool {
		if owner == anyEngine {
			return f.folder() != "." && !isBelow(f.folder(), "domain")
		}
		return isBelow(f.folder(), owner)
	}) {
		return ""
	}
	if len(l.owners) == 0 {
		return "only tests import this library"
	}
	return "only " + strings.Join(l.owners, ", ") + " may import this library"
}

func rootLines(files []source) int {
	n := 0
	for _, f := range files {
		if f.folder() == "." && !f.isTest() {
			n += f.lines
		}
	}
	return n
}

// sources parses the files of the module, whatever their build tags, but for those that the go command ignores too.
func sources(t *testing.T) []source {
	t.Helper()
	var out []source
	root := os.DirFS(".")
	err := fs.WalkDir(root, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			name := d.Name()
			if p != "." && (strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") || name == "testdata" || name == "vendor") {
				return fs.SkipDir
			}
			if _, err := fs.Stat(root, path.Join(p, "go.mod")); p != "." && err == nil {
				return fs.SkipDir // another module
			}
			return nil
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		text, err := fs.ReadFile(root, p)
		if err != nil {
			return err
		}
		f, err := parseSource(p, string(text))
		if err != nil {
			return err
		}
		out = append(out, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func parseSource(name, text string) (source, error) {
	file, err := parser.ParseFile(token.NewFileSet(), name, text, parser.ImportsOnly)
	if err != nil {
		return source{}, err
	}
	f := source{path: name, lines: strings.Count(text, "\n")}
	for _, spec := range file.Imports {
		imp, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return source{}, fmt.Errorf("%s: %w", name, err)
		}
		f.imports = append(f.imports, imp)
	}
	return f, nil
}

// TestImportsControl runs the check on files that break each part of the rule, and on some that do not.
func TestImportsControl(t *testing.T) {
	own := func(folders ...string) []string {
		for i, folder := range folders {
			folders[i] = strings.TrimSuffix(modulePath+"/"+folder, "/")
		}
		return folders
	}
	tests := []struct {
		file    string
		imports []string
		bad     []string // of the imports, in their order
		why     string   // a part of each message
	}{
		// Siblings.
		{file: "feed/loop.go", imports: append(own("", "internal/jsonx", "internal/id"), "time", "net", "os")},
		{file: "feed/loop.go", imports: own("localstore"), bad: own("localstore"), why: "feed and localstore are siblings"},
		{file: "feed/sub/loop.go", imports: own("feed", "feed/other", "command"), bad: own("command"), why: "feed and command are siblings"},
		{file: "httpapi/h.go", imports: own("command", "domain/order", "sim", "cmd/millrace"), bad: own("command", "domain/order", "sim", "cmd/millrace"), why: "are siblings"},
		{file: "internal/metrics/m.go", imports: own("", "internal/id", "feed"), bad: own("feed"), why: "internal and feed are siblings"},
		{file: "feedback/f.go", imports: own("feed"), bad: own("feed"), why: "feedback and feed are siblings"},
		{file: "cmd/millrace/main.go", imports: own("", "feed", "localstore", "domain/order", "sim", "millracetest")},
		{file: "sim/world.go", imports: own("feed", "localstore", "command")},
		{file: "millracetest/store.go", imports: own("localstore")},
		{file: "feed/loop_test.go", imports: own("localstore", "domain/order")},
		{file: "simulate/s.go", imports: own("feed"), bad: own("feed"), why: "simulate and feed are siblings"},

		// Domains.
		{file: "domain/order/decide.go", imports: append(own("", "internal/jsonx", "domain/order/money"), "time", "fmt", "errors", "math", "maps", "math/bits")},
		{file: "domain/order/decide.go", imports: own("domain/account"), bad: own("domain/account"), why: "domain/order and domain/account are siblings"},
		{file: "domain/order/decide.go", imports: own("localstore"), bad: own("localstore"), why: "domain/order and localstore are siblings"},
		{
			file:    "domain/order/money/m.go",
			imports: []string{"context", "net", "net/url", "os", "os/exec", "log", "log/slog", "math/rand", "math/rand/v2", "crypto/rand", "io/fs", "syscall", "testing", "testing/synctest", "C", "io", "iter", "logic", "osmosis"},
			bad:     []string{"context", "net", "net/url", "os", "os/exec", "log", "log/slog", "math/rand", "math/rand/v2", "crypto/rand", "io/fs", "syscall", "testing", "testing/synctest", "C"},
			why:     "a domain is pure",
		},
		{file: "domain/order/decide.go", imports: []string{"golang.org/x/sync/errgroup"}, bad: []string{"golang.org/x/sync/errgroup"}, why: "only packages other than"},
		{file: "domain/order/decide_test.go", imports: []string{"os", "testing", "context", "pgregory.net/rapid", "github.com/google/go-cmp/cmp"}},

		// The root.
		{file: "stream.go", imports: []string{"context", "io", "iter", "github.com/cespare/xxhash/v2", modulePath + "/internal/jsonx", modulePath + "/internal/id"}},
		{file: "stream.go", imports: own("feed", "internal/metrics"), bad: own("feed", "internal/metrics"), why: "the root imports the standard library and"},
		{file: "stream.go", imports: []string{"golang.org/x/sync/errgroup", "github.com/google/uuid"}, bad: []string{"golang.org/x/sync/errgroup", "github.com/google/uuid"}, why: "the root imports"},
		{file: "stream_test.go", imports: append(own("", "localstore", "internal/metrics"), "pgregory.net/rapid")},

		// Libraries and their owners.
		{file: "localstore/index.go", imports: []string{"github.com/cockroachdb/pebble/v2", "github.com/cockroachdb/pebble/v2/vfs", "golang.org/x/sync/errgroup"}},
		{file: "cmd/millrace/bench.go", imports: []string{"github.com/cockroachdb/pebble/v2", "github.com/spf13/cobra", "github.com/prometheus/client_golang/prometheus/promhttp"}},
		{file: "sim/disk_test.go", imports: []string{"github.com/cockroachdb/pebble/v2/vfs", "github.com/prometheus/client_golang/prometheus/testutil"}},
		{file: "sim/disk.go", imports: []string{"github.com/cockroachdb/pebble/v2/vfs"}, bad: []string{"github.com/cockroachdb/pebble/v2/vfs"}, why: "only localstore, cmd may import"},
		{file: "internal/metrics/m.go", imports: []string{"github.com/prometheus/client_golang/prometheus"}},
		{file: "feed/metrics.go", imports: []string{"github.com/prometheus/client_golang/prometheus"}, bad: []string{"github.com/prometheus/client_golang/prometheus"}, why: "only internal/metrics, cmd may import"},
		{file: "httpapi/cli_test.go", imports: []string{"github.com/spf13/cobra"}, bad: []string{"github.com/spf13/cobra"}, why: "only cmd may import"},
		{file: "internal/jsonx/jsonx.go", imports: []string{"github.com/go-json-experiment/json", "github.com/go-json-experiment/json/jsontext"}},
		{file: "feed/json_test.go", imports: []string{"github.com/go-json-experiment/json"}, bad: []string{"github.com/go-json-experiment/json"}, why: "only internal/jsonx may import"},
		{file: "httpapi/spec.go", imports: []string{"github.com/getkin/kin-openapi/openapi3"}, bad: []string{"github.com/getkin/kin-openapi/openapi3"}, why: "only tests import"},
		{file: "httpapi/spec_test.go", imports: []string{"github.com/getkin/kin-openapi/openapi3"}},
		{file: "kafka/client.go", imports: []string{"example.com/kafka"}, bad: []string{"example.com/kafka"}, why: "no package owns this library"},
		{file: "localstore/x.go", imports: []string{"github.com/cockroachdb/pebbles"}, bad: []string{"github.com/cockroachdb/pebbles"}, why: "no package owns this library"},
	}
	for _, test := range tests {
		var text strings.Builder
		text.WriteString("//go:build never\n\npackage p\n\nimport (\n")
		for i, imp := range test.imports {
			// A name for the import hides nothing.
			fmt.Fprintf(&text, "\t%s %q\n", []string{"_", "x", "."}[i%3], imp)
		}
		text.WriteString(")\n")
		f, err := parseSource(test.file, text.String())
		if err != nil {
			t.Fatal(err)
		}
		got := violations(f)
		if len(got) != len(test.bad) {
			t.Errorf("%s with %q: got %q, want %d", test.file, test.imports, got, len(test.bad))
			continue
		}
		for i, v := range got {
			if want := fmt.Sprintf("%s imports %q: ", test.file, test.bad[i]); !strings.HasPrefix(v, want) || !strings.Contains(v, test.why) {
				t.Errorf("got %q, want %q and then something with %q", v, want, test.why)
			}
		}
	}

	grown := []source{{path: "a.go", lines: maxRootLines}, {path: "b.go", lines: 1}, {path: "a_test.go", lines: 500}, {path: "feed/c.go", lines: 500}}
	if got := rootLines(grown); got != maxRootLines+1 {
		t.Errorf("counted %d lines of the root, want %d", got, maxRootLines+1)
	}
}
