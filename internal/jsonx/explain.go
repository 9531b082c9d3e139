package jsonx

import (
	"bytes"
	"encoding"
	"errors"
	"io"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// What is said of a fault, where the kind alone says enough.
var details = [...]string{
	Syntax:    "is not valid JSON",
	Duplicate: "has two members of one name",
	Unknown:   "has a member that is not known here",
	Type:      "has the wrong form",
	Range:     "is a number that does not fit",
	Depth:     "is nested deeper than " + strconv.Itoa(MaxDepth) + " levels",
	Size:      "holds more than " + strconv.Itoa(MaxValues) + " values",
	UTF8:      "holds text that is not valid Unicode",
	NUL:       "holds the character NUL",
}

// endsEarly is a Syntax fault that senders can act on: the document was cut off.
const endsEarly = "ends before it is complete"

// fault is an error of the whole document.
func fault(kind Kind, at int) *Error {
	return &Error{Kind: kind, Offset: int64(at), Detail: details[kind]}
}

// explain turns what the library says of a document that was to be decoded into v into an error that says nothing of
// the document's content. The library's own texts quote it.
func explain(err error, data []byte, v any) *Error {
	t := reflect.TypeOf(v)
	if target := reflect.ValueOf(v); target.Kind() != reflect.Pointer || target.IsNil() {
		return &Error{Kind: Type, Detail: "cannot be decoded: the target is no pointer, or nil"}
	}
	semantic, ok := errors.AsType[*json.SemanticError](err)
	if !ok {
		syntactic, ok := errors.AsType[*jsontext.SyntacticError](err)
		if !ok {
			return fault(Type, 0)
		}
		e := explainSyntax(syntactic, data)
		e.Pointer = known(t, syntactic.JSONPointer)
		if e.Kind == Duplicate && e.Pointer == string(syntactic.JSONPointer) {
			e.Detail = "is there twice"
		}
		return e
	}
	e := &Error{Kind: Type, Pointer: known(t, semantic.JSONPointer), Offset: semantic.ByteOffset}
	if inner, ok := errors.AsType[*Error](semantic.Err); ok {
		// A type that decodes itself by Unmarshal has its fault told as one of this document.
		e.Kind, e.Detail = inner.Kind, inner.Detail
		e.Pointer += inner.Pointer
		e.Offset += inner.Offset
		return e
	}
	if own, ok := errors.AsType[public](semantic.Err); ok {
		e.Detail = own.Public()
		return e
	}
	switch {
	case errors.Is(semantic.Err, json.ErrUnknownName):
		e.Kind, e.Detail = Unknown, details[Unknown]
		e.Pointer = known(t, semantic.JSONPointer.Parent())
	case semantic.Err == strconv.ErrRange: //nolint:errorlint // wrapped, it would be of a type's own method
		e.Kind, e.Detail = Range, details[Range]
	default:
		e.Detail = wanted(semantic.GoType)
	}
	return e
}

// public is an error with a text that may be shown to whoever sent the document.
type public interface {
	error
	Public() string
}

// explainSyntax leaves the pointer empty.
func explainSyntax(err *jsontext.SyntacticError, data []byte) *Error {
	e := fault(Syntax, int(err.ByteOffset))
	switch {
	case errors.Is(err.Err, jsontext.ErrDuplicateName):
		e.Kind = Duplicate
	case notText(data, err.ByteOffset):
		e.Kind = UTF8
	case errors.Is(err.Err, io.ErrUnexpectedEOF):
		e.Detail = endsEarly
		return e
	}
	e.Detail = details[e.Kind]
	return e
}

// diagnose finds out what is wrong with a document that is not valid.
func diagnose(data []byte) *Error {
	d := jsontext.NewDecoder(bytes.NewReader(data))
	_, err := d.ReadValue()
	if err == nil { // something stands behind the document
		rest := bytes.TrimLeft(data[d.InputOffset():], " \t\r\n")
		return explainSyntax(&jsontext.SyntacticError{ByteOffset: int64(len(data) - len(rest))}, data)
	}
	syntactic, ok := errors.AsType[*jsontext.SyntacticError](err)
	if !ok { // io.EOF: there is nothing but white space
		e := fault(Syntax, len(data))
		e.Detail = endsEarly
		return e
	}
	e := explainSyntax(syntactic, data)
	if jsontext.Value(data).Kind() == jsontext.KindBeginArray {
		if first, _, _ := strings.Cut(strings.TrimPrefix(string(syntactic.JSONPointer), "/"), "/"); first != "" {
			e.Pointer = "/" + first
		}
	}
	return e
}

// notText says whether what stands at an offset is the start of text that is not Unicode. The library tells it from
// other faults of a string by the words of its error only.
func notText(data []byte, at int64) bool {
	if at < 0 || at >= int64(len(data)) {
		return false
	}
	b := data[at:]
	if b[0] >= utf8.RuneSelf {
		r, n := utf8.DecodeRune(b)
		return r == utf8.RuneError && n == 1
	}
	// A surrogate pair that is complete is no fault, so that the surrogate here must be alone.
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return false
	}
	n, err := strconv.ParseUint(string(b[2:6]), 16, 16)
	return err == nil && 0xd800 <= n && n <= 0xdfff
}

// known is the beginning of a pointer that names nothing but fields of structs and indexes of slices of t.
func known(t reflect.Type, pointer jsontext.Pointer) string {
	var out jsontext.Pointer
	for token := range pointer.Tokens() {
		for t != nil && t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		if t == nil || decodesItself(t) {
			break
		}
		switch t.Kind() {
		case reflect.Struct:
			t = fieldType(t, token)
		case reflect.Slice, reflect.Array:
			t = t.Elem()
		default:
			t = nil
		}
		if t == nil {
			break
		}
		out = out.AppendToken(token)
	}
	return string(out)
}

// decodesItself: what is inside of such a type is not for its fields to say.
func decodesItself(t reflect.Type) bool {
	p := reflect.PointerTo(t)
	return p.Implements(reflect.TypeFor[json.Unmarshaler]()) ||
		p.Implements(reflect.TypeFor[json.UnmarshalerFrom]()) ||
		p.Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

// fieldType is the type of the field whose member has a name, or nil. It knows less of tags than the library does;
// what it does not find ends a pointer early, which is the safe side.
func fieldType(t reflect.Type, name string) reflect.Type {
	for _, f := range reflect.VisibleFields(t) {
		tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if tag == "" {
			tag = f.Name
		}
		if tag == name && f.IsExported() {
			return f.Type
		}
	}
	return nil
}

// wanted says what form a Go type has in JSON.
func wanted(t reflect.Type) string {
	switch {
	case t == nil:
		return details[Type]
	case t == reflect.TypeFor[time.Time]():
		return "must be a time in the form of RFC 3339"
	case decodesItself(t):
		return details[Type]
	}
	switch t.Kind() {
	case reflect.Bool:
		return "must be true or false"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return "must be a whole number"
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		return "must be a whole number, not below zero"
	case reflect.Float32, reflect.Float64:
		return "must be a number"
	case reflect.String:
		return "must be a string"
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return "must be a string in Base64"
		}
		return "must be an array"
	case reflect.Array:
		return "must be an array of " + strconv.Itoa(t.Len())
	case reflect.Map, reflect.Struct:
		return "must be an object"
	default:
		return details[Type]
	}
}
