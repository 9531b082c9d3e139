package millrace

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"
)

// The canonical encodings below are what the hash chain is computed over, so they are the same on every backend and
// never change: a new form gets a new leading version byte. Integers are unsigned varints unless a width is named,
// strings and byte strings are led by their length, times are nanoseconds since 1970 in eight little-endian bytes.
// docs/reference/journal-format.md describes them for people.

const (
	commandEncoding  = 1
	decisionEncoding = 1
)

// castagnoli is the CRC32C table: the polynomial that processors compute in hardware.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errShort = errors.New("encoding ends early")

func appendString(dst []byte, s string) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(s)))
	return append(dst, s...)
}

func appendBytes(dst, b []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(b)))
	return append(dst, b...)
}

func appendTime(dst []byte, t time.Time) []byte {
	return binary.LittleEndian.AppendUint64(dst, uint64(t.UnixNano()))
}

// reader takes fields off the front of a buffer; after the first fault it yields zeros and keeps the error.
type reader struct {
	buf []byte
	err error
}

func (r *reader) fail() { r.buf, r.err = nil, errShort }

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.buf)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.buf = r.buf[n:]
	return v
}

func (r *reader) take(n uint64) []byte {
	if n > uint64(len(r.buf)) {
		r.fail()
		return nil
	}
	b := r.buf[:n:n]
	r.buf = r.buf[n:]
	return b
}

func (r *reader) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) bytes() []byte  { return r.take(r.uvarint()) }
func (r *reader) string() string { return string(r.bytes()) }

func (r *reader) time() time.Time {
	b := r.take(8)
	if b == nil {
		return time.Time{}
	}
	return time.Unix(0, int64(binary.LittleEndian.Uint64(b))).UTC() //nolint:gosec // see appendTime
}

// AppendCommand appends the canonical encoding of a command to dst.
func AppendCommand(dst []byte, c *Command) []byte {
	dst = append(dst, commandEncoding)
	dst = appendString(dst, c.ID)
	dst = appendString(dst, string(c.Stream))
	dst = appendString(dst, c.Type)
	dst = appendTime(dst, c.Time)
	if c.Expected != nil {
		dst = append(dst, 1)
		dst = binary.AppendUvarint(dst, *c.Expected)
	} else {
		dst = append(dst, 0)
	}
	dst = appendString(dst, c.CorrelationID)
	dst = appendString(dst, c.CausationID)
	dst = appendString(dst, c.Source)
	return appendBytes(dst, c.Data)
}

// DecodeCommand reads what AppendCommand wrote. The command's Data shares memory with buf.
func DecodeCommand(buf []byte) (Command, error) {
	r := reader{buf: buf}
	if v := r.byte(); r.err == nil && v != commandEncoding {
		return Command{}, fmt.Errorf("%w: command encoding %d is not known", ErrCorrupt, v)
	}
	c := Command{ID: r.string(), Stream: Stream(r.string()), Type: r.string(), Time: r.time()}
	switch r.byte() {
	case 0:
	case 1:
		v := r.uvarint()
		c.Expected = &v
	default:
		r.fail()
	}
	c.CorrelationID, c.CausationID, c.Source = r.string(), r.string(), r.string()
	c.Data = r.bytes()
	if r.err != nil || len(r.buf) != 0 {
		return Command{}, fmt.Errorf("%w: command record", ErrCorrupt)
	}
	return c, nil
}

// ChainHash is one link of a partition's hash chain.
type ChainHash [sha256.Size]byte

// Decision is what became of one command, with everything that goes into the log for it.
type Decision struct {
	Command *Command
	// Fresh: the command was not kept by an acceptance of its own; the decision's commit keeps both.
	Fresh bool
	// Known is set by a [Shared] backend before it calls done: the store had the command already, and not from an earlier attempt.
	Known       bool
	Fingerprint Fingerprint
	Status      Status
	Position    uint64 // the partition's head before the decision; its events follow. Set by the Store.
	Version     uint64 // the stream's version before the decision
	Time        time.Time
	Events      []NewEvent
	Refusal     *Refusal
	Failure     *Failure

	Chain   ChainHash // the partition's chain after the decision. Set by the Store.
	Encoded []byte    // the canonical encoding. Set by the Store.
}

// Head is the partition's head behind the decision.
func (d *Decision) Head() Head {
	return Head{Position: d.Position + uint64(len(d.Events)), Chain: d.Chain}
}

// Outcome is the decision seen from its command.
func (d *Decision) Outcome(partition int) Outcome {
	n := uint64(len(d.Events))
	return Outcome{
		CommandID: d.Command.ID, Stream: d.Command.Stream, Partition: partition, Fingerprint: d.Fingerprint,
		Status: d.Status, Position: d.Position + n, Version: d.Version + n, Events: len(d.Events),
		Time: d.Time, Refusal: d.Refusal, Failure: d.Failure,
	}
}

// Recorded are the decision's events as they stand in the log.
func (d *Decision) Recorded(partition int) []Recorded {
	if len(d.Events) == 0 {
		return nil
	}
	out := make([]Recorded, len(d.Events))
	for i := range d.Events {
		e := &d.Events[i]
		out[i] = Recorded{
			Partition: partition, Position: d.Position + uint64(i) + 1, Stream: d.Command.Stream, Version: d.Version + uint64(i) + 1,
			Type: e.Type, Data: e.Data, Time: d.Time, Body: e.Body,
			CommandID: d.Command.ID, CorrelationID: d.Command.CorrelationID, CausationID: d.Command.ID,
		}
	}
	return out
}

