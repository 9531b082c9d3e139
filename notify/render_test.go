package notify_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-io/millrace/internal/money"
	"github.com/millrace-io/millrace/internal/notice"
	"github.com/millrace-io/millrace/notify"
)

var rewrite = flag.Bool("rewrite", false, "write what the code does now into testdata")

var at = time.Date(2026, 3, 9, 22, 30, 0, 0, time.UTC)

func euros(t *testing.T, minor int64) money.Amount {
	t.Helper()
	c, ok := money.ParseCurrency("EUR")
	if !ok {
		t.Fatal("there is no euro")
	}
	return money.Amount{Minor: minor, Currency: c}
}

// aNotice is one of each kind.
func aNotice(t *testing.T, k notice.Kind) *notice.Notice {
	t.Helper()
	total := euros(t, 123450)
	n := &notice.Notice{Kind: k, At: at, OrderID: "1001", CustomerID: "c-17", Email: "ann@example.org", Currency: total.Currency, Total: total}
	first, second := euros(t, 122900).Decimal(), euros(t, 550).Decimal()
	n.Lines = []notice.Line{
		{Line: 1, SKU: "85123A", Description: `Lantern "Heart", white`, Quantity: 100, Total: &first},
		{Line: 2, SKU: "POST", Quantity: 1, Total: &second},
	}
	switch k {
	case notice.Shipped:
		n.Lines[0].Total, n.Lines[1].Total = nil, nil
		n.Parcel = &notice.Parcel{Number: 2, Last: true, Carrier: "Post", TrackingNumber: "T-1"}
	case notice.Cancelled:
		n.Reason, n.Refund = "sold out", total
	case notice.Refunded:
		n.Lines = []notice.Line{{Line: 1, SKU: "85123A", Description: `Lantern "Heart", white`, Quantity: 2}}
		n.Reason, n.Refund = "chipped", euros(t, 2458)
	case notice.Placed:
		n.More = 12
	}
	return n
}

// TestRender: every kind in every language, on file, in both forms.
func TestRender(t *testing.T) {
	for _, k := range notice.Kinds() {
		for _, language := range []string{"en", "de"} {
			n := aNotice(t, k)
			n.Language = language
			m, err := render(t, n, "The Example Shop")
			if err != nil {
				t.Fatal(err)
			}
			base := filepath.Join("testdata", string(k)+"."+language)
			golden(t, base+".txt", "Subject: "+m.Subject+"\n\n"+m.Text)
			golden(t, base+".html", m.HTML)
		}
	}
}

func render(t *testing.T, n *notice.Notice, shop string) (*notify.Message, error) {
	t.Helper()
	w, err := notify.NewWriter()
	if err != nil {
		t.Fatal(err)
	}
	return w.Write(n, shop)
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *rewrite {
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path) //nolint:gosec // a file of this package's testdata
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s:\n%s", path, d)
	}
}

// TestRenderIsSafe: what customers and staff write stays text, in both forms and in the subject.
func TestRenderIsSafe(t *testing.T) {
	const evil = `<script>alert(1)</script>`
	for _, k := range notice.Kinds() {
		n := aNotice(t, k)
		n.OrderID, n.Reason = "1\r\nBcc: b@example.org "+evil, evil
		n.Lines[0].Description, n.Lines[0].SKU = evil, `"><img src=x>`
		if n.Parcel != nil {
			n.Parcel.Carrier, n.Parcel.TrackingNumber = evil, evil
		}
		m, err := render(t, n, evil)
		if err != nil {
			t.Fatal(err)
		}
		if strings.ContainsAny(m.Subject, "\r\n") || !strings.Contains(m.Subject, evil) {
			t.Errorf("%s: subject %q", k, m.Subject)
		}
		for _, no := range []string{"<script", "<img"} {
			if strings.Contains(m.HTML, no) {
				t.Errorf("%s: the HTML has %s", k, no)
			}
		}
		if !strings.Contains(m.HTML, "&lt;script&gt;") || !strings.Contains(m.Text, evil) {
			t.Errorf("%s: what was written is not there", k)
		}
	}
}

// TestLanguages: others than those in which we write get English.
func TestLanguages(t *testing.T) {
	for tag, want := range map[string]string{"": "en", "en": "en", "de": "de", "DE-at": "de", "de-Latn-CH": "de", "fr": "en", "den": "en", "zh-Hans": "en"} {
		if got := notify.Language(tag); got != want {
			t.Errorf("%q is written to in %q, want %q", tag, got, want)
		}
	}
	n := aNotice(t, notice.Placed)
	n.Language = "fr"
	m, err := render(t, n, "S")
	if err != nil || m.Language != "en" || !strings.Contains(m.HTML, `lang="en"`) {
		t.Errorf("%+v %v", m, err)
	}
}

// TestPartsOfParcels: which words a parcel gets.
func TestPartsOfParcels(t *testing.T) {
	for _, c := range []struct {
		number int
		last   bool
		want   string
	}{
		{1, true, "Your order 1001 is on its way"}, {1, false, "Parcel 1 of your order 1001 is on its way"}, {3, true, "Parcel 3 of your order 1001 is on its way"},
	} {
		n := aNotice(t, notice.Shipped)
		n.Parcel.Number, n.Parcel.Last = c.number, c.last
		m, err := render(t, n, "S")
		if err != nil || m.Subject != c.want {
			t.Errorf("%q %v, want %q", m.Subject, err, c.want)
		}
		if rest := strings.Contains(m.Text, "The rest follows"); rest == c.last {
			t.Errorf("parcel %d, last %v: %s", c.number, c.last, m.Text)
		}
	}
}

// TestUnknownKind: a notice of a newer program is an error, and is sent when that program runs.
func TestUnknownKind(t *testing.T) {
	if _, err := render(t, &notice.Notice{Kind: "lost"}, "S"); err == nil {
		t.Error("a notice of an unknown kind was written")
	}
}
