package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"
	_ "time/tzdata" // --timezone works where the machine has no zones, in containers above all

	"github.com/spf13/cobra"

	"github.com/millrace-io/millrace/internal/client"
	"github.com/millrace-io/millrace/internal/jsonx"
	"github.com/millrace-io/millrace/internal/retail"
	"github.com/millrace-io/millrace/internal/retail/importer"
)

// listedRefusals is how many refusals and dead letters are shown on the way; --refusals FILE keeps all.
const listedRefusals = 10

// importFlags are the flags of import online-retail.
type importFlags struct {
	servers     []string
	stock       string
	concurrency int
	timezone    string
	output      string
	quiet       bool
	refusals    string
	retryFor    time.Duration
	decideFor   time.Duration
	fulfil      bool
}

func newImportCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "import",
		Short: "Send real orders from a file to a running server",
	}
	cmd.AddCommand(newImportRetailCommand())
	return cmd
}

func newImportRetailCommand() *cobra.Command {
	var f importFlags
	cmd := &cobra.Command{
		Use:   "online-retail FILE",
		Short: `Import a file of the "Online Retail" data set`,
		Long: `Reads a CSV file of the "Online Retail" data set (https://doi.org/10.24432/C5BW33), plain or gzip; FILE may be - for
standard input. An invoice becomes one order, an invoice whose number starts with C one return. They are sent in file order,
and in order for each customer.

Every invoice ends as exactly one of: order, return, refused (the rules say no), dead letter (it cannot be mapped), or
replayed (an earlier import brought it). So the command can be repeated at any time, and changes nothing the second time.

--server may be given several times, for servers that share a store. Requests go round; where a server does not answer, the
same request goes to the next one, and that server is left alone for a while. The import ends when no server has answered for
as long as --retry-for says.

With --stock receive the goods of an order are received into stock before it is placed. Postage, fees, discounts, donations,
samples, corrections and vouchers (POST, DOT, C2, C3, AMAZONFEE, BANK CHARGES, D, CRUK, S, M, B, PADS, ADJUST…, TEST…, gift_…)
are not goods.

With --fulfil orders carry themselves through: what they order is received into stock before they are placed, every line of it,
and at the end the command waits until each order has come to its end. Orders that have not are counted as unfinished, and
the exit code is 3. Without --fulfil orders wait for commands.

The closing object counts invoices, the lines of the file, and the units and totals (in pence) of the orders and returns
that this run brought.`,
		Example: "  millrace import online-retail online-retail.csv.gz --server http://127.0.0.1:8080\n" +
			"  millrace import online-retail online-retail.csv.gz --server http://node-1:8080 --server http://node-2:8080\n" +
			"  zcat online-retail.csv.gz | millrace import online-retail - --output json",
		Args:         usageOf(cobra.ExactArgs(1)),
		SilenceUsage: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return importRetail(cmd, &f, args[0])
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return client.WithCode(client.ExitUsage, err) })
	flags := cmd.Flags()
	serverFlag(cmd, &f.servers)
	flags.StringVar(&f.stock, "stock", "ignore", "receive the goods of orders into stock first: receive or ignore")
	flags.BoolVar(&f.fulfil, "fulfil", false, "have each order carried through, with stock received for all of its lines, and wait for its end")
	flags.IntVar(&f.concurrency, "concurrency", importer.DefaultConcurrency, "how many invoices are sent at the same time")
	flags.StringVar(&f.timezone, "timezone", "UTC", "zone of the file's times, which name none, such as Europe/London")
	flags.StringVar(&f.output, "output", "text", "form of the result: text or json")
	flags.BoolVar(&f.quiet, "quiet", false, "show neither progress nor refusals")
	flags.StringVar(&f.refusals, "refusals", "", "write every refusal and dead letter to `FILE`, as NDJSON")
	flags.DurationVar(&f.retryFor, "retry-for", client.DefaultRetryFor, "for how long all servers may be away or too busy")
	flags.DurationVar(&f.decideFor, "decide-for", importer.DefaultSettle, "for how long a server that only accepts may leave an invoice undecided")
	return cmd
}

