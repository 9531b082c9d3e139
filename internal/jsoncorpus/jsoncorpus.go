// Package jsoncorpus is the public corpus of JSON parsing tests, for every place where JSON comes in.
//
// It holds the cases of JSONTestSuite (github.com/nst/JSONTestSuite, directory test_parsing; MIT licence, copyright
// 2016 Nicolas Seriot) under the names that they have there: 95 to be accepted, 188 to be refused, and 35 that are
// left to the parser. They are Go literals, so that no editor, checkout or archive can mend their broken bytes.
package jsoncorpus

// Case is one document and what RFC 8259 wants of it.
type Case struct {
	Name string
	Want byte // 'y': accept, 'n': refuse, 'i': left to the parser
	Data []byte
}

type entry struct{ name, data string }

// Cases returns all 318 cases, ordered by what is wanted ('y', 'n', 'i'). The slice and its bytes are the caller's.
func Cases() []Case {
	var out []Case
	for _, kind := range []struct {
		want    byte
		entries []entry
	}{{'y', valid()}, {'n', invalid()}, {'i', either()}} {
		for _, e := range kind.entries {
			out = append(out, Case{Name: e.name, Want: kind.want, Data: []byte(e.data)})
		}
	}
	return out
}