// AppendDecision appends the canonical encoding of a decision to dst.
func AppendDecision(dst []byte, d *Decision) []byte {
	dst = append(dst, decisionEncoding)
	dst = appendString(dst, d.Command.ID)
	dst = append(dst, d.Fingerprint[:]...)
	dst = appendString(dst, string(d.Command.Stream))
	dst = appendString(dst, d.Command.CorrelationID)
	dst = append(dst, byte(d.Status))
	dst = binary.AppendUvarint(dst, d.Position)
	dst = binary.AppendUvarint(dst, d.Version)
	dst = appendTime(dst, d.Time)
	dst = binary.AppendUvarint(dst, uint64(len(d.Events)))
	for i := range d.Events {
		dst = appendString(dst, d.Events[i].Type)
		dst = appendBytes(dst, d.Events[i].Data)
	}
	switch d.Status {
	case StatusRefused:
		dst = append(dst, byte(d.Refusal.Kind))
		dst = appendString(dst, d.Refusal.Code)
		dst = appendString(dst, d.Refusal.Detail)
		dst = binary.AppendUvarint(dst, uint64(len(d.Refusal.Errors)))
		for _, e := range d.Refusal.Errors {
			dst = appendString(dst, e.Pointer)
			dst = appendString(dst, e.Detail)
		}
	case StatusDead:
		dst = appendString(dst, d.Failure.Reason)
		dst = appendString(dst, d.Failure.Error)
		dst = binary.AppendUvarint(dst, uint64(d.Failure.Attempts)) //nolint:gosec // a count
	}
	return dst
}

// DecodeDecision reads what AppendDecision wrote; Command holds only the id, stream and correlation id. Data of
// the events shares memory with buf. Chain is not part of the encoding.
func DecodeDecision(buf []byte) (Decision, error) {
	bad := fmt.Errorf("%w: decision record", ErrCorrupt)
	r := reader{buf: buf}
	if v := r.byte(); r.err == nil && v != decisionEncoding {
		return Decision{}, fmt.Errorf("%w: decision encoding %d is not known", ErrCorrupt, v)
	}
	d := Decision{Command: &Command{ID: r.string()}, Encoded: buf}
	copy(d.Fingerprint[:], r.take(sha256.Size))
	d.Command.Stream, d.Command.CorrelationID = Stream(r.string()), r.string()
	d.Status = Status(r.byte())
	d.Position, d.Version, d.Time = r.uvarint(), r.uvarint(), r.time()
	n := r.uvarint()
	if r.err != nil || n > uint64(len(r.buf)) { // an event takes two bytes at least
		return Decision{}, bad
	}
	if n > 0 {
		d.Events = make([]NewEvent, n)
		for i := range d.Events {
			d.Events[i] = NewEvent{Type: r.string(), Data: r.bytes()}
		}
	}
	switch d.Status {
	case StatusDecided:
	case StatusRefused:
		d.Refusal = &Refusal{Kind: RefusalKind(r.byte()), Code: r.string(), Detail: r.string()}
		n := r.uvarint()
		if r.err != nil || n > uint64(len(r.buf)) {
			return Decision{}, bad
		}
		for range n {
			d.Refusal.Errors = append(d.Refusal.Errors, FieldError{Pointer: r.string(), Detail: r.string()})
		}
	case StatusDead:
		d.Failure = &Failure{Reason: r.string(), Error: r.string(), Attempts: int(r.uvarint())} //nolint:gosec // a count
	default:
		return Decision{}, bad
	}
	if r.err != nil || len(r.buf) != 0 {
		return Decision{}, bad
	}
	return d, nil
}

// NextChain is the chain's rule: SHA-256 over the link before and the canonical encoding of the decision.
func NextChain(prev ChainHash, encoded []byte) ChainHash {
	// One call over both is cheaper than a streaming hash, and the copy stays on the stack where it is small.
	var small [2048]byte
	return sha256.Sum256(append(append(small[:0], prev[:]...), encoded...))
}

// Batch is one commit of one partition: acceptances without a decision, and decisions. Everything in it becomes
// durable together or not at all.
type Batch struct {
	Partition int
	Epoch     uint64 // the owner's fencing token; the write fails with ErrFenced where it is not the newest
	Accepted  []AcceptedCommand
	Decisions []Decision
	Prev      ChainHash // the partition's chain before the first decision. Set by the Store.
	// InOrder has a [Shared] backend refuse the batch, by ErrConflict, where it has fresh decisions and the partition has
	// undecided commands that neither the batch decides nor Held names: another node has kept them, and they may come
	// before the fresh ones in their streams. Other backends need not look, since nobody else keeps commands there.
	InOrder bool
	Held    []string // ids of undecided commands that the owner has in its hands
}

// AcceptedCommand is a command that is kept before it is decided.
type AcceptedCommand struct {
	Command     *Command
	Fingerprint Fingerprint
	Known       bool // see [Decision]
}

// Head is how far a partition's log has come.
type Head struct {
	Position uint64
	Chain    ChainHash
}
