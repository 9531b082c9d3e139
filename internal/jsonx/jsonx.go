package jsonx

import (
	"bytes"
	"fmt"
	"sync"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// RawValue is one JSON value as its text. A field of this type keeps a part of a document byte for byte, to be read
// later; [Unmarshal] holds it to the same rules as the rest. [Marshal] writes it in its shortest form.
type RawValue = jsontext.Value

// Both are the library's defaults but for one rule each. The defaults already refuse duplicate names, invalid UTF-8
// and trailing data, match names exactly, and escape nothing for the sake of HTML.
var (
	strict        = json.RejectUnknownMembers(true)
	deterministic = json.Deterministic(true)
)

// Unmarshal decodes the one document in data into the value that v points to. See the package comment for what it
// refuses. Every error is an [*Error]; after one, v may hold a part of the document.
//
// A type may decode itself by an UnmarshalJSON or UnmarshalText method. The text of its error does not reach the
// sender of the document, because such errors like to quote what they were given, unless the error says by a method
// Public() string what may be shown.
func Unmarshal(data []byte, v any) error {
	if kind, at := scan(data); kind != 0 {
		return fault(kind, at)
	}
	if err := json.Unmarshal(data, v, strict); err != nil {
		return explain(err, data, v)
	}
	return nil
}

// Check holds data to the rules of [Unmarshal] without decoding it: for JSON that is kept and passed on as it is.
// Every error is an [*Error].
func Check(data []byte) error {
	if kind, at := scan(data); kind != 0 {
		return fault(kind, at)
	}
	if jsontext.Value(data).IsValid() {
		return nil
	}
	// Where it fails is only found out when it fails.
	return diagnose(data)
}

// Marshal encodes v: members of maps in the order of their names, without white space, nil slices as [] and nil maps
// as {}. Where v would make a document that [Unmarshal] refuses, whatever the Go type, it is an error: better than
// to keep what cannot be read again.
func Marshal(v any) ([]byte, error) {
	out, err := json.Marshal(v, deterministic)
	if err == nil {
		err = written(out)
	}
	if err != nil {
		return nil, fmt.Errorf("encode %T as JSON: %w", v, err)
	}
	return out, nil
}

// buffers saves Append the allocation of the writer that it hands to the encoder. The bytes are never pooled: they
// are the caller's.
var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// Append encodes v as [Marshal] does and appends it to dst, straight into dst's spare room. On an error it returns
// dst as it was.
func Append(dst []byte, v any) ([]byte, error) {
	buf := buffers.Get().(*bytes.Buffer) //nolint:forcetypeassert // the pool holds nothing else
	*buf = *bytes.NewBuffer(dst)
	err := json.MarshalWrite(buf, v, deterministic)
	out := buf.Bytes()
	*buf = bytes.Buffer{}
	buffers.Put(buf)
	if err == nil {
		err = written(out[len(dst):])
	}
	if err != nil {
		return dst, fmt.Errorf("encode %T as JSON: %w", v, err)
	}
	return out, nil
}

// written holds what was encoded to the limits of reading. The encoder itself has seen to the rest.
func written(out []byte) error {
	if kind, at := scan(out); kind != 0 {
		return fault(kind, at)
	}
	return nil
}

// Canonical returns data in the form of RFC 8785: no white space, members sorted by name, one spelling for each
// string and number. Documents of one meaning have one canonical form. data is not changed. Every error is an
// [*Error].
//
// RFC 8785 writes every number as an IEEE 754 double. A number that would come out as another one is refused with the
// kind [Range], so that documents of different meaning never share a form: integers from 2⁵³ up that a double does
// not hold, decimals of more digits than it holds, and whatever overflows or underflows. Such figures belong in
// strings.
func Canonical(data []byte) ([]byte, error) {
	if kind, at := scan(data); kind != 0 {
		return nil, fault(kind, at)
	}
	out := jsontext.Value(bytes.Clone(data))
	if err := out.Canonicalize(); err != nil {
		return nil, diagnose(data)
	}
	if at := inexact(data); at >= 0 {
		return nil, fault(Range, at)
	}
	return out, nil
}
