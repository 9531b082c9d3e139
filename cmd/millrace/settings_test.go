package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/millrace-io/millrace/internal/client"
)

// settingsOf reads the settings of a command as it would with some flags.
func settingsOf(t *testing.T, command string, flags ...string) (*cobra.Command, error) {
	t.Helper()
	root := newRoot()
	c, rest, err := root.Find(append(strings.Fields(command), flags...))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.ParseFlags(rest); err != nil {
		t.Fatal(err)
	}
	return c, readSettings(c)
}

func write(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// For every setting: a flag counts before the environment, that before the file, that before the default; and whoever asks
// is told which it was.
func TestPrecedenceOfSettings(t *testing.T) {
	commands := map[string]string{"output": "verify", "quiet": "simulate orders", "retry-for": "simulate orders", "server": "import online-retail"}
	// Three values of each; the text is what the setting then says of itself.
	values := map[string][3]string{
		"admin": {"127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"}, "data": {"a", "b", "c"}, "demo": {"true", "false", "true"},
		"http": {"127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"}, "insecure": {"true", "false", "true"}, "hold-read-models": {"true", "false", "true"},
		"log-format": {"json", "text", "auto"}, "log-level": {"debug", "warn", "error"}, "max-backlog": {"1", "2", "3"},
		"output": {"json", "text", "json"}, "partitions": {"1", "2", "3"}, "paused": {"[command]", "[feed]", "[command,feed]"},
		"roles": {"[intake]", "[command,feed]", "[notify]"}, "quiet": {"true", "false", "true"}, "retry-for": {"1s", "2s", "3s"}, "server": {"[http://a]", "[http://b]", "[http://c,http://d]"},
		"notify": {"[log]", "[none]", "[email,webhook]"}, "smtp-url": {"smtp://a", "smtp://b", "smtp://c"},
		"payments": {"account", "manual", "http://127.0.0.1:1"}, "fulfil-until": {"confirmed", "packed", "shipped"},
		"payment-timeout": {"1s", "2s", "3s"}, "reservation-expiry": {"1s", "2s", "3s"}, "backorder-for": {"1s", "2s", "3s"}, "backorder-retry": {"1s", "2s", "3s"},
		"notify-webhook": {"https://a", "https://b", "https://c"},
		"direct":         {"none", "postgres://b/b", "postgres://c/c"}, "node": {"a", "b", "c"}, "store": {"postgres://a/a", "postgres://b/b", "postgres://c/c"},
	}
	for _, name := range settingNames() {
		v, ok := values[name]
		if !ok {
			t.Errorf("%s is not tested", name)
			continue
		}
		command := commands[name]
		if command == "" {
			command = "serve"
		}
		said := func(i int) string { return strings.Trim(v[i], "[]") }
		file := write(t, fmt.Sprintf("# a comment\n%s: %s\n", name, v[2]))
		want := func(value, from string, flags ...string) {
			t.Helper()
			c, err := settingsOf(t, command, flags...)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				return
			}
			if got := c.Flags().Lookup(name).Value.String(); got != value || origin(c, name) != from {
				t.Errorf("%s is %q by %q, want %q by %q", name, got, origin(c, name), value, from)
			}
		}
		usual, _, err := newRoot().Find(strings.Fields(command))
		if err != nil {
			t.Fatal(err)
		}
		none := usual.Flags().Lookup(name).DefValue
		want(none, "")
		want(v[2], file+":2: "+name, "--config", file)
		t.Setenv("MILLRACE_CONFIG", file)
		want(v[2], file+":2: "+name)
		t.Setenv(variable(name), said(1))
		want(v[1], variable(name))
		want(v[0], "", "--"+name+"="+said(0))
		// An empty variable is none.
		t.Setenv(variable(name), "")
		want(v[2], file+":2: "+name)
		// The flag names another file than the environment.
		want(none, "", "--config", os.DevNull)
		t.Setenv("MILLRACE_CONFIG", os.DevNull)
	}
	if variable("log-level") != "MILLRACE_LOG_LEVEL" {
		t.Error(variable("log-level"))
	}
}

// Every flag of serve is a setting, and so the help of each of the others says where it is not.
func TestEveryFlagOfServeIsASetting(t *testing.T) {
	c, _, err := newRoot().Find([]string{"serve"})
	if err != nil {
		t.Fatal(err)
	}
	flags := regexp.MustCompile(`--([a-z-]+)`).FindAllStringSubmatch(c.LocalNonPersistentFlags().FlagUsages(), -1)
	found := 0
	for _, f := range flags {
		if c.Flags().Lookup(f[1]) == nil {
			continue // a word of a description
		}
		found++
		if !slices.Contains(settingNames(), f[1]) {
			t.Errorf("--%s is no setting", f[1])
		}
	}
	if found < 10 {
		t.Errorf("only %d flags found", found)
	}
	for _, want := range []string{"MILLRACE_LOG_LEVEL", "--config", "/etc/millrace/config.yaml"} {
		if !strings.Contains(c.Long+c.Parent().PersistentFlags().FlagUsages(), want) {
			t.Errorf("the help of serve does not say %s", want)
		}
	}
}

