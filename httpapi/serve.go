package httpapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// The timeouts of a connection. Long waits and streams move their own deadlines.
const (
	// ReadHeaderTimeout: a client that sends its headers a byte at a time is cut off.
	ReadHeaderTimeout = 5 * time.Second
	// ReadTimeout is for a request as a whole: 1 MiB at 70 KB/s.
	ReadTimeout = 15 * time.Second
	// WriteTimeout is for the answer, from the end of the request's headers.
	WriteTimeout = 30 * time.Second
	// IdleTimeout is how long a connection may wait for its next request.
	IdleTimeout = 60 * time.Second
	// DefaultDrain is how long requests under way have to finish when the server stops.
	DefaultDrain = 20 * time.Second
	// DefaultConnections bounds the open connections of a listener; each takes some 10 KB, and a file descriptor.
	DefaultConnections = 16_384
)

// ServeOptions are for [Serve].
type ServeOptions struct {
	// Drain is how long requests under way have to finish. Defaults to DefaultDrain.
	Drain time.Duration
	// OnDrain is called when ctx ends, before the listener is closed: [API.Drain], [Admin.Drain]. Defaults to nothing.
	OnDrain func()
	// Connections is how many may be open; more wait until one is closed. Defaults to DefaultConnections.
	Connections int
	// WriteTimeout replaces the constant, for the admin listener, whose profiles take longer. Defaults to WriteTimeout.
	WriteTimeout time.Duration
	// Logger gets what net/http has to say of broken connections, at debug level. Defaults to discarding.
	Logger *slog.Logger
}

// Serve serves h on ln until ctx ends. Then it takes no new connections, lets the requests under way finish, and
// returns nil; after Drain it closes what is left and returns an error. It closes ln.
func Serve(ctx context.Context, ln net.Listener, h http.Handler, o *ServeOptions) error {
	if o == nil {
		o = &ServeOptions{}
	}
	drain, connections, write, log := o.Drain, o.Connections, o.WriteTimeout, o.Logger
	if drain == 0 {
		drain = DefaultDrain
	}
	if connections == 0 {
		connections = DefaultConnections
	}
	if write == 0 {
		write = WriteTimeout
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: ReadHeaderTimeout, ReadTimeout: ReadTimeout, WriteTimeout: write, IdleTimeout: IdleTimeout,
		MaxHeaderBytes: MaxHeaderBytes, DisableGeneralOptionsHandler: true,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() {
		served <- s.Serve(&limitListener{Listener: ln, places: make(chan struct{}, connections), closed: make(chan struct{})})
	}()
	select {
	case err := <-served:
		return fmt.Errorf("serve %s: %w", ln.Addr(), err)
	case <-ctx.Done():
	}
	if o.OnDrain != nil {
		o.OnDrain()
	}
	// ctx is over: what follows has its own time.
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	err := s.Shutdown(limit)
	if err != nil {
		err = errors.Join(fmt.Errorf("stop serving %s: requests under way did not finish: %w", ln.Addr(), err), s.Close())
	}
	if end := <-served; !errors.Is(end, http.ErrServerClosed) {
		err = errors.Join(err, end)
	}
	return err
}

// limitListener takes a connection only when there is a place for it, and so leaves the others to the kernel's queue.
type limitListener struct {
	net.Listener
	places chan struct{}
	closed chan struct{}
	once   sync.Once
}

func (l *limitListener) Accept() (net.Conn, error) {
	select {
	case l.places <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.places
		return nil, err
	}
	return &limitConn{Conn: c, places: l.places}, nil
}

func (l *limitListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// limitConn gives its place back when it is closed, however often that is.
type limitConn struct {
	net.Conn
	places chan struct{}
	once   sync.Once
}

func (c *limitConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { <-c.places })
	return err
}
