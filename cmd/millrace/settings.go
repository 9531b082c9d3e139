package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	yaml "go.yaml.in/yaml/v3"

	"github.com/millrace-io/millrace/internal/client"
)

const (
	// environmentPrefix leads the variable of a setting: --log-level is MILLRACE_LOG_LEVEL.
	environmentPrefix = "MILLRACE_"
	// configFlag names the file of settings. It is itself a setting, but not one of the file's.
	configFlag = "config"
	// maxConfig bounds the file in bytes: it has a line for each setting, and a wrong file is often a large one.
	maxConfig = 64 << 10
	// originKey is the annotation of a flag that says where its value came from.
	originKey = "millrace_origin"
	// ownKey is the annotation of a flag that has the name of a setting and is none.
	ownKey = "millrace_own"
)

// settingNames are the flags that can also be given by the environment and by a file: all of serve, and those that
// several commands share. What belongs to one run, such as the seed of a simulation, is said with that run.
func settingNames() []string {
	return []string{
		"admin", "backorder-for", "backorder-retry", "data", "demo", "direct", "fulfil-until", "hold-read-models", "http", "insecure",
		"log-format", "log-level", "max-backlog", "node", "notify", "notify-webhook", "output", "partitions", "paused", "payment-timeout",
		"payments", "quiet", "reservation-expiry", "retry-for", "roles", "server", "smtp-url", "store",
	}
}

// ownFlags says that flags of a command belong to one run, though settings have their names: what is meant for the server is not
// meant for this command, which may run beside it.
func ownFlags(c *cobra.Command, names ...string) {
	for _, name := range names {
		c.Flags().Lookup(name).Annotations = map[string][]string{ownKey: {c.Name()}}
	}
}

// settingsHelp is for the help of the commands whose flags are settings.
const settingsHelp = `Every flag can also be set by the environment, as MILLRACE_ and its name in capitals (MILLRACE_LOG_LEVEL), or by a YAML
file (log-level: debug). A flag counts before the environment, the environment before the file, the file before the
default. The file is the one that --config or MILLRACE_CONFIG names, else the first of
$XDG_CONFIG_HOME/millrace/config.yaml and /etc/millrace/config.yaml that exists.`

func variable(flag string) string {
	return environmentPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// settingError is a value of a setting that will not do. Its text begins with where the value came from, so that nobody
// looks for the fault of a file in a command line.
type settingError struct {
	flag string
	from string // empty where it is the flag, or nobody set it
	err  error
}

func badSetting(flag, format string, args ...any) error {
	return client.WithCode(client.ExitUsage, &settingError{flag: flag, err: fmt.Errorf(format, args...)})
}

// serverFlag names the servers that a command asks. Where they are several, they share a store, and any of them will do.
func serverFlag(c *cobra.Command, servers *[]string) {
	c.Flags().StringSliceVar(servers, "server", []string{client.DefaultServer},
		"base `URL` of the server; may be given several times, or as a list with commas, for servers that share a store")
}

// newClient is a client of the servers that a setting names.
func newClient(servers []string, o *client.Options) (*client.Client, error) {
	c, err := client.New(servers, o)
	if err != nil {
		return nil, badSetting("server", "%w", err)
	}
	return c, nil
}

func (e *settingError) Error() string {
	from := e.from
	if from == "" {
		from = "--" + e.flag
	}
	return from + ": " + e.err.Error()
}

func (e *settingError) Unwrap() error { return e.err }

// explain tells a fault of a setting where its value came from.
func explain(c *cobra.Command, err error) error {
	var bad *settingError
	if c == nil || !errors.As(err, &bad) || bad.from != "" {
		return err
	}
	bad.from = origin(c, bad.flag)
	return err
}

// origin is where a setting's value came from; empty for its flag and its default.
func origin(c *cobra.Command, flag string) string {
	if f := c.Flags().Lookup(flag); f != nil && len(f.Annotations[originKey]) > 0 {
		return f.Annotations[originKey][0]
	}
	return ""
}

// readSettings gives the settings of a command, where its flags are silent, the values of the environment, and else those
// of the file.
func readSettings(c *cobra.Command) error {
	if !slices.ContainsFunc(settingNames(), func(name string) bool { return c.Flags().Lookup(name) != nil }) {
		return nil // nothing to set: a broken file is no reason not to help
	}
	file, err := openSettings(c)
	if err != nil {
		return client.WithCode(client.ExitUsage, err)
	}
	for _, name := range settingNames() {
		f := c.Flags().Lookup(name)
		if f == nil || f.Changed || f.Annotations[ownKey] != nil {
			continue
		}
		from, values := variable(name), []string{os.Getenv(variable(name))}
		if values[0] == "" { // so that a variable can be taken back where it cannot be removed
			entry, ok := file.entries[name]
			if !ok {
				continue
			}
			from, values = fmt.Sprintf("%s:%d: %s", file.name, entry.line, name), entry.values
		}
		f.Annotations = map[string][]string{originKey: {from}}
		if err := set(f.Value, values); err != nil {
			return client.WithCode(client.ExitUsage, &settingError{flag: name, from: from, err: err})
		}
		f.Changed = true
	}
	return nil
}

// set parses a value as the flag would. What it says of a fault does not repeat the value, which may be a line that was
// meant for something else, and secret.
func set(v interface {
	Set(text string) error
	Type() string
}, values []string) error {
	if list, ok := v.(interface{ Replace(values []string) error }); ok && len(values) != 1 {
		return list.Replace(values)
	}
	if len(values) != 1 {
		return errors.New("takes one value, not a list")
	}
	if v.Set(values[0]) == nil {
		return nil
	}
	switch v.Type() {
	case "bool":
		return errors.New("must be true or false")
	case "duration":
		return errors.New("must be a duration, such as 30s")
	case "int", "int64":
		return errors.New("must be a whole number")
	}
	return fmt.Errorf("is not a value of the type %s", v.Type())
}

// settingsFile is what a file says, by the names of settings.
type settingsFile struct {
	name    string // empty for none
	entries map[string]settingsEntry
}

type settingsEntry struct {
	line   int
	values []string
}

// openSettings reads the file that is named, or the first that is there.
func openSettings(c *cobra.Command) (*settingsFile, error) {
	named, from := c.Root().PersistentFlags().Lookup(configFlag).Value.String(), "--"+configFlag
	if named == "" {
		named, from = os.Getenv(variable(configFlag)), variable(configFlag)
	}
	if named != "" {
		file, err := readSettingsFile(named)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s: there is no file %s", from, named)
		}
		return file, err
	}
	for _, name := range settingsPlaces() {
		file, err := readSettingsFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		return file, err
	}
	return &settingsFile{}, nil
}

