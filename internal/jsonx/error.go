package jsonx

import (
	"strconv"
	"strings"
)

// Kind says what is wrong with a document.
type Kind uint8

// The kinds of faults. The zero Kind is none.
const (
	Syntax    Kind = iota + 1 // not JSON, ends early, or goes on after its end
	Duplicate                 // an object has two members of one name
	Unknown                   // a member that the Go type does not have
	Type                      // a value of another form than the Go type wants
	Range                     // a number that does not fit
	Depth                     // nested deeper than MaxDepth
	Size                      // more than MaxValues values
	UTF8                      // text that is not Unicode: invalid UTF-8 or a lone surrogate
	NUL                       // the character U+0000, as a byte or escaped
)

var kindNames = [...]string{
	Syntax: "syntax", Duplicate: "duplicate", Unknown: "unknown", Type: "type", Range: "range",
	Depth: "depth", Size: "size", UTF8: "utf8", NUL: "nul",
}

// String is the kind in one lower-case word, fit for a metric's label.
func (k Kind) String() string {
	if k == 0 || int(k) >= len(kindNames) {
		return "kind " + strconv.Itoa(int(k))
	}
	return kindNames[k]
}

// Error is a fault of a document. It may be shown to whoever sent the document, and logged: nothing in it is taken
// from the document, neither a value nor the name of a member, because either may be personal data or a secret.
type Error struct {
	Kind Kind

	// Pointer is an RFC 6901 pointer to the value at fault, as far as the Go type knows the way: names of struct
	// fields and indexes of slices. It ends at a map, at an `any` or at a [RawValue], whose names the sender chose,
	// and an unknown member is shown by the pointer of the object that it is in. Check knows no type, so that its
	// pointers are empty, or the index of the element at fault in a document that is an array.
	Pointer string

	// Offset is where in the document the fault was noticed, in bytes from its start. For a fault of a type's own
	// UnmarshalJSON it is where the value starts.
	Offset int64

	// Detail says what is wrong, to go after the name of the value: "must be a whole number".
	Detail string
}

// Error names the place and the fault.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("json: ")
	if e.Pointer != "" {
		b.WriteString(e.Pointer)
		b.WriteByte(' ')
	}
	b.WriteString(e.Detail)
	b.WriteString(" (byte ")
	b.WriteString(strconv.FormatInt(e.Offset, 10))
	b.WriteByte(')')
	return b.String()
}
