package httpapi

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/internal/id"
)

// lineBuffer is what is read ahead of an NDJSON request: some hundred commands of the usual size, so that a sync is
// shared among that many.
const lineBuffer = 256 << 10

// lines is one NDJSON request: lines are read as they come, gathered into batches as long as they are there without
// waiting, and answered in order. A client that waits for each answer before it sends the next line is answered at once;
// a client that only sends is read at the pace of the disk. Clients must read while they send, or both sides stop until
// the time for a line is up.
type lines struct {
	x  *exchange
	rc *http.ResponseController
	in *bufio.Reader
	no int64 // of the line read last, from 1

	batch []lineItem
	bytes int
	long  []byte // a line that is longer than the reader's buffer
}

// lineItem is one line that is to be answered.
type lineItem struct {
	no      int64
	command millrace.Command
	problem *problem
	result  millrace.Accepted
}

var (
	errLineTooLong = errors.New("line is too long")
	errDraining    = errors.New("the server is to stop")
)

// postLines answers an NDJSON request. The status is 200 whatever the lines hold: it is sent before they are read.
func (x *exchange) postLines() {
	if x.cmd.ID != "" || x.cmd.Expected != nil {
		x.fail(kindInvalidHeader.with("each line names its own id and expected_version; the headers for them are for one command"))
		return
	}
	l := &lines{x: x, rc: http.NewResponseController(x.w), in: bufio.NewReaderSize(x.r.Body, lineBuffer)}
	// Not every ResponseWriter of a test knows these; a connection of net/http does.
	_ = l.rc.EnableFullDuplex()
	stop := context.AfterFunc(x.api.drain, func() { _ = l.rc.SetReadDeadline(time.Now()) })
	defer stop()

	h := x.answered(false)
	h["Content-Type"] = x.api.fixed.ndjson
	x.WriteHeader(http.StatusOK)
	for {
		err := l.gather()
		if !l.answer(err) || err != nil {
			return
		}
	}
}

