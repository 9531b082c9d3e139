package jsoncorpus

import "strings"

// either are the 35 documents that a parser may accept or refuse: RFC 8259 leaves limits and broken text to it.
func either() []entry {
	return []entry{
		// Numbers that no usual type holds.
		{"i_number_double_huge_neg_exp", `[123.456e-789]`},
		{"i_number_huge_exp", `[0.4e00669999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999969999999006]`},
		{"i_number_neg_int_huge_exp", `[-1e+9999]`},
		{"i_number_pos_double_huge_exp", `[1.5e+9999]`},
		{"i_number_real_neg_overflow", `[-123123e100000]`},
		{"i_number_real_pos_overflow", `[123123e100000]`},
		{"i_number_real_underflow", `[123e-10000000]`},
		{"i_number_too_big_neg_int", `[-123123123123123123123123123123]`},
		{"i_number_too_big_pos_int", `[100000000000000000000]`},
		{"i_number_very_big_negative_int", `[-237462374673276894279832749832423479823246327846]`},

		// Text that is not Unicode, in a name.
		{"i_object_key_lone_2nd_surrogate", `{"\uDFAA":0}`},

		// Text that is not Unicode, or not UTF-8.
		{"i_string_1st_surrogate_but_2nd_missing", `["\uDADA"]`},
		{"i_string_1st_valid_surrogate_2nd_invalid", `["\uD888\u1234"]`},
		{"i_string_UTF-16LE_with_BOM", "\xff\xfe[\x00\"\x00\xe9\x00\"\x00]\x00"},
		{"i_string_UTF-8_invalid_sequence", "[\"\u65e5\u0448\xfa\"]"},
		{"i_string_UTF8_surrogate_U+D800", "[\"\xed\xa0\x80\"]"},
		{"i_string_incomplete_surrogate_and_escape_valid", `["\uD800\n"]`},
		{"i_string_incomplete_surrogate_pair", `["\uDd1ea"]`},
		{"i_string_incomplete_surrogates_escape_valid", `["\uD800\uD800\n"]`},
		{"i_string_invalid_lonely_surrogate", `["\ud800"]`},
		{"i_string_invalid_surrogate", `["\ud800abc"]`},
		{"i_string_invalid_utf-8", "[\"\xff\"]"},
		{"i_string_inverted_surrogates_U+1D11E", `["\uDd1e\uD834"]`},
		{"i_string_iso_latin_1", "[\"\xe9\"]"},
		{"i_string_lone_second_surrogate", `["\uDFAA"]`},
		{"i_string_lone_utf8_continuation_byte", "[\"\x81\"]"},
		{"i_string_not_in_unicode_range", "[\"\xf4\xbf\xbf\xbf\"]"},
		{"i_string_overlong_sequence_2_bytes", "[\"\xc0\xaf\"]"},
		{"i_string_overlong_sequence_6_bytes", "[\"\xfc\x83\xbf\xbf\xbf\xbf\"]"},
		{"i_string_overlong_sequence_6_bytes_null", "[\"\xfc\x80\x80\x80\x80\x80\"]"},
		{"i_string_truncated-utf-8", "[\"\xe0\xff\"]"},
		{"i_string_utf16BE_no_BOM", "\x00[\x00\"\x00\xe9\x00\"\x00]"},
		{"i_string_utf16LE_no_BOM", "[\x00\"\x00\xe9\x00\"\x00]\x00"},

		// Whole documents.
		{"i_structure_500_nested_arrays", strings.Repeat("[", 500) + strings.Repeat("]", 500)},
		{"i_structure_UTF-8_BOM_empty_object", "\ufeff{}"},
	}
}
