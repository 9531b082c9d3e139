package jsonx_test

import (
	"errors"
	"testing"

	"github.com/millrace-io/millrace/internal/jsoncorpus"
	"github.com/millrace-io/millrace/internal/jsonx"
)

// stricter are the documents that RFC 8259 wants accepted and that we refuse all the same, with the kind of the fault.
var stricter = map[string]jsonx.Kind{
	// Which of the two counts is for each reader to guess, so that a check and a use can disagree.
	"y_object_duplicated_key":           jsonx.Duplicate,
	"y_object_duplicated_key_and_value": jsonx.Duplicate,
	// PostgreSQL keeps no NUL in text or jsonb: accepted on one backend and refused on the other.
	"y_object_escaped_null_in_key": jsonx.NUL,
	"y_string_null_escape":         jsonx.NUL,
}

// either are the documents that RFC 8259 leaves to us: zero for those that are accepted.
var either = map[string]jsonx.Kind{
	// As text, a number of any size is a number. Whether it fits is the Go type's to say.
	"i_number_double_huge_neg_exp":   0,
	"i_number_huge_exp":              0,
	"i_number_neg_int_huge_exp":      0,
	"i_number_pos_double_huge_exp":   0,
	"i_number_real_neg_overflow":     0,
	"i_number_real_pos_overflow":     0,
	"i_number_real_underflow":        0,
	"i_number_too_big_neg_int":       0,
	"i_number_too_big_pos_int":       0,
	"i_number_very_big_negative_int": 0,

	// Lone surrogates, escaped or encoded.
	"i_object_key_lone_2nd_surrogate":                jsonx.UTF8,
	"i_string_1st_surrogate_but_2nd_missing":         jsonx.UTF8,
	"i_string_1st_valid_surrogate_2nd_invalid":       jsonx.UTF8,
	"i_string_UTF8_surrogate_U+D800":                 jsonx.UTF8,
	"i_string_incomplete_surrogate_and_escape_valid": jsonx.UTF8,
	"i_string_incomplete_surrogate_pair":             jsonx.UTF8,
	"i_string_incomplete_surrogates_escape_valid":    jsonx.UTF8,
	"i_string_invalid_lonely_surrogate":              jsonx.UTF8,
	"i_string_invalid_surrogate":                     jsonx.UTF8,
	"i_string_inverted_surrogates_U+1D11E":           jsonx.UTF8,
	"i_string_lone_second_surrogate":                 jsonx.UTF8,

	// Bytes that are not UTF-8.
	"i_string_UTF-8_invalid_sequence":         jsonx.UTF8,
	"i_string_invalid_utf-8":                  jsonx.UTF8,
	"i_string_iso_latin_1":                    jsonx.UTF8,
	"i_string_lone_utf8_continuation_byte":    jsonx.UTF8,
	"i_string_not_in_unicode_range":           jsonx.UTF8,
	"i_string_overlong_sequence_2_bytes":      jsonx.UTF8,
	"i_string_overlong_sequence_6_bytes":      jsonx.UTF8,
	"i_string_overlong_sequence_6_bytes_null": jsonx.UTF8,
	"i_string_truncated-utf-8":                jsonx.UTF8,

	// UTF-16: the upper halves of its ASCII characters are NUL.
	"i_string_UTF-16LE_with_BOM": jsonx.NUL,
	"i_string_utf16BE_no_BOM":    jsonx.NUL,
	"i_string_utf16LE_no_BOM":    jsonx.NUL,

	"i_structure_500_nested_arrays":      jsonx.Depth,
	"i_structure_UTF-8_BOM_empty_object": jsonx.Syntax,
}

// TestCorpus runs the public corpus: 95 documents to be accepted, but for the four that are named above; 188 to be
// refused; 35 by the table above. Unmarshal into an `any` must agree with Check on all of them, but for numbers that
// are too large for a float64.
func TestCorpus(t *testing.T) {
	count := map[byte]int{}
	for _, c := range jsoncorpus.Cases() {
		count[c.Want]++
		kind := kindOf(t, jsonx.Check(c.Data))
		var want jsonx.Kind
		switch c.Want {
		case 'y':
			want = stricter[c.Name]
		case 'n':
			if kind == 0 {
				t.Errorf("%s: accepted", c.Name)
			}
			want = kind // which of the faults is told first is free
		case 'i':
			w, ok := either[c.Name]
			if !ok {
				t.Errorf("%s: not in the table", c.Name)
			}
			want = w
		}
		if kind != want {
			t.Errorf("%s: Check says %v, want %v", c.Name, kind, want)
		}

		var v any
		decoded := kindOf(t, jsonx.Unmarshal(c.Data, &v))
		if decoded == jsonx.Range {
			decoded = 0
		}
		if (decoded == 0) != (kind == 0) || c.Want != 'n' && decoded != kind {
			t.Errorf("%s: Check says %v, Unmarshal says %v", c.Name, kind, decoded)
		}
	}
	if count['y'] != 95 || count['n'] != 188 || count['i'] != 35 {
		t.Errorf("cases: %v", count)
	}
}

// kindOf is zero for no error.
func kindOf(t testing.TB, err error) jsonx.Kind {
	t.Helper()
	if err == nil {
		return 0
	}
	e, ok := errors.AsType[*jsonx.Error](err)
	if !ok {
		t.Fatalf("%T is not a *jsonx.Error: %v", err, err)
	}
	return e.Kind
}