// gather reads a batch: it waits for the first line, and takes what follows without waiting.
func (l *lines) gather() error {
	l.batch, l.bytes = nil, 0 // commands outlive the batch: the slice is not used again
	for len(l.batch) < MaxBatchLines && l.bytes < MaxBatchBytes {
		if len(l.batch) > 0 && !l.ready() {
			return nil
		}
		line, err := l.next()
		if errors.Is(err, errLineTooLong) {
			l.batch = append(l.batch, lineItem{no: l.no, problem: kindTooLarge.with("the line is too long")})
			continue
		}
		if len(bytes.TrimSpace(line)) > 0 && (err == nil || errors.Is(err, io.EOF)) {
			l.take(line)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// ready says whether a whole line is in the buffer.
func (l *lines) ready() bool {
	buffered, _ := l.in.Peek(l.in.Buffered())
	return bytes.IndexByte(buffered, '\n') >= 0
}

// next reads a line. It is valid until the next call. A line that is too long is passed over to its end, without keeping
// it. At the end of the input, what is behind the last newline comes with io.EOF.
func (l *lines) next() ([]byte, error) {
	l.no++
	l.long = l.long[:0]
	tooLong := false
	for {
		if err := l.patience(); err != nil {
			return nil, err
		}
		part, err := l.in.ReadSlice('\n')
		full := errors.Is(err, bufio.ErrBufferFull)
		if !full && len(l.long) == 0 && !tooLong {
			return part, err
		}
		if len(l.long)+len(part) > MaxLine {
			tooLong, l.long = true, l.long[:0]
		}
		if !tooLong {
			l.long = append(l.long, part...)
		}
		switch {
		case full:
		case err != nil && !errors.Is(err, io.EOF):
			return nil, err
		case tooLong:
			return nil, errLineTooLong // an end of the input is met again by the next call
		default:
			return l.long, err
		}
	}
}

// patience gives the client time for what it sends next, if it has not been sent already.
func (l *lines) patience() error {
	if l.in.Buffered() > 0 {
		return nil
	}
	_ = l.rc.SetReadDeadline(time.Now().Add(lineIdle))
	// In this order: a drain that begins in between finds the deadline set and moves it.
	if l.x.api.drain.Err() != nil {
		return errDraining
	}
	return nil
}

// take adds a line to the batch.
func (l *lines) take(line []byte) {
	l.batch = append(l.batch, lineItem{no: l.no})
	item := &l.batch[len(l.batch)-1]
	l.bytes += len(line)
	if item.problem = l.x.api.openEnvelope(&item.command, line); item.problem == nil && item.command.ID == "" {
		item.command.ID = id.New()
	}
}

// answer accepts the batch and answers its lines, in order. err is why no further line follows, or nil. It says whether
// the client still takes answers.
func (l *lines) answer(err error) bool {
	x := l.x
	l.accept()
	dst := x.buf[:0]
	var ctx context.Context
	if x.prefs.wait > 0 && len(l.batch) > 0 {
		var done func()
		if ctx, done = x.await(x.prefs.wait); done != nil {
			defer done()
		}
	}
	for i := range l.batch {
		dst = l.appendAnswer(dst, ctx, &l.batch[i])
	}
	if err != nil && !errors.Is(err, io.EOF) {
		if x.api.drain.Err() != nil {
			err = errDraining // which is what ended the wait for the line
		}
		dst = l.appendProblem(dst, l.no, problemOfRead(err))
	}
	x.buf = dst
	if len(dst) == 0 {
		return true
	}
	_ = l.rc.SetWriteDeadline(time.Now().Add(lineIdle))
	if _, werr := x.Write(dst); werr != nil {
		return false
	}
	if !l.ready() {
		return l.rc.Flush() == nil
	}
	return true
}

func problemOfRead(err error) *problem {
	if errors.Is(err, errDraining) {
		return kindUnavailable.with("the server is shutting down; lines from this one on were not read")
	}
	p := bodyProblem(err)
	if p.kind == kindInvalidBody {
		p.detail = "the input broke off within this line"
	}
	return p
}

// accept hands the good lines to the intake together.
func (l *lines) accept() {
	cs := make([]millrace.Command, 0, len(l.batch))
	for i := range l.batch {
		if l.batch[i].problem == nil {
			cs = append(cs, l.batch[i].command)
		}
	}
	if len(cs) == 0 {
		return
	}
	a, ctx := l.x.api, l.x.r.Context()
	results := a.intake.AcceptAll(ctx, cs)
	n := 0
	for i := range l.batch {
		item := &l.batch[i]
		if item.problem != nil {
			continue
		}
		item.result = results[n]
		n++
		if errors.Is(item.result.Err, millrace.ErrKeyReused) && a.adoptFirst(ctx, &item.command) {
			item.result.Receipt, item.result.Err = a.intake.Accept(ctx, item.command)
		}
	}
}

// appendAnswer appends the answer to one line. ctx ends the wait for outcomes; nil: there is no wait.
func (l *lines) appendAnswer(dst []byte, ctx context.Context, item *lineItem) []byte { //nolint:revive // dst leads, as everywhere
	p := item.problem
	if p == nil && item.result.Err != nil {
		p = l.x.api.problemOf(item.result.Err)
		if p.status == http.StatusInternalServerError {
			l.x.api.log.Error("line failed", "request_id", l.x.requestID, "line", item.no, "error", item.result.Err)
		}
	}
	if p != nil {
		return l.appendProblem(dst, item.no, p)
	}
	r := item.result.Receipt
	o := millrace.Outcome{CommandID: r.CommandID, Stream: r.Stream, Status: millrace.StatusAccepted}
	if ctx != nil {
		if settled, err := r.Wait(ctx); err == nil {
			o = settled
		}
	}
	dst = appendLineNo(dst, item.no)
	start := len(dst)
	dst = appendOutcome(dst, l.x.api.store, &o)
	dst[start] = ',' // the line's number opened the object
	if r.Replayed {
		dst = append(dst[:len(dst)-1], `,"replayed":true}`...)
	}
	return append(dst, '\n')
}

func appendLineNo(dst []byte, no int64) []byte {
	return strconv.AppendInt(append(dst, `{"line":`...), no, 10)
}

func (l *lines) appendProblem(dst []byte, no int64, p *problem) []byte {
	dst = appendLineNo(dst, no)
	if p.temporary() {
		dst = append(dst, `,"retry_after":`...)
		dst = strconv.AppendInt(dst, int64(p.retrySeconds()), 10)
	}
	dst = append(dst, `,"problem":`...)
	dst = p.appendJSON(dst, l.x.requestID, l.x.trace())
	return append(dst, "}\n"...)
}
