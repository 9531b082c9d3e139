package httpapi

import (
	"time"

	"github.com/millrace-io/millrace"
)

// The limits of the door. Depth and number of values of a document are limited by package jsonx.
const (
	// MaxBody bounds the body of a request that is read whole: a command's data, which the intake bounds alike. A
	// command in its envelope has MaxEnvelope more.
	MaxBody = millrace.MaxCommandData
	// MaxEnvelope is what a command may need around its data in POST /v1/commands: ids, names and quotes.
	MaxEnvelope = 4 << 10
	// MaxLine bounds a line of an NDJSON request. The number of lines is not limited: they are answered as they come.
	MaxLine = MaxBody + MaxEnvelope
	// MaxHeaderBytes bounds the headers of a request. Ours take less than 1 KiB; a browser's cookies rarely 8 KiB.
	MaxHeaderBytes = 16 << 10
	// MaxWait bounds Prefer: wait. Proxies in between commonly give up after 60 s.
	MaxWait = 60 * time.Second
	// MaxCursorWait is how long a read waits for its min_cursor where Prefer does not say: far above the usual lag of
	// milliseconds, and short enough that a client still listens.
	MaxCursorWait = 5 * time.Second
	// MaxWaits bounds the requests that wait at the same time for an outcome or a read model. Each holds a goroutine
	// and a connection, some 30 KB together.
	MaxWaits = 8192
	// MaxList bounds the items of a page.
	MaxList = 500
	// DefaultList is a page where nobody says otherwise.
	DefaultList = 50
	// MaxPageBytes ends a page early: events and documents may be large, and a page is gathered in memory.
	MaxPageBytes = 4 << 20
	// MaxScan bounds the documents that a list looks at for one page where a filter has no index of its own. The page
	// then ends early, with a cursor to go on from.
	MaxScan = 10_000
	// MaxReportRows bounds the rows of a report: nine statuses for three years of days.
	MaxReportRows = 10_000
	// MaxQuery bounds the query string of a request in bytes.
	MaxQuery = 4 << 10
	// MaxFilterValue bounds the value of a list's filter; it stands in an index key.
	MaxFilterValue = millrace.MaxStreamName
	// MaxErrors bounds the faults that one answer names; whoever made so many has one mistake in common to them.
	MaxErrors = 100
	// MaxRequestID bounds an X-Request-Id that is taken over from the client.
	MaxRequestID = 128
	// MaxBatchLines and MaxBatchBytes bound the lines of an NDJSON request that are accepted together: enough to share
	// one sync among them, and no more memory than a few large bodies.
	MaxBatchLines = 512
	MaxBatchBytes = 2 << 20
	// lineIdle is how long an NDJSON request may send nothing, or take nothing of what is answered.
	lineIdle = 30 * time.Second
	// readTime bounds the reads of one request from the store, a fold of a long history included.
	readTime = 10 * time.Second
	// foldStride is the distance between the versions whose states are remembered: a later fold of the same stream
	// starts from there, and takes at most this many events.
	foldStride = 64
	// foldStates bounds the remembered states.
	foldStates = 1024
	// retrySoon is what Retry-After says where nothing better is known, in seconds: its smallest step.
	retrySoon = 1
)
