package jsonx

import (
	"strconv"
	"time"
)

// Writer appends the members of JSON objects, for encoders written by hand. Each member is given with a literal in front,
// which is its name with what stands before it: `{"a":` or `,"b":`. Methods that end in If leave out zero values, as
// omitzero does.
type Writer struct{ Dst []byte }

// Name begins a member whose value is appended by other means.
func (w *Writer) Name(literal string) { w.Dst = append(w.Dst, literal...) }

// Text appends a text.
func (w *Writer) Text(literal, s string) { w.Dst = AppendString(append(w.Dst, literal...), s) }

// TextIf appends a text that is not empty.
func (w *Writer) TextIf(literal, s string) {
	if s != "" {
		w.Text(literal, s)
	}
}

// Int appends a number.
func (w *Writer) Int(literal string, v int64) {
	w.Dst = strconv.AppendInt(append(w.Dst, literal...), v, 10)
}

// IntIf appends a number other than zero.
func (w *Writer) IntIf(literal string, v int64) {
	if v != 0 {
		w.Int(literal, v)
	}
}

// Uint appends a number.
func (w *Writer) Uint(literal string, v uint64) {
	w.Dst = strconv.AppendUint(append(w.Dst, literal...), v, 10)
}

// UintIf appends a number other than zero.
func (w *Writer) UintIf(literal string, v uint64) {
	if v != 0 {
		w.Uint(literal, v)
	}
}

// Bool appends true or false.
func (w *Writer) Bool(literal string, v bool) {
	w.Dst = strconv.AppendBool(append(w.Dst, literal...), v)
}

// BoolIf appends true, where it is.
func (w *Writer) BoolIf(literal string, v bool) {
	if v {
		w.Bool(literal, v)
	}
}

// Time appends a time to the nanosecond.
func (w *Writer) Time(literal string, t time.Time) {
	w.Dst = append(append(w.Dst, literal...), '"')
	w.Dst = append(t.AppendFormat(w.Dst, time.RFC3339Nano), '"')
}

// TimeIf appends a time other than the zero one.
func (w *Writer) TimeIf(literal string, t time.Time) {
	if !t.IsZero() {
		w.Time(literal, t)
	}
}

// Raw appends a value that is JSON; null for none.
func (w *Writer) Raw(literal string, v RawValue) {
	if w.Dst = append(w.Dst, literal...); v == nil {
		w.Dst = append(w.Dst, "null"...)
		return
	}
	w.Dst = append(w.Dst, v...)
}

// RawIf appends a value, unless there is none.
func (w *Writer) RawIf(literal string, v RawValue) {
	if v != nil {
		w.Raw(literal, v)
	}
}

// Element begins the k-th element of an array, and the array with the first one. ArrayEnd must follow on the last one.
func (w *Writer) Element(k int, literal string) {
	if k == 0 {
		w.Name(literal)
	} else {
		w.Dst = append(w.Dst, ',')
	}
}

// ArrayEnd ends an array that had so many elements; one without any was never begun.
func (w *Writer) ArrayEnd(elements int) {
	if elements > 0 {
		w.Dst = append(w.Dst, ']')
	}
}

// End ends an object, and gives what was appended so far.
func (w *Writer) End() []byte {
	w.Dst = append(w.Dst, '}')
	return w.Dst
}
