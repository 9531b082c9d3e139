// Package jsonx is the one place where JSON is read and written.
//
// It is a strict layer over github.com/go-json-experiment/json, which stands in for encoding/json/v2 until Go 1.27
// brings that into the standard library. No other package imports it, so that the change will be one import.
//
// Reading is strict because two programs that read one document differently can be played against each other, and
// because what is kept must be readable by every backend, PostgreSQL's jsonb included. A document is one complete
// JSON value; it has no duplicate names, no unknown members where a Go struct says which are known, names in exactly
// the case of their declaration, valid UTF-8 without lone surrogates, and no NUL; and it keeps to [MaxDepth] and
// [MaxValues]. Its size in bytes is for the caller to limit, before the bytes are in memory.
//
// Whatever [Marshal] and [Append] write, [Unmarshal] reads.
//
// No error repeats anything of the document it is about: see [Error].
package jsonx
