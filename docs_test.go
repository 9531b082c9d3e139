package millrace_test

import (
	"io/fs"
	"net/url"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// markdown are the texts of the .md files of the module, by their path.
func markdown(t *testing.T) map[string]string { return textsOf(t, ".md") }

// textsOf reads all files of the module with one of the endings, without those that are hidden or recorded.
func textsOf(t *testing.T, endings ...string) map[string]string {
	t.Helper()
	texts := map[string]string{}
	root := os.DirFS(".")
	err := fs.WalkDir(root, ".", func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && p != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin"):
			return fs.SkipDir
		case d.IsDir() || !slices.ContainsFunc(endings, func(e string) bool { return strings.HasSuffix(p, e) }):
			return nil
		}
		text, err := fs.ReadFile(root, p)
		texts[p] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return texts
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name) //nolint:gosec // a file of ours
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

var (
	links    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	headings = regexp.MustCompile(`(?m)^#+ (.+)$`)
	blocks   = regexp.MustCompile("(?ms)^```([a-z]*)\n(.*?)^```$")
)

// anchors are the names under which the headings of a page can be linked to, as GitHub makes them.
func anchors(text string) []string {
	var out []string
	for _, h := range headings.FindAllStringSubmatch(blocks.ReplaceAllString(text, ""), -1) {
		name := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-' || r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r > 0x7f:
				return r
			}
			return -1
		}, strings.ToLower(h[1]))
		out = append(out, name)
	}
	return out
}

// TestDocumentationLinks follows every relative link of every page.
func TestDocumentationLinks(t *testing.T) {
	pages := markdown(t)
	found := 0
	for name, text := range pages {
		for _, m := range links.FindAllStringSubmatch(blocks.ReplaceAllString(text, ""), -1) {
			u, err := url.Parse(m[1])
			if err != nil {
				t.Errorf("%s: %q is no link: %v", name, m[1], err)
				continue
			}
			if u.Scheme != "" {
				continue
			}
			found++
			target := name
			if u.Path != "" {
				target = path.Join(path.Dir(name), u.Path)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links to %s, which is not there", name, m[1])
				continue
			}
			if u.Fragment != "" && !slices.Contains(anchors(pages[target]), u.Fragment) {
				t.Errorf("%s links to %s, which has no such heading", name, m[1])
			}
		}
	}
	if found < 20 {
		t.Errorf("only %d links found: the test does not see the pages", found)
	}
}

// TestReadmeCommands holds the first block of the README to what there is: a reader's first minute must not fail.
func TestReadmeCommands(t *testing.T) {
	first := blocks.FindStringSubmatch(read(t, "README.md"))
	if first == nil {
		t.Fatal("the README has no code block")
	}
	for _, want := range []string{"go run ./cmd/millrace serve --demo", "go test ./..."} {
		if !strings.Contains(first[2], want) {
			t.Errorf("the first block of the README lacks %q", want)
		}
	}
	serve := read(t, "cmd/millrace/serve.go")
	for _, want := range []string{`"serve"`, `"demo"`} {
		if !strings.Contains(serve, want) {
			t.Errorf("cmd/millrace/serve.go has no %s", want)
		}
	}
	if !strings.Contains(read(t, "cmd/millrace/main.go"), "\nfunc main() ") {
		t.Error("cmd/millrace has no main")
	}
}

// TestDocumentedCode: the Go code of the pages for users is the code of an example that runs.
func TestDocumentedCode(t *testing.T) {
	example := read(t, "millracetest/example_test.go")
	for _, page := range []string{"README.md", "docs/how-to/bring-your-own-domain.md"} {
		n := 0
		for _, b := range blocks.FindAllStringSubmatch(read(t, page), -1) {
			if b[1] != "go" {
				continue
			}
			n++
			if !strings.Contains(example, b[2]) {
				t.Errorf("%s: this code is not in millracetest/example_test.go:\n%s", page, b[2])
			}
		}
		if n == 0 {
			t.Errorf("%s has no Go code", page)
		}
	}
}

