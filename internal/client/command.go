package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// The statuses of a command.
const (
	StatusAccepted = "accepted"
	StatusDecided  = "decided"
	StatusRefused  = "refused"
	StatusDead     = "dead"
)

const (
	// maxLineAnswer bounds one line of an answer of NDJSON in bytes: a receipt, or a problem that names many faults.
	maxLineAnswer = 4 << 20
	// pollFirst and pollMost bound the time between two looks at a command that is not decided yet.
	pollFirst = 20 * time.Millisecond
	pollMost  = 2 * time.Second
)

// CommandState is what the server knows of a command.
type CommandState struct {
	ID      string
	Status  string
	Stream  string
	Version uint64
	Events  int
	Cursor  string // what a read must have seen to see the outcome
	// Replayed: the command was known before this request. Only answers to a request say so.
	Replayed bool
	// AcceptedAt is when it was accepted, and AnsweredAt the server's clock when it said so; zero where it does not say. Only
	// a look at the command tells.
	AcceptedAt, AnsweredAt time.Time
	// Refusal of a refused command, Failure of a dead one: code and detail.
	Code, Detail string
	Errors       []FieldError
}

// Done says whether the command has its outcome.
func (s *CommandState) Done() bool { return s.Status != StatusAccepted && s.Status != "" }

func commandState(m Object) CommandState {
	s := CommandState{ID: m.Text("command_id"), Status: m.Text("status"), Stream: m.Text("stream"), Cursor: m.Text("cursor")}
	m.Into("version", &s.Version)
	m.Into("events", &s.Events)
	m.Into("replayed", &s.Replayed)
	m.Into("accepted_at", &s.AcceptedAt)
	if r := m.Object("refusal"); r != nil {
		s.Code, s.Detail = r.Text("code"), r.Text("detail")
		for _, e := range r.List("errors") {
			s.Errors = append(s.Errors, FieldError{Pointer: e.Text("pointer"), Detail: e.Text("detail")})
		}
	}
	if f := m.Object("failure"); f != nil {
		s.Code, s.Detail = f.Text("reason"), f.Text("error")
	}
	return s
}

// Command reads what became of a command. One that is not known is (zero, false, nil).
func (c *Client) Command(ctx context.Context, id string) (CommandState, bool, error) {
	res, err := c.Get(ctx, "/v1/commands/"+url.PathEscape(id))
	if err != nil {
		return CommandState{}, false, err
	}
	if res.Status == http.StatusNotFound {
		return CommandState{}, false, nil
	}
	if err := res.Err(); err != nil {
		return CommandState{}, false, err
	}
	m, err := Members(res.Body)
	if err != nil {
		return CommandState{}, false, fmt.Errorf("read the state of a command: %w", err)
	}
	s := commandState(m)
	if now, err := http.ParseTime(res.Header.Get("Date")); err == nil {
		s.AnsweredAt = now
	}
	return s, true, nil
}

// ErrUndecided: a command is kept, but was not decided in time.
var ErrUndecided = errors.New("the command is kept, but not decided yet")

// Settle asks for a command until it has its outcome; after limit it returns [ErrUndecided].
func (c *Client) Settle(ctx context.Context, id string, limit time.Duration) (CommandState, error) {
	deadline, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for wait := pollFirst; ; wait = min(2*wait, pollMost) {
		s, ok, err := c.Command(deadline, id)
		switch {
		case err == nil && !ok:
			return s, errors.New("the server does not know a command that it has accepted")
		case err == nil && s.Done():
			return s, nil
		case err == nil:
			err = Pause(deadline, wait)
		}
		switch {
		case ctx.Err() != nil:
			return s, ctx.Err()
		case deadline.Err() != nil:
			return s, WithCode(ExitUnavailable, ErrUndecided)
		case err != nil:
			return s, err
		}
	}
}

// LineResult answers one line of [Client.Commands].
type LineResult struct {
	CommandState
	// Problem: nothing was kept of the line. A refusal or a dead letter is a state, not a problem.
	Problem *Problem
	// Doubt: as of a [Response].
	Doubt bool
}

// Commands sends commands as NDJSON, one line each, and returns an answer for each line in their order. Where the
// connection breaks or the server is too busy for some, those that have no answer yet are sent again; they carry ids, so
// that none counts twice. Errors as for Post.
func (c *Client) Commands(ctx context.Context, lines [][]byte, wait time.Duration) ([]LineResult, error) {
	out := make([]LineResult, len(lines))
	open := make([]int, len(lines)) // the lines without an answer
	for i := range open {
		open[i] = i
	}
	t := c.fleet.turn(c.retryFor)
	doubt := make([]bool, len(lines))
	var last error
	for len(open) > 0 {
		s, ok := t.pick(time.Now())
		if !ok {
			delay, ok := t.pause()
			if !ok {
				return out, t.unavailable(last)
			}
			if err := Pause(ctx, delay); err != nil {
				return out, err
			}
			continue
		}
		sent := &batch{lines: lines, open: open, out: out, doubt: doubt, wait: wait}
		left, again, err := c.lines(ctx, s, sent)
		t.settle(s, again, err)
		if err != nil {
			return out, err
		}
		if len(left) < len(open) {
			t.goesOn()
		}
		if open = left; again != nil {
			last = again.cause
		}
	}
	return out, nil
}