// usageOf gives the errors of an argument check the exit code of usage.
func usageOf(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return client.WithCode(client.ExitUsage, err)
		}
		return nil
	}
}

// check says what is wrong with the flags.
func (f *importFlags) check() (*time.Location, error) {
	switch {
	case f.stock != "receive" && f.stock != "ignore":
		return nil, client.WithCode(client.ExitUsage, errors.New("--stock must be receive or ignore"))
	case f.concurrency < 1 || f.concurrency > importer.MaxConcurrency:
		return nil, client.WithCode(client.ExitUsage, fmt.Errorf("--concurrency must be 1 to %d", importer.MaxConcurrency))
	case f.retryFor < 0:
		return nil, badSetting("retry-for", "must not be below zero")
	case f.decideFor <= 0:
		return nil, client.WithCode(client.ExitUsage, errors.New("--decide-for must be a duration above zero, such as 2m"))
	}
	if err := checkOutput(f.output); err != nil {
		return nil, err
	}
	zone, err := time.LoadLocation(f.timezone)
	if err != nil {
		return nil, client.WithCode(client.ExitUsage, errors.New("--timezone must be the name of a time zone, such as Europe/London"))
	}
	return zone, nil
}

func importRetail(cmd *cobra.Command, f *importFlags, name string) (err error) {
	zone, err := f.check()
	if err != nil {
		return err
	}
	c, err := newClient(f.servers, &client.Options{RetryFor: f.retryFor, UserAgent: "millrace-import"})
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt)
	defer stop()

	file, err := readRetail(cmd.InOrStdin(), name, &retail.Options{Location: zone, Fulfil: f.fulfil})
	if err != nil {
		return err
	}
	rejections, err := newRejectionLog(cmd.ErrOrStderr(), f.refusals, f.quiet)
	if err != nil {
		return err
	}
	defer func() {
		if e := rejections.close(); err == nil {
			err = e
		}
	}()
	bar := newProgress(cmd.ErrOrStderr(), "invoices", file.Len(), f.quiet)
	sent := 0
	fulfilled := laterProgress{out: cmd.ErrOrStderr(), what: "orders", quiet: f.quiet, before: bar}
	sum, err := importer.Run(ctx, c, file, &importer.Options{
		ReceiveStock: f.stock == "receive" || f.fulfil, Concurrency: f.concurrency, Settle: f.decideFor, Fulfil: f.fulfil,
		OnFulfilled: func(done, of int) { fulfilled.set(done, of) },
		OnDone: func(_ *retail.Invoice, _ importer.Outcome, r *importer.Rejection) error {
			sent++
			bar.set(sent)
			return rejections.add(r)
		},
	})
	bar.end()
	fulfilled.end()
	rejections.print()
	if err != nil {
		return brokenOff(cmd.ErrOrStderr(), err, sum, file.Len())
	}
	if err := sum.Check(file.Len()); err != nil {
		return err
	}
	if err := printImport(cmd.OutOrStdout(), f.output, sum); err != nil {
		return err
	}
	if sum.Unfinished > 0 {
		return client.WithCode(client.ExitCheck, fmt.Errorf("%d orders have not come to their ends", sum.Unfinished))
	}
	return nil
}

func readRetail(stdin io.Reader, name string, o *retail.Options) (*retail.File, error) {
	in := stdin
	if name != "-" {
		opened, err := os.Open(name) //nolint:gosec // the user names it
		if err != nil {
			return nil, client.WithCode(client.ExitUsage, err)
		}
		defer opened.Close() //nolint:errcheck // it was only read
		in = opened
	}
	return retail.Read(in, o)
}

// brokenOff tells that an import can be repeated. An interrupted one is no failure of anything else.
func brokenOff(out io.Writer, err error, sum *importer.Summary, of int) error {
	_, _ = fmt.Fprintf(out, "stopped after %d of %d invoices; run it again to go on: what the server has is not sent twice\n", sum.Invoices, of)
	if errors.Is(err, context.Canceled) {
		return client.WithCode(client.ExitInterrupted, errors.New("interrupted"))
	}
	return err
}