// settingsPlaces are where a file is looked for that nobody names: the user's, then the machine's.
func settingsPlaces() []string {
	var places []string
	if dir, err := os.UserConfigDir(); err == nil {
		places = append(places, filepath.Join(dir, "millrace", "config.yaml"))
	}
	return append(places, "/etc/millrace/config.yaml")
}

func readSettingsFile(name string) (*settingsFile, error) {
	in, err := os.Open(name) //nolint:gosec // the user names it
	if err != nil {
		return nil, err
	}
	defer in.Close() //nolint:errcheck // it was only read
	data, err := io.ReadAll(io.LimitReader(in, maxConfig+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxConfig {
		return nil, fmt.Errorf("%s: is longer than %d KiB, which no file of settings is", name, maxConfig>>10)
	}
	entries, err := parseSettings(data)
	if err != nil {
		return nil, fmt.Errorf("%s:%w", name, err)
	}
	return &settingsFile{name: name, entries: entries}, nil
}

// lineError is a fault of a line of the file.
type lineError struct {
	line int
	text string
}

func (e *lineError) Error() string { return fmt.Sprintf("%d: %s", e.line, e.text) }

// parseSettings reads a mapping from settings to values and lists of values, and nothing else. It is strict: a misspelt
// name that is passed over is a server that runs otherwise than somebody believes.
func parseSettings(data []byte) (map[string]settingsEntry, error) {
	var doc yaml.Node
	decoder := yaml.NewDecoder(strings.NewReader(string(data)))
	switch err := decoder.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil, nil // empty, or comments only
	case err != nil:
		return nil, fmt.Errorf(" is no YAML: %s", strings.TrimPrefix(err.Error(), "yaml: "))
	case len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode:
		if len(doc.Content) == 1 && doc.Content[0].Tag == "!!null" {
			return nil, nil
		}
		return nil, &lineError{1, "must be a mapping of settings to values, such as log-level: debug"}
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, &lineError{doc.Content[0].Line, "there is more than one document in the file"}
	}
	entries := map[string]settingsEntry{}
	pairs := doc.Content[0].Content
	for i := 0; i+1 < len(pairs); i += 2 {
		key, value := pairs[i], pairs[i+1]
		before, twice := entries[key.Value]
		switch {
		case key.Kind != yaml.ScalarNode:
			return nil, &lineError{key.Line, "a key must be the name of a setting"}
		case !slices.Contains(settingNames(), key.Value):
			return nil, &lineError{key.Line, fmt.Sprintf("unknown setting %.60q", key.Value)}
		case twice:
			return nil, &lineError{key.Line, fmt.Sprintf("%s is set already, on line %d", key.Value, before.line)}
		}
		values, ok := settingValues(value)
		if !ok {
			return nil, &lineError{key.Line, key.Value + " must be a value or a list of values"}
		}
		entries[key.Value] = settingsEntry{line: key.Line, values: values}
	}
	return entries, nil
}

// settingValues are the texts of a value or of a list of values. Neither nothing, nor references, nor anything deeper.
func settingValues(n *yaml.Node) ([]string, bool) {
	switch {
	case n.Kind == yaml.ScalarNode && n.Tag != "!!null":
		return []string{n.Value}, true
	case n.Kind != yaml.SequenceNode:
		return nil, false
	}
	values := []string{}
	for _, item := range n.Content {
		if item.Kind != yaml.ScalarNode || item.Tag == "!!null" {
			return nil, false
		}
		values = append(values, item.Value)
	}
	return values, true
}
