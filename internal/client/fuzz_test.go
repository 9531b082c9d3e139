package client

import (
	"bytes"
	"net/http"
	"testing"
	"time"
)

// FuzzAnswers reads whatever a server may answer: no panic, no line without an answer or a reason to send it again, and no
// delay that is below zero or without end.
func FuzzAnswers(f *testing.F) {
	f.Add([]byte(`{"line":1,"command_id":"a","status":"decided","version":1,"events":1}`+"\n"+
		`{"line":2,"retry_after":3,"problem":{"status":503,"errors":[{"pointer":"/x","detail":"y"}]}}`+"\n"), "3")
	f.Add([]byte("{\"problem\":{\"status\":422,\"errors\":7}}\n\n\nnull\n"), "Fri, 20 Nov 2026 10:00:00 GMT")
	f.Add([]byte(`{"problem":null}`), "-1")
	f.Fuzz(func(t *testing.T, body []byte, after string) {
		out := make([]LineResult, 3)
		sent := &batch{open: []int{0, 1, 2}, out: out, doubt: make([]bool, 3)}
		left, why, err := sent.read(t.Context(), bytes.NewReader(body))
		if err == nil && len(left) > 0 && why == nil {
			t.Error("lines stay open for no reason")
		}
		for i := range out {
			if out[i].Status == "" && out[i].Problem == nil && err == nil && len(left) == 0 {
				// An answer that says nothing must not pass for one that says yes.
				if out[i].Done() {
					t.Error("done without a status")
				}
			}
		}
		_ = parseProblem(400, body).Error()
		if d := retryAfter(http.Header{"Retry-After": {after}}); d < 0 || (d > 24*time.Hour && !isDate(after)) {
			t.Errorf("%q is %v", after, d)
		}
	})
}

func isDate(s string) bool {
	_, err := http.ParseTime(s)
	return err == nil
}
