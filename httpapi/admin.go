package httpapi

import (
	"context"
	"net/http"
	"net/http/pprof"
	"runtime"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"github.com/millrace-io/millrace/internal/jsonx"
)

// checkTime bounds one readiness check: whoever asks (a load balancer, the kubelet) gives up after a few seconds.
const checkTime = 2 * time.Second

// Check is something that must be well for the process to take requests.
type Check struct {
	Name string
	Run  func(context.Context) error
}

// AdminOptions are for [NewAdmin].
type AdminOptions struct {
	// Ready are the checks of /readyz. Defaults to none.
	Ready []Check
	// Notes are told of by /readyz, with ?verbose or where they fail, and count for nothing. Defaults to none.
	Notes []Check
	// Metrics answers /metrics. Defaults to no such route.
	Metrics http.Handler
}

// Admin is what operators and their tools look at, for a listener of its own that clients do not reach: probes,
// version, metrics and profiles.
type Admin struct {
	mux      *http.ServeMux
	checks   []Check
	notes    []Check
	draining atomic.Bool
}

// NewAdmin makes the admin handler.
func NewAdmin(o *AdminOptions) *Admin {
	if o == nil {
		o = &AdminOptions{}
	}
	a := &Admin{mux: http.NewServeMux(), checks: o.Ready, notes: o.Notes}
	// Alive is whoever answers: what is broken elsewhere does not get better by a restart.
	a.mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { writeText(w, http.StatusOK, "ok\n") })
	a.mux.HandleFunc("GET /readyz", a.readyz)
	a.mux.HandleFunc("GET /healthz", a.readyz)
	a.mux.HandleFunc("GET /version", version)
	if o.Metrics != nil {
		a.mux.Handle("GET /metrics", o.Metrics)
	}
	a.mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	a.mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	a.mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	a.mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	a.mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return a
}

// Drain makes /readyz answer 503, so that no new requests are sent here while the last ones finish.
func (a *Admin) Drain() { a.draining.Store(true) }

// ServeHTTP answers one request.
func (a *Admin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	a.mux.ServeHTTP(w, r)
}

// readyz runs all checks. With ?verbose it tells of each, and otherwise of those that fail.
func (a *Admin) readyz(w http.ResponseWriter, r *http.Request) {
	var text strings.Builder
	status := http.StatusOK
	verbose := r.URL.Query().Has("verbose")
	if a.draining.Load() {
		status = http.StatusServiceUnavailable
		text.WriteString("draining\n")
	}
	tell := func(c Check) (ok bool) {
		ctx, cancel := context.WithTimeout(r.Context(), checkTime)
		defer cancel()
		err := c.Run(ctx)
		switch {
		case err != nil:
			text.WriteString(c.Name + ": " + err.Error() + "\n")
		case verbose:
			text.WriteString(c.Name + ": ok\n")
		}
		return err == nil
	}
	for _, c := range a.checks {
		if !tell(c) {
			status = http.StatusServiceUnavailable
		}
	}
	for _, c := range a.notes {
		tell(c)
	}
	if status == http.StatusOK {
		text.WriteString("ok\n")
	}
	writeText(w, status, text.String())
}

func writeText(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(text)) // the client is gone: there is nobody to tell
}

// Version is what a binary knows of itself.
type Version struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Modified bool   `json:"modified,omitzero"` // built with changes that are not committed
	Time     string `json:"time,omitempty"`    // of the revision
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// ReadVersion reads it from the build information that the Go toolchain leaves in every binary.
func ReadVersion() Version {
	v := Version{Version: "unknown", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if info.Main.Version != "" {
		v.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Revision = s.Value
		case "vcs.time":
			v.Time = s.Value
		case "vcs.modified":
			v.Modified = s.Value == "true"
		}
	}
	return v
}

func version(w http.ResponseWriter, _ *http.Request) {
	body, err := jsonx.Marshal(ReadVersion())
	if err != nil {
		http.Error(w, "no version", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(body, '\n')) // as in writeText
}