// TestDocumentedNames: every name that code gives to its users is on the page about such names, and every test that a
// page names exists.
func TestDocumentedNames(t *testing.T) {
	for _, c := range []struct{ code, pattern, page string }{
		{"domain/order/decide.go", `Code\w+ += "(\w+)"`, "docs/reference/refusals.md"},
		{"domain/order/stock_decide.go", `Code\w+ += "(\w+)"`, "docs/reference/refusals.md"},
		{"domain/order/returned.go", `Code\w+ += "(\w+)"`, "docs/reference/refusals.md"},
		{"domain/system/consumer_decide.go", `Code\w+ += "(\w+)"`, "docs/reference/refusals.md"},
		{"domain/system/deadletter.go", `Code\w+ += "(\w+)"`, "docs/reference/refusals.md"},
		{"internal/letter/letter.go", `(?m)^\t(Max\w+) +=`, "docs/reference/limits.md"},
		{"httpapi/problem.go", `&kind\{"(\w+)"`, "docs/reference/http.md"},
		{"internal/metrics/metrics.go", `"(millrace_\w+)"`, "docs/reference/metrics.md"},
		{"command.go", `Reason\w+ += "(\w+)"`, "docs/reference/dead-letters.md"},
		{"cmd/millrace/serve.go", `Var\(\S*&o\.[\w.]+\)?, "([a-z-]+)"`, "docs/reference/cli.md"},
		{"cmd/millrace/verify.go", `Var\(&\w+, "([a-z-]+)"`, "docs/reference/cli.md"},
		{"cmd/millrace/simulate_scenario.go", `Var\(&f\.\w+, "([a-z-]+)"`, "docs/reference/cli.md"},
		{"sim/scenario/scenario.go", `\{Name: "([a-z-]+)"`, "docs/reference/cli.md"},
		{"cmd/millrace/import.go", `Var\(&f\.\w+, "([a-z-]+)"`, "docs/reference/cli.md"},
		{"cmd/millrace/simulate.go", `Var\(&f\.\w+, "([a-z-]+)"`, "docs/reference/cli.md"},
		{"cmd/millrace/simulate_gateway.go", `Var\(&f\.[\w.]+, "([a-z-]+)"`, "docs/reference/cli.md"},
		{"sim/gateway/faults.go", `Code\w+ += "(\w+)"`, "docs/reference/payment-gateway.md"},
		{"sim/gateway/faults.go", `json:"(\w+)`, "docs/reference/payment-gateway.md"},
		{"sim/gateway/books.go", `Code\w+ += "(\w+)"`, "docs/reference/payment-gateway.md"},
		{"payment/http.go", `(?m)^\t(max\w+|\w+Timeout) +=`, "docs/reference/limits.md"},
		{"cmd/millrace/bench.go", `Var\(&o\.\w+, "([a-z-]+)"`, "docs/reference/cli.md"},
		{"httpapi/limits.go", `(?m)^\t([Mm]ax\w+|[a-z]\w+|Default\w+) +=`, "docs/reference/limits.md"},
		{"domain/order/limits.go", `(?m)^\t([Mm]ax\w+) +=`, "docs/reference/limits.md"},
	} {
		page := read(t, c.page)
		names := regexp.MustCompile(c.pattern).FindAllStringSubmatch(read(t, c.code), -1)
		if len(names) == 0 {
			t.Errorf("%s has nothing like %s: the test does not see the code", c.code, c.pattern)
		}
		for _, m := range names {
			if !regexp.MustCompile("`(--)?" + m[1] + `\b`).MatchString(page) {
				t.Errorf("%s does not name %s of %s", c.page, m[1], c.code)
			}
		}
	}

	var tests strings.Builder
	for _, text := range textsOf(t, "_test.go") {
		tests.WriteString(text)
	}
	all := tests.String()
	for name, text := range markdown(t) {
		for _, m := range regexp.MustCompile("`(Test[A-Z]\\w+|Fuzz[A-Z]\\w+)`").FindAllStringSubmatch(text, -1) {
			if !strings.Contains(all, "\nfunc "+m[1]+"(") {
				t.Errorf("%s names the test %s, which does not exist", name, m[1])
			}
		}
	}
}
