package httpapi

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/millrace-io/millrace"
)

// Config declares what the API offers. Store, Registry, Intake and Document are required.
type Config struct {
	Store    *millrace.Store
	Registry *millrace.Registry
	Intake   millrace.Intake

	Resources []Resource
	Reports   []Report
	// Projections are the read models to be seen and rebuilt over HTTP. Defaults to no such routes.
	Projections Projections
	// Consumers are seen and redriven over HTTP. Defaults to no such routes.
	Consumers Consumers
	// Control pauses, resumes and drains the consumers, and the deciding. Defaults to no such routes.
	Control Control
	// DeadLetters are seen and redriven over HTTP. Defaults to no such routes.
	DeadLetters DeadLetters
	// System are the categories whose commands only the routes that are made for them send: POST /v1/commands refuses them.
	// Defaults to none.
	System []string
	// Internal are the types of commands that only the server itself sends: POST /v1/commands refuses them. Defaults to none.
	Internal []string
	// Own gives the faults of a command's body, in its right form, that names what only the server itself makes. What clients
	// send is refused by them, whichever way it comes. Defaults to none.
	Own func(body any) []millrace.FieldError
	// Processes are the process managers whose instances are to be seen over HTTP.
	Processes []Process
	// Nodes tells which node owns which partitions. Defaults to no such route.
	Nodes Nodes
	// Unavailable are errors of the store that pass by themselves, as those of a database that restarts. They are answered
	// with 503 and not with 500. Defaults to none.
	Unavailable []error
	// Document is the OpenAPI document as YAML: it is served, and /docs is made from it.
	Document []byte

	// Observe is told of every request when it is done; it must be quick. Defaults to nothing.
	Observe func(Observation)
	// Logger gets faults of the server, and every request at debug level. Defaults to discarding.
	Logger *slog.Logger
	// Now is the clock that durations of Observe are measured by. Defaults to time.Now.
	Now func() time.Time
}

// Observation is one request, for metrics.
type Observation struct {
	Route    string // the pattern, such as "/v1/orders/{id}"; never a path, so that it can be a label
	Method   string
	Status   int
	Duration time.Duration
	Bytes    int64 // of the answer's body
	Replayed bool
}

// Resource is a category as a client sees it: a collection under /v1, each of whose members is one stream.
type Resource struct {
	Name     string // of the collection in the path: "orders"
	Category string // of the streams: "order"
	IDName   string // the name of the id in the path. Defaults to "id".

	// Create is the command of POST /v1/{name}, or "" for none.
	Create string
	// CreateID gives the id that the body of a Create names, or "". Then the id is derived from the Idempotency-Key, so
	// that the same request again finds the same stream, and is fresh where there is no key.
	CreateID func(body any) string
	// Patch is the command of PATCH /v1/{name}/{id}, or "" for none.
	Patch string
	// Verbs are the commands of POST /v1/{name}/{id}/{verb}.
	Verbs []Verb
	// Events: GET /v1/{name}/{id}/events.
	Events bool

	// Model and Table answer GET /v1/{name}/{id}: the document as it stands. Its member "version", at the top, is the
	// stream's version that it shows.
	Model millrace.ReadModel
	Table *millrace.Table
	// Represent turns a folded state into the very form that the read model's documents have. It answers ?version= and
	// ?at=, and commands whose outcome was waited for. Nil: neither, and such commands are answered with their outcome.
	Represent func(id string, version uint64, state any) any
	// List answers GET /v1/{name}. Nil for none.
	List *List
	// Calls answer GET /v1/{name}/{id}/{calls.name}.
	Calls []Calls
}

// Calls shows the calls that a process makes for the streams of a resource: GET /v1/{name}/{id}/{Name}.
type Calls struct {
	Name    string
	Process string
	// Runs says that the process runs in this store. Then a read waits for it; else what it did before is all there will be.
	Runs bool
	// Item turns a call into what is shown.
	Item func(c *millrace.InstanceCall) (any, error)
}

// Verb is a command by its name in the path.
type Verb struct{ Name, Command string }

// List says how a collection can be listed.
type List struct {
	// Filters are the query parameters that a member of the documents must equal.
	Filters []Filter
	// Orders are the ways to read the table, most specific first. The first one counts whose Sort is the one asked for
	// and whose Equal filters are all given. Filters beyond these are applied to the documents that it yields.
	Orders []Order
	// DefaultSort is an Order's Sort, led by "-" for descending.
	DefaultSort string
	// TimeKey is the key part of a time, for from and to. Defaults to [TimeKey].
	TimeKey func(time.Time) string
}

// Filter is a query parameter of a list.
type Filter struct {
	Param string // "customer_id"
	// Field is the member, at the top of a document, whose string it must equal. Defaults to Param.
	Field string
	// Values are all values there can be. Nil for any.
	Values []string
}

// Order is one declared index of a table: its keys are the Equal parts, then the part it sorts by, and maybe more.
type Order struct {
	Index int      // the number of the index
	Equal []string // the Filters that lead its keys, in the order of the parts
	Sort  string   // what it sorts by: "placed_at"
	// Times: the part behind the Equal ones is a time, and from and to apply to it.
	Times bool
}

// Report is a sum over documents: GET /v1/{name}?from&to. Each partition has documents of its own; documents with equal
// keys are one row.
type Report struct {
	Name  string
	Model millrace.ReadModel
	Table *millrace.Table
	// Index is the declared index that gives the rows and their order. Its keys start with a day or a time.
	Index int
	// TimeKey is as in List, for that first part.
	TimeKey func(time.Time) string
	// Add adds a document to the row so far, which is nil at first. It may change and return either.
	Add func(row, doc any) any
}

