package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/millrace-io/millrace/internal/client"
	"github.com/millrace-io/millrace/internal/money"
	pay "github.com/millrace-io/millrace/internal/payment"
	"github.com/millrace-io/millrace/payment"
	"github.com/millrace-io/millrace/sim/gateway"
)

// startGateway runs simulate gateway in this process until stop, which gives the rest of the output, what was logged, and the
// exit code.
func startGateway(t *testing.T, args ...string) (ready string, stop func() (stdout, stderr string, code int)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cmd := newSimulateCommand()
	out, w := io.Pipe()
	var errs bytes.Buffer
	cmd.SetOut(w)
	cmd.SetErr(&errs)
	cmd.SetArgs(append([]string{"gateway", "--http", "127.0.0.1:0"}, args...))
	ended := make(chan int, 1)
	go func() {
		err := cmd.ExecuteContext(ctx)
		_ = w.CloseWithError(err)
		ended <- client.ExitCode(err)
	}()
	lines := bufio.NewReader(out)
	ready, err := lines.ReadString('\n')
	if err != nil {
		t.Fatalf("it does not get ready: %v %s", err, errs.String())
	}
	return strings.TrimSpace(ready), func() (string, string, int) {
		cancel()
		rest, err := io.ReadAll(lines)
		if err != nil {
			t.Error(err)
		}
		return string(rest), errs.String(), <-ended
	}
}

// paid asks a gateway until it answers, and says how many attempts that took.
func paid(t *testing.T, url, order string) (r pay.Result, attempts int) {
	t.Helper()
	g, err := payment.NewHTTP(url, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	pounds, _ := money.ParseCurrency("GBP")
	for err = io.EOF; err != nil && attempts < 10; attempts++ {
		r, err = g.Do(t.Context(), "key of "+order, &pay.Request{Kind: pay.Authorise, OrderID: order, Amount: money.Amount{Minor: 1530, Currency: pounds}})
	}
	if err != nil {
		t.Fatal(err)
	}
	return r, attempts
}

// TestSimulateGateway: it says where it is, does what its flags say and what is set while it runs, and tells its ledger.
func TestSimulateGateway(t *testing.T) {
	ready, stop := startGateway(t, "--fail", "1", "--fail-times", "2", "--seed", "3")
	url, ok := strings.CutPrefix(ready, "the payment gateway is ready: ")
	if !ok {
		t.Fatal(ready)
	}
	if r, attempts := paid(t, url, "1"); r.Status != pay.Approved || attempts != 3 {
		t.Errorf("%+v after %d attempts", r, attempts)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/v1/faults", strings.NewReader(`{"decline":1}`))
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil || res.Body.Close() != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%+v %v", res, err)
	}
	if r, attempts := paid(t, url, "2"); r.Status != pay.Declined || attempts != 1 {
		t.Errorf("%+v after %d attempts", r, attempts)
	}
	stdout, stderr, code := stop()
	want := `ledger      2 orders, 1 payments
GBP         authorised 15.30 = open 15.30 + captured 0.00 + released 0.00 + voided 0.00; refunded 0.00
authorise   4 attempts: 1 approved, 1 declined, 0 not taken
capture     0 attempts: 0 approved, 0 declined, 0 not taken
void        0 attempts: 0 approved, 0 declined, 0 not taken
refund      0 attempts: 0 approved, 0 declined, 0 not taken
also        2 repeated, 2 failed, 0 lost, 0 answered twice, 0 slow, 0 while it was down
`
	if code != 0 || stdout != want || !strings.Contains(stderr, "faults are set") {
		t.Errorf("%d %s\nwant %s\nstderr %s", code, stdout, want, stderr)
	}
}

// TestSimulateGatewayJSON: every line is a document, and it stops at once though an answer hangs.
func TestSimulateGatewayJSON(t *testing.T) {
	ready, stop := startGateway(t, "--hang", "1", "--output", "json", "--quiet")
	var at struct{ URL string }
	if err := json.Unmarshal([]byte(ready), &at); err != nil {
		t.Fatal(err)
	}
	hung, err := http.NewRequestWithContext(t.Context(), http.MethodPost, at.URL+"/v1/payments", strings.NewReader(`{"order_id":"1","amount":{"amount":"1","currency":"JPY"}}`))
	if err != nil {
		t.Fatal(err)
	}
	hung.Header.Set("Idempotency-Key", "a")
	answered := make(chan error, 1)
	go func() {
		res, err := http.DefaultClient.Do(hung)
		if err == nil {
			err = res.Body.Close()
			t.Errorf("it was answered: %d", res.StatusCode)
		}
		answered <- err
	}()
	var l gateway.Ledger
	for l.Lost == 0 { // until the request is there
		res, err := http.Get(at.URL + "/v1/ledger")
		if err != nil {
			t.Fatal(err)
		}
		err = json.NewDecoder(res.Body).Decode(&l)
		if cerr := res.Body.Close(); err != nil || cerr != nil {
			t.Fatal(err, cerr)
		}
	}
	stdout, stderr, code := stop()
	if err := json.Unmarshal([]byte(stdout), &l); err != nil || code != 0 || l.Lost != 1 || l.Payments != 1 || stderr != "" || <-answered == nil {
		t.Errorf("%d %v %s %s", code, err, stdout, stderr)
	}
}

func TestSimulateGatewayExitCodes(t *testing.T) {
	for _, args := range [][]string{
		{"--http", "0.0.0.0:0"}, {"--http", "nowhere"}, {"--decline", "2"}, {"--lose", "-1"}, {"--fail", "often"}, {"--lose-times", "-1"},
		{"--slow-for", "2m"}, {"--down-for", "2m"}, {"--down-for", "1m", "--down-every", "48h"}, {"--output", "xml"}, {"extra"},
	} {
		if _, _, code := runSimulate(t.Context(), append([]string{"gateway"}, args...)...); code != 2 {
			t.Errorf("%v: exit code %d", args, code)
		}
	}
}

// TestSimulateGatewayOwnFlags: what is set for the server is not set for the gateway; what several commands share is.
func TestSimulateGatewayOwnFlags(t *testing.T) {
	t.Setenv("MILLRACE_HTTP", "127.0.0.1:1")
	t.Setenv("MILLRACE_INSECURE", "true")
	t.Setenv("MILLRACE_OUTPUT", "json")
	for path, want := range map[string][3]string{
		"simulate gateway": {gatewayAddress, "false", "json"},
		"serve":            {"127.0.0.1:1", "true"},
	} {
		c, err := settingsOf(t, path)
		if err != nil {
			t.Fatal(err)
		}
		for i, name := range []string{"http", "insecure", "output"} {
			if f := c.Flags().Lookup(name); f != nil && f.Value.String() != want[i] {
				t.Errorf("%s: --%s is %s, want %s", path, name, f.Value, want[i])
			}
		}
	}
}
