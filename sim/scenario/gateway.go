package scenario

import (
	"context"
	"fmt"
	"net/http"
	"net/url"

	"github.com/millrace-io/millrace/internal/client"
	"github.com/millrace-io/millrace/internal/jsonx"
	"github.com/millrace-io/millrace/sim/gateway"
)

// Remote is the simulator at a URL. closing gives its connections up.
func Remote(to string) (g Gateway, closing func(), err error) {
	c, err := client.New([]string{to}, &client.Options{RetryFor: client.DefaultRetryFor, UserAgent: "millrace-sim"})
	if err != nil {
		return nil, nil, err
	}
	return &remote{c}, c.Close, nil
}

type remote struct{ c *client.Client }

func (r *remote) SetFaults(ctx context.Context, f *gateway.Faults) error {
	body, err := jsonx.Marshal(f)
	if err != nil {
		return err
	}
	res, err := r.c.Post(ctx, "/v1/faults", "faults", body, 0)
	if err == nil {
		err = res.Err()
	}
	if err != nil {
		return fmt.Errorf("the simulated gateway: %w", err)
	}
	return nil
}

func (r *remote) Order(ctx context.Context, id string) (*gateway.OrderLedger, error) {
	res, err := r.c.Get(ctx, "/v1/ledger/orders/"+url.PathEscape(id))
	switch {
	case err != nil:
		return nil, fmt.Errorf("the simulated gateway: %w", err)
	case res.Status == http.StatusNotFound:
		return nil, nil //nolint:nilnil // as said
	case res.Err() != nil:
		return nil, fmt.Errorf("the simulated gateway: %w", res.Err())
	}
	l := &gateway.OrderLedger{}
	if err := jsonx.Unmarshal(res.Body, l); err != nil {
		return nil, fmt.Errorf("the simulated gateway: %w", err)
	}
	return l, nil
}

// Local is a simulator in this process.
func Local(g *gateway.Gateway) Gateway { return local{g} }

type local struct{ g *gateway.Gateway }

func (l local) SetFaults(_ context.Context, f *gateway.Faults) error { return l.g.SetFaults(f) }

func (l local) Order(_ context.Context, id string) (*gateway.OrderLedger, error) {
	o, ok := l.g.Order(id)
	if !ok {
		return nil, nil //nolint:nilnil // as said
	}
	return &o, nil
}
