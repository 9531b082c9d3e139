package millracetest_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millrace-io/millrace"
	"github.com/millrace-io/millrace/command"
	"github.com/millrace-io/millrace/feed"
	"github.com/millrace-io/millrace/localstore"
	"github.com/millrace-io/millrace/projection"
)

// A voucher is issued once with an amount in cents, and redeemed until nothing is left of it.
type (
	issueVoucher struct {
		Cents int64 `json:"cents"`
	}
	redeemVoucher struct {
		Cents int64 `json:"cents"`
	}
	voucherIssued struct {
		Cents int64 `json:"cents"`
	}
	voucherRedeemed struct {
		Cents int64 `json:"cents"`
	}

	// voucher is the state, and the document of the read model.
	voucher struct {
		Issued bool  `json:"issued"`
		Left   int64 `json:"left"`
	}
)

// Validate checks the form. The HTTP door answers what fails here with 400 and keeps nothing; a command that comes to
// Accept by another way becomes a dead letter.
func (c *issueVoucher) Validate() []millrace.FieldError {
	if c.Cents < 1 {
		return []millrace.FieldError{{Pointer: "/cents", Detail: "must be at least 1"}}
	}
	return nil
}

func vouchers() millrace.Domain[voucher] {
	return millrace.Domain[voucher]{
		Category: "voucher", StateVersion: 1,
		Initial: func(string) voucher { return voucher{} },
		Decide:  decideVoucher,
		Evolve:  evolveVoucher,
		Commands: []millrace.Message{
			millrace.MessageOf[issueVoucher]("IssueVoucher"), millrace.MessageOf[redeemVoucher]("RedeemVoucher"),
		},
		Events: []millrace.Message{
			millrace.MessageOf[voucherIssued]("VoucherIssued"), millrace.MessageOf[voucherRedeemed]("VoucherRedeemed"),
		},
	}
}

func decideVoucher(v voucher, wish any, _ time.Time) ([]any, *millrace.Refusal) {
	switch c := wish.(type) {
	case *issueVoucher:
		if v.Issued {
			return nil, &millrace.Refusal{Kind: millrace.RefusedConflict, Code: "voucher_exists", Detail: "it was issued before"}
		}
		return []any{&voucherIssued{Cents: c.Cents}}, nil
	case *redeemVoucher:
		if c.Cents < 1 || c.Cents > v.Left {
			return nil, &millrace.Refusal{Kind: millrace.RefusedConflict, Code: "voucher_insufficient", Detail: "less is left"}
		}
		return []any{&voucherRedeemed{Cents: c.Cents}}, nil
	}
	panic("a command that is not declared") // becomes a dead letter
}

func evolveVoucher(v voucher, event any) voucher {
	switch e := event.(type) {
	case *voucherIssued:
		return voucher{Issued: true, Left: e.Cents}
	case *voucherRedeemed:
		v.Left -= e.Cents
	}
	return v
}

// voucherTable has one index: how much is left, as text that sorts as the numbers do.
var voucherTable = millrace.NewTable("vouchers", []string{"left"}, func(v *voucher) []string {
	return []string{millrace.Key(fmt.Sprintf("%012d", v.Left))}
})

func voucherModel() millrace.Projection {
	return millrace.Projection{
		Name: "vouchers", Version: 1, Categories: []string{"voucher"}, Tables: []*millrace.Table{voucherTable.Table},
		Project: func(views millrace.Views, e *millrace.Recorded) error {
			v, err := voucherTable.Get(views, e.Stream.ID())
			if err != nil {
				return err
			}
			if v == nil {
				v = &voucher{}
			}
			next := evolveVoucher(*v, e.Body)
			voucherTable.Put(views, e.Stream.ID(), &next)
			return nil
		},
	}
}

// Example brings a domain of its own: it keeps commands durably, decides them, and reads the read model back.
func Example() {
	if err := runVouchers(context.Background()); err != nil {
		fmt.Println(err)
	}
	// Output:
	// v-1: decided, version 1
	// v-1: decided, version 2
	// v-1: refused, voucher_insufficient
	// left: 550
}

func runVouchers(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", "vouchers-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	store, err := localstore.Open(dir, &localstore.Options{SegmentSize: 1 << 20})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	registry, err := millrace.NewRegistry(vouchers())
	if err != nil {
		return err
	}
	processor := command.New(store, registry, nil)
	models, err := projection.New(ctx, store, []millrace.Projection{voucherModel()}, projection.Options{
		Run: func(ctx context.Context, c millrace.Consumer) error {
			return feed.New(store, registry, c, nil).Run(ctx)
		},
	})
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	g, gctx := errgroup.WithContext(running)
	g.Go(func() error { return processor.Run(gctx) })
	g.Go(func() error { return models.Run(gctx) })
	defer func() { stop(); err = errors.Join(err, g.Wait()) }() // before the store is closed
	return useVouchers(ctx, store, processor, models.Model("vouchers"))
}

// useVouchers knows the contracts only: where the store is, and who decides, is the caller's business.
func useVouchers(ctx context.Context, store *millrace.Store, intake millrace.Intake, model millrace.ReadModel) error {
	stream := millrace.NewStream("voucher", "v-1")
	var last millrace.Outcome
	for i, c := range []millrace.Command{
		{Type: "IssueVoucher", Data: []byte(`{"cents":1000}`)},
		{Type: "RedeemVoucher", Data: []byte(`{"cents":450}`)},
		{Type: "RedeemVoucher", Data: []byte(`{"cents":999}`)},
	} {
		c.ID, c.Stream = fmt.Sprintf("command-%d", i), stream
		receipt, err := intake.Accept(ctx, c) // on disk from here on
		if err != nil {
			return err
		}
		if last, err = receipt.Wait(ctx); err != nil {
			return err
		}
		if last.Refusal != nil {
			fmt.Printf("%s: %s, %s\n", stream.ID(), last.Status, last.Refusal.Code)
			continue
		}
		fmt.Printf("%s: %s, version %d\n", stream.ID(), last.Status, last.Version)
	}
	if err := model.Wait(ctx, store.Cursor(&last)); err != nil {
		return err
	}
	doc, err := model.Get(ctx, voucherTable.Table, stream.Partition(store.Partitions()), stream.ID())
	if err != nil {
		return err
	}
	v, err := voucherTable.Decode(doc.Data)
	if err != nil {
		return err
	}
	fmt.Println("left:", v.Left)
	return nil
}