// Nodes tells who owns what. The wiring implements it.
type Nodes interface {
	// Ownership is how it is now.
	Ownership(ctx context.Context) (Ownership, error)
}

// Ownership says which node owns which partitions of a store, as far as the node that answers can see.
type Ownership struct {
	Answering  string `json:"answering"`  // the node that answers
	Partitions int    `json:"partitions"` // of the store
	// Items are the nodes that own something or are there, and the one that answers, in the order of their names.
	Items []NodeStatus `json:"items"`
	// Unowned are the partitions that no node owns now, in order. What they hold can be read; their commands wait.
	Unowned []int `json:"unowned"`
	// UnownedFeed are those whose events no node makes read models of and has processes react to, and UnownedNotify those of which
	// no node tells customers, where some node is there to do so.
	UnownedFeed   []int `json:"unowned_feed,omitempty"`
	UnownedNotify []int `json:"unowned_notify,omitempty"`
}

// NodeStatus is what a node owns.
type NodeStatus struct {
	Name string `json:"name"`
	// Partitions are those that it decides, in order.
	Partitions []OwnedPartition `json:"partitions"`
	// Roles are what it is there to do.
	Roles []string `json:"roles,omitempty"`
	// Feed are the partitions whose events it follows, and Notify those of which it tells customers.
	Feed   []OwnedPartition `json:"feed,omitempty"`
	Notify []OwnedPartition `json:"notify,omitempty"`
}

// OwnedPartition is a partition that a node owns.
type OwnedPartition struct {
	Partition int `json:"partition"`
	// Epoch numbers the partition's owners, and LeaseLeft is for how many milliseconds it stays with this one if it is
	// not renewed. Nil where a store has one owner for good.
	Epoch     *uint64 `json:"epoch,omitempty"`
	LeaseLeft *int64  `json:"lease_left_ms,omitempty"`
}

// TimeKey is the key part of a time, so that parts sort as their times do: RFC 3339 in UTC with nine decimals.
func TimeKey(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000000Z") }

// check says what is wrong with a configuration, at start and not at the first request.
func (c *Config) check() error {
	if c.Store == nil || c.Registry == nil || c.Intake == nil || len(c.Document) == 0 {
		return fmt.Errorf("httpapi: Store, Registry, Intake and Document are required")
	}
	for _, name := range c.Internal {
		if _, ok := c.Registry.Knows(name); !ok {
			return fmt.Errorf("httpapi: internal command %q is not known", name)
		}
	}
	for i := range c.Resources {
		if err := c.Resources[i].check(c.Registry); err != nil {
			return fmt.Errorf("httpapi: resource %q: %w", c.Resources[i].Name, err)
		}
	}
	for i := range c.Reports {
		r := &c.Reports[i]
		if !isName(r.Name) || r.Model == nil || r.Table == nil || r.Add == nil || r.Index < 0 || r.Index >= len(r.Table.Indexes) {
			return fmt.Errorf("httpapi: report %q: needs a name, a model, a table, one of its indexes and Add", r.Name)
		}
	}
	return nil
}

func (r *Resource) check(registry *millrace.Registry) error {
	if !isName(r.Name) || !isName(r.Category) {
		return fmt.Errorf("name and category must be lower-case letters, digits and hyphens")
	}
	commands := []string{r.Create, r.Patch}
	for _, v := range r.Verbs {
		if !isName(v.Name) || v.Name == "events" || v.Command == "" {
			return fmt.Errorf("verb %q has no usable name or no command", v.Name)
		}
		commands = append(commands, v.Command)
	}
	for _, c := range r.Calls {
		if !isName(c.Name) || c.Name == "events" || c.Process == "" || c.Item == nil {
			return fmt.Errorf("calls %q have no usable name, no process or no Item", c.Name)
		}
	}
	for _, name := range commands {
		if category, ok := registry.Knows(name); name != "" && (!ok || category != r.Category) {
			return fmt.Errorf("command %q is not one of category %q", name, r.Category)
		}
	}
	if (r.Model == nil) != (r.Table == nil) {
		return fmt.Errorf("model and table belong together")
	}
	if r.List == nil {
		return nil
	}
	if r.Table == nil {
		return fmt.Errorf("a list needs a table")
	}
	return r.List.check(r.Table)
}

func (l *List) check(t *millrace.Table) error {
	params := map[string]bool{}
	for _, f := range l.Filters {
		params[f.Param] = true
	}
	sorts := map[string]bool{}
	for _, o := range l.Orders {
		if o.Index < 0 || o.Index >= len(t.Indexes) {
			return fmt.Errorf("table %s has no index %d", t.Name, o.Index)
		}
		for _, e := range o.Equal {
			if !params[e] {
				return fmt.Errorf("index %s: %q is not a filter", t.Indexes[o.Index], e)
			}
		}
		if len(o.Equal) == 0 {
			sorts[o.Sort] = true
		}
	}
	for _, o := range l.Orders {
		if !sorts[o.Sort] {
			return fmt.Errorf("sort %q needs an order without filters", o.Sort)
		}
	}
	if !sorts[strings.TrimPrefix(l.DefaultSort, "-")] {
		return fmt.Errorf("default sort %q has no order without filters", l.DefaultSort)
	}
	return nil
}

// isName says whether s can stand in a path as it is.
func isName(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return s != ""
}