// A file that nobody names: the user's before the machine's, and none is no fault.
func TestPlacesOfTheFile(t *testing.T) {
	home := t.TempDir()
	t.Setenv("MILLRACE_CONFIG", "")
	t.Setenv("XDG_CONFIG_HOME", home)
	places := settingsPlaces()
	name := filepath.Join(home, "millrace", "config.yaml")
	if !slices.Equal(places, []string{name, "/etc/millrace/config.yaml"}) {
		t.Fatalf("it looks at %q", places)
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte("log-level: debug\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := settingsOf(t, "serve")
	if err != nil || c.Flags().Lookup("log-level").Value.String() != "debug" || origin(c, "log-level") != name+":1: log-level" {
		t.Errorf("%v, by %q", err, origin(c, "log-level"))
	}
}

// private is a value that no message may show.
const private = "hunter2"

// What is wrong with a file is said with its line, and without what it holds.
func TestBadFile(t *testing.T) {
	for text, want := range map[string]string{
		"log-level: debug\nlog_level: " + private:         `:2: unknown setting "log_level"`,
		"config: " + private:                              `:1: unknown setting "config"`,
		"seed: 7":                                         `:1: unknown setting "seed"`,
		"Http: " + private:                                `:1: unknown setting "Http"`,
		"http: 127.0.0.1:1\n\nhttp: " + private:           `:3: http is set already, on line 1`,
		"http:\n  addr: " + private:                       `:1: http must be a value or a list of values`,
		"http:":                                           `:1: http must be a value`,
		"paused: [command, [" + private + "]]":            `:1: paused must be a value`,
		"paused: [~]":                                     `:1: paused must be a value`,
		"data: &a " + private + "\nhttp: *a":              `:2: http must be a value`,
		"<<: {data: " + private + "}":                     `:1: unknown setting "<<"`,
		"? [data]\n: " + private:                          `:1: a key must be the name of a setting`,
		"- " + private:                                    `:1: must be a mapping`,
		private:                                           `:1: must be a mapping`,
		"data: a\n---\ndata: " + private:                  `:1: there is more than one document`,
		"data: a\nhttp: " + private + ": 1":               `: is no YAML: line 2: `,
		"data: \x01":                                      `: is no YAML: control characters`,
		"partitions: " + private:                          `:1: partitions: must be a whole number`,
		"partitions: [1, 2]":                              `:1: partitions: takes one value, not a list`,
		"\n\ninsecure: " + private:                        `:3: insecure: must be true or false`,
		"data: " + strings.Repeat(private, maxConfig/6):   `: is longer than 64 KiB`,
		"log-level: debug\nmax-backlog: 1e9 # " + private: `:2: max-backlog: must be a whole number`,
	} {
		file := write(t, text)
		_, err := settingsOf(t, "serve", "--config", file)
		if err == nil || !strings.HasPrefix(err.Error(), file+want) || client.ExitCode(err) != client.ExitUsage || strings.Contains(err.Error(), private) {
			t.Errorf("%.60q: exit code %d: %v, want %s", text, client.ExitCode(err), err, want)
		}
	}
	for _, text := range []string{"", "# nothing\n", "---\n", "{}", "null"} {
		if _, err := settingsOf(t, "serve", "--config", write(t, text)); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
	missing := filepath.Join(t.TempDir(), "none.yaml")
	if _, err := settingsOf(t, "serve", "--config", missing); err == nil || client.ExitCode(err) != client.ExitUsage || err.Error() != "--config: there is no file "+missing {
		t.Errorf("a file that is not there: %v", err)
	}
	t.Setenv("MILLRACE_CONFIG", missing)
	if _, err := settingsOf(t, "serve"); err == nil || err.Error() != "MILLRACE_CONFIG: there is no file "+missing {
		t.Errorf("a file that is not there: %v", err)
	}
}

// A value of the right type may still be wrong: what then ends the command names the place too.
func TestBadValueNamesItsSource(t *testing.T) {
	for name, bad := range map[string]string{
		"paused": "everything", "partitions": "-1", "max-backlog": "-1", "http": "0.0.0.0:1", "admin": "nonsense",
		"log-level": "loud", "log-format": "xml", "notify": "pigeon", "smtp-url": "smtp://hunter2", "notify-webhook": "ftp://hunter2",
	} {
		file := write(t, "demo: false\n"+name+": "+bad+"\n")
		for from, run := range map[string]func() (*cobra.Command, error){
			"--" + name:          func() (*cobra.Command, error) { return settingsOf(t, "serve", "--"+name+"="+bad) },
			file + ":2: " + name: func() (*cobra.Command, error) { return settingsOf(t, "serve", "--config", file) },
			variable(name): func() (*cobra.Command, error) {
				t.Setenv(variable(name), bad)
				return settingsOf(t, "serve")
			},
		} {
			c, err := run()
			if err != nil {
				t.Fatal(err)
			}
			err = explain(c, c.PreRunE(c, nil))
			if err == nil || !strings.HasPrefix(err.Error(), from+": ") || client.ExitCode(err) != client.ExitUsage {
				t.Errorf("%s: exit code %d: %v", from, client.ExitCode(err), err)
			}
			t.Setenv(variable(name), "")
		}
	}
}

// FuzzSettingsFile: whatever is in a file, it is read or refused.
func FuzzSettingsFile(f *testing.F) {
	f.Add([]byte("http: 127.0.0.1:8080\npaused: [command, feed]\n"))
	f.Add([]byte("data: &a x\nhttp: *a\n---\n"))
	f.Add([]byte("? {a: b}\n: c"))
	f.Add([]byte("<<: [*x]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, err := parseSettings(data)
		if err != nil && len(entries) > 0 {
			t.Error("a file that is refused has settings")
		}
		for name, e := range entries {
			if !slices.Contains(settingNames(), name) || e.line < 1 {
				t.Errorf("%q on line %d", name, e.line)
			}
		}
	})
}