func printImport(out io.Writer, form string, s *importer.Summary) error {
	if form == "json" {
		line, err := jsonx.Marshal(s)
		if err != nil {
			return err
		}
		_, err = out.Write(append(line, '\n'))
		return err
	}
	w := bufio.NewWriter(out)
	row := func(name string, n int) { _, _ = fmt.Fprintf(w, "%-14s %9d\n", name, n) } // Flush reports every error
	row("invoices", s.Invoices)
	row("  orders", s.Orders)
	row("  returns", s.Returns)
	row("  refused", s.Refused)
	row("  dead letters", s.DeadLetters)
	row("  replayed", s.Replayed)
	row("lines", s.Lines)
	row("units ordered", int(s.Units))
	row("units returned", int(s.ReturnedUnits))
	if s.TotalMinor != nil && s.ReturnedMinor != nil {
		_, _ = fmt.Fprintf(w, "%-14s %9d.%02d %s\n", "ordered", *s.TotalMinor/100, *s.TotalMinor%100, s.Currency)
		_, _ = fmt.Fprintf(w, "%-14s %9d.%02d %s\n", "returned", *s.ReturnedMinor/100, *s.ReturnedMinor%100, s.Currency)
	}
	if n := s.StockReceipts + s.StockReplayed + s.StockRefused; n > 0 {
		row("stock receipts", s.StockReceipts)
		row("  replayed", s.StockReplayed)
		row("  refused", s.StockRefused)
	}
	for _, state := range slices.Sorted(maps.Keys(s.Fulfilment)) {
		row(strings.ReplaceAll(state, "_", " "), s.Fulfilment[state])
	}
	if s.Unfinished > 0 {
		row("unfinished", s.Unfinished)
	}
	_, _ = fmt.Fprintf(w, "%-14s %9.1f\n", "seconds", s.Seconds)
	return w.Flush()
}

// rejectionLog keeps the first refusals and dead letters for the terminal, and all of them in a file.
type rejectionLog struct {
	out   io.Writer
	quiet bool
	first []importer.Rejection
	count int
	file  *os.File
	lines *bufio.Writer
}

func newRejectionLog(out io.Writer, name string, quiet bool) (*rejectionLog, error) {
	l := &rejectionLog{out: out, quiet: quiet}
	if name == "" {
		return l, nil
	}
	file, err := os.Create(name) //nolint:gosec // the user names it
	if err != nil {
		return nil, client.WithCode(client.ExitUsage, err)
	}
	l.file, l.lines = file, bufio.NewWriter(file)
	return l, nil
}

func (l *rejectionLog) add(r *importer.Rejection) error {
	if r == nil {
		return nil
	}
	l.count++
	if len(l.first) < listedRefusals {
		l.first = append(l.first, *r)
	}
	if l.lines == nil {
		return nil
	}
	line, err := jsonx.Marshal(r)
	if err != nil {
		return err
	}
	_, err = l.lines.Write(append(line, '\n'))
	return err
}

// print shows the first ones.
func (l *rejectionLog) print() {
	if l.quiet {
		return
	}
	for i := range l.first {
		r := &l.first[i]
		_, _ = fmt.Fprintf(l.out, "%s %s (line %d of the file): %s: %s\n", r.Outcome, r.Invoice, r.Line, r.Code, r.Detail)
	}
	if rest := l.count - len(l.first); rest > 0 {
		hint := "; --refusals FILE writes all of them"
		if l.file != nil {
			hint = "; all are in " + l.file.Name()
		}
		_, _ = fmt.Fprintf(l.out, "… and %d more%s\n", rest, hint)
	}
}

func (l *rejectionLog) close() error {
	if l.file == nil {
		return nil
	}
	return errors.Join(l.lines.Flush(), l.file.Close())
}
