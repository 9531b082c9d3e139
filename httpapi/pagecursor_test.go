package httpapi

import (
	"encoding/base64"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/millrace-io/millrace"
)

func TestPageCursor(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newSealer("store")
		query := rapid.String().Draw(t, "query")
		place := millrace.Place{
			Key: rapid.String().Draw(t, "key"), Partition: rapid.IntRange(0, millrace.MaxPartitions-1).Draw(t, "partition"),
			ID: rapid.String().Draw(t, "id"),
		}
		token := s.sealPlace(query, place)
		got, ok := s.openPlace(query, token)
		if !ok || !cmp.Equal(*got, place) {
			t.Fatalf("%+v came back as %+v, %v", place, got, ok)
		}
		if _, ok := s.openPlace(query+"x", token); ok {
			t.Fatal("another query took the cursor")
		}
		if _, ok := newSealer("another store").openPlace(query, token); ok {
			t.Fatal("another store took the cursor")
		}
		if _, ok := s.openVersion(query, s.sealVersion(query, 7)); !ok {
			t.Fatal("a version did not come back")
		}
	})
}

func TestPageCursorForged(t *testing.T) {
	s := newSealer("store")
	token := s.sealPlace("q", millrace.Place{Key: "k", Partition: 3, ID: "order"})
	raw, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		t.Fatal(err)
	}
	for bit := range len(raw) * 8 {
		forged := append([]byte(nil), raw...)
		forged[bit/8] ^= 1 << (bit % 8)
		if _, ok := s.openPlace("q", base64.RawURLEncoding.EncodeToString(forged)); ok {
			t.Errorf("bit %d can be flipped", bit)
		}
	}
	for n := range len(token) {
		if _, ok := s.openPlace("q", token[:n]); ok {
			t.Errorf("the first %d characters are enough", n)
		}
	}
	if _, ok := s.openPlace("q", token+"="); ok {
		t.Error("padding is accepted")
	}
}

func FuzzPageCursor(f *testing.F) {
	s := newSealer("store")
	f.Add(s.sealPlace("q", millrace.Place{Key: "k", Partition: 3, ID: "order"}))
	f.Add(s.sealVersion("q", 1<<40))
	f.Add("")
	f.Fuzz(func(t *testing.T, token string) {
		if p, ok := s.openPlace("q", token); ok && s.sealPlace("q", *p) != token {
			t.Fatalf("%q was not made here", token)
		}
		if v, ok := s.openVersion("q", token); ok && s.sealVersion("q", v) != token {
			t.Fatalf("%q was not made here", token)
		}
	})
}

// FuzzPageCursorPayload skips the MAC: what is behind it must not trust what is in front.
func FuzzPageCursorPayload(f *testing.F) {
	f.Add([]byte{3, 1, 'k', 'i', 'd'})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	s := newSealer("store")
	f.Fuzz(func(_ *testing.T, payload []byte) {
		token := s.seal("q", payload)
		_, _ = s.openPlace("q", token)
		_, _ = s.openVersion("q", token)
	})
}