// batch is lines that are sent in one request, and where their answers go.
type batch struct {
	lines [][]byte
	open  []int // the lines without an answer
	out   []LineResult
	doubt []bool // an attempt at this line had no answer
	wait  time.Duration
}

// unclear: there was no answer to some lines, which may have been kept.
func (b *batch) unclear(lines []int) {
	for _, i := range lines {
		b.doubt[i] = true
	}
}

// lines sends the open lines once and returns those that are still open, with the reason.
func (c *Client) lines(ctx context.Context, s *slot, b *batch) ([]int, *retry, error) {
	wait, all := c.fleet.limits(s, b.wait)
	limit, cancel := context.WithTimeout(ctx, all)
	defer cancel()
	body := make([]byte, 0, 256*len(b.open))
	for _, i := range b.open {
		body = append(append(body, b.lines[i]...), '\n')
	}
	req, err := c.request(limit, s.url, &call{
		method: http.MethodPost, path: "/v1/commands", contentType: "application/x-ndjson", body: body,
	}, wait)
	if err != nil {
		return b.open, nil, err
	}
	res, connections, err := c.do(req)
	if err != nil {
		next := &retry{cause: bare(err), noReply: true, mayBeKept: connections > 0 || !neverSent(err)}
		if next.mayBeKept {
			b.unclear(b.open)
		}
		return b.open, next, final(ctx, err)
	}
	defer res.Body.Close() //nolint:errcheck // it was read
	if connections > 1 {
		b.unclear(b.open)
	}
	if res.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(res.Body, maxLineAnswer))
		r := &Response{Status: res.StatusCode, Header: res.Header, Problem: parseProblem(res.StatusCode, text)}
		next := again(r)
		if next == nil {
			return b.open, nil, r.Err()
		}
		if next.mayBeKept {
			b.unclear(b.open)
		}
		return b.open, next, nil
	}
	return b.read(ctx, res.Body)
}

// read takes the answers as they come. A line whose problem may pass stays open, like those behind the end of an answer
// that breaks off.
func (b *batch) read(ctx context.Context, body io.Reader) ([]int, *retry, error) {
	in := newLineReader(body)
	var left []int
	var why *retry
	for k, i := range b.open {
		text, err := in.next()
		if err != nil {
			b.unclear(b.open[k:])
			if e := final(ctx, err); e != nil {
				return b.open, nil, e
			}
			broken := &retry{cause: fmt.Errorf("the answer breaks off: %w", err), noReply: true, mayBeKept: true}
			if why != nil {
				broken.after = why.after
			}
			return append(left, b.open[k:]...), broken, nil
		}
		m, err := Members(text)
		if err != nil {
			return b.open, nil, fmt.Errorf("read the answer to a line: %w", err)
		}
		b.out[i] = LineResult{CommandState: commandState(m), Doubt: b.doubt[i]}
		raw, ok := m["problem"]
		if !ok {
			continue
		}
		p := parseProblem(0, raw)
		var status int
		if problem, err := Members(raw); err == nil && problem.Into("status", &status) {
			p.Status = status
		}
		b.out[i].Problem = p
		switch p.Status {
		case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusServiceUnavailable:
			seconds := 1
			m.Into("retry_after", &seconds)
			left, why = append(left, i), &retry{cause: p, after: time.Duration(min(max(seconds, 1), 3600)) * time.Second}
			b.doubt[i] = b.doubt[i] || mayBeKept(p)
		}
	}
	return left, why, nil
}

// lineReader cuts an answer into lines of a bounded length.
type lineReader struct {
	in  io.Reader
	buf []byte
	eof error
}

func newLineReader(r io.Reader) *lineReader { return &lineReader{in: r} }

// next returns the next complete line; what stands behind the last line end is not one: the answer broke off in it.
func (l *lineReader) next() ([]byte, error) {
	for {
		if i := bytes.IndexByte(l.buf, '\n'); i >= 0 {
			line := l.buf[:i]
			l.buf = l.buf[i+1:]
			if len(bytes.TrimSpace(line)) == 0 {
				continue
			}
			return line, nil
		}
		if l.eof != nil {
			return nil, l.eof
		}
		if len(l.buf) > maxLineAnswer {
			return nil, errors.New("a line of the answer is too long")
		}
		part := make([]byte, 32<<10)
		n, err := l.in.Read(part)
		l.buf = append(l.buf, part[:n]...)
		if l.eof = err; errors.Is(err, io.EOF) {
			l.eof = io.ErrUnexpectedEOF
		}
	}
}
