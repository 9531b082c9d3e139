package pgtest

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

// maxMessage bounds an answer of the server: what is asked here is answered in a few lines.
const maxMessage = 1 << 20

// protocolVersion is 3.0, which every server speaks that is looked for.
const protocolVersion = 3 << 16

// serverError is a refusal by the server.
type serverError struct {
	code    string // SQLSTATE
	message string
}

func (e *serverError) Error() string { return e.message + " (SQLSTATE " + e.code + ")" }

// session is a connection to a server, by the simple query protocol and without authentication. It is here so that
// starting a standby needs neither a driver nor client programs, which not every installation has.
type session struct {
	conn net.Conn
	in   *bufio.Reader
}

// connect opens a session in the database that is always there; the context's deadline is the session's.
func connect(ctx context.Context, addr string) (*session, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			_ = conn.Close()
			return nil, err
		}
	}
	s := &session{conn: conn, in: bufio.NewReader(conn)}
	body := binary.BigEndian.AppendUint32(nil, protocolVersion)
	for _, word := range []string{"user", Superuser, "database", "postgres", "application_name", "pgtest", ""} {
		body = append(append(body, word...), 0)
	}
	if err := s.send(nil, body); err != nil {
		s.close()
		return nil, err
	}
	if _, err := s.answer(); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *session) close() { _ = s.conn.Close() }

// query runs statements, and returns the rows of all as text; a null is the empty text.
func (s *session) query(sql string) ([][]string, error) {
	if strings.ContainsRune(sql, 0) {
		return nil, errors.New("a statement with a zero byte")
	}
	if err := s.send([]byte{'Q'}, append([]byte(sql), 0)); err != nil {
		return nil, err
	}
	return s.answer()
}

func (s *session) send(kind, body []byte) error {
	message := binary.BigEndian.AppendUint32(kind, uint32(len(body)+4)) //nolint:gosec // a statement of this package
	_, err := s.conn.Write(append(message, body...))
	return err
}

// answer reads up to where the server is ready for the next statement.
func (s *session) answer() (rows [][]string, refused error) {
	for {
		kind, body, err := s.receive()
		if err != nil {
			return nil, errors.Join(refused, err)
		}
		switch kind {
		case 'R':
			if len(body) != 4 || binary.BigEndian.Uint32(body) != 0 {
				return nil, errors.New("the server asks for a password")
			}
		case 'D':
			row, err := dataRow(body)
			if err != nil {
				return nil, err
			}
			rows = append(rows, row)
		case 'E':
			refused = errorResponse(body)
		case 'Z':
			return rows, refused
		}
	}
}

func (s *session) receive() (kind byte, body []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(s.in, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n < 4 || n > maxMessage {
		return 0, nil, fmt.Errorf("a message %q of %d bytes", head[0], n)
	}
	body = make([]byte, n-4)
	_, err = io.ReadFull(s.in, body)
	return head[0], body, err
}

var errShortRow = errors.New("a row is shorter than it says")

func dataRow(body []byte) ([]string, error) {
	if len(body) < 2 {
		return nil, errShortRow
	}
	row := make([]string, binary.BigEndian.Uint16(body))
	body = body[2:]
	for i := range row {
		if len(body) < 4 {
			return nil, errShortRow
		}
		n := binary.BigEndian.Uint32(body)
		body = body[4:]
		if n == 1<<32-1 { // null
			continue
		}
		if uint64(n) > uint64(len(body)) {
			return nil, errShortRow
		}
		row[i], body = string(body[:n]), body[n:]
	}
	return row, nil
}

func errorResponse(body []byte) error {
	e := &serverError{}
	for field := range strings.SplitSeq(string(body), "\x00") {
		if field == "" {
			continue
		}
		switch field[0] {
		case 'C':
			e.code = field[1:]
		case 'M':
			e.message = field[1:]
		}
	}
	return e
}

// ask runs statements in a session of their own.
func ask(ctx context.Context, addr, sql string) ([][]string, error) {
	s, err := connect(ctx, addr)
	if err != nil {
		return nil, err
	}
	defer s.close()
	rows, err := s.query(sql)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", sql, err)
	}
	return rows, nil
}

// literal is a text as SQL writes it.
func literal(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// identifier is a name as SQL writes it.
func identifier(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }

// poll waits for a condition that nobody announces.
func poll(ctx context.Context, ok func() bool) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}
