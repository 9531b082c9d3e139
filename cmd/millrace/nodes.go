package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace-io/millrace/httpapi"
	"github.com/millrace-io/millrace/internal/client"
	"github.com/millrace-io/millrace/internal/jsonx"
	"github.com/millrace-io/millrace/pgstore"
)

// localNode is the name of a node that has its store to itself.
const localNode = "local"

// nodes shows the API who owns what.
func (n *node) nodes() httpapi.Nodes {
	if n.cluster == nil {
		return oneNode(n.store.Partitions())
	}
	return manyNodes{n.cluster.driver}
}

// oneNode is the ownership of a store of one process, by its partitions.
type oneNode int

// Ownership implements httpapi.Nodes.
func (n oneNode) Ownership(context.Context) (httpapi.Ownership, error) {
	own := make([]httpapi.OwnedPartition, n)
	for p := range own {
		own[p].Partition = p
	}
	return httpapi.Ownership{
		Answering: localNode, Partitions: int(n), Items: []httpapi.NodeStatus{{Name: localNode, Partitions: own}},
	}, nil
}

// leaseTable is what of a shared store tells who owns what.
type leaseTable interface {
	Nodes(ctx context.Context) ([]pgstore.Lease, error)
	Node() string
}

// manyNodes is the ownership of a shared store.
type manyNodes struct{ leaseTable }

// Ownership implements httpapi.Nodes.
func (n manyNodes) Ownership(ctx context.Context) (httpapi.Ownership, error) {
	all, err := n.Nodes(ctx)
	if err != nil {
		return httpapi.Ownership{}, err
	}
	o := httpapi.Ownership{Answering: n.Node(), Partitions: len(all)}
	own := map[string][]httpapi.OwnedPartition{o.Answering: nil}
	for _, l := range all {
		left := l.Left.Milliseconds()
		if l.Node == "" || left <= 0 {
			o.Unowned = append(o.Unowned, l.Partition)
			continue
		}
		own[l.Node] = append(own[l.Node], httpapi.OwnedPartition{Partition: l.Partition, Epoch: &l.Epoch, LeaseLeft: &left})
	}
	for name, partitions := range own {
		o.Items = append(o.Items, httpapi.NodeStatus{Name: name, Partitions: partitions})
	}
	slices.SortFunc(o.Items, func(a, b httpapi.NodeStatus) int { return strings.Compare(a.Name, b.Name) })
	return o, nil
}

func newNodesCommand() *cobra.Command {
	var servers []string
	var output string
	var retryFor time.Duration
	c := &cobra.Command{
		Use: "nodes", Short: "Show which node owns which partitions",
		Long: `Show which node owns which partitions of the store that several nodes share, under which epochs, and how long its leases
last if they are not renewed. Any node answers for all; the one that did is marked by *. A server on a data folder is
one node, which owns all partitions for good.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			if retryFor < 0 {
				return badSetting("retry-for", "must not be below zero")
			}
			api, err := newClient(servers, &client.Options{RetryFor: retryFor})
			if err != nil {
				return err
			}
			defer api.Close()
			return showNodes(c, api, output)
		},
	}
	serverFlag(c, &servers)
	c.Flags().DurationVar(&retryFor, "retry-for", client.DefaultRetryFor, "for how long all servers may be away or too busy")
	outputFlag(c, &output)
	return c
}

func showNodes(c *cobra.Command, api *client.Client, output string) error {
	r, err := api.Get(c.Context(), "/v1/nodes")
	if err == nil {
		err = r.Err()
	}
	if err != nil {
		return err
	}
	if output == "json" {
		_, err = fmt.Fprintf(c.OutOrStdout(), "%s\n", r.Body)
		return err
	}
	var o httpapi.Ownership
	if err := jsonx.Unmarshal(r.Body, &o); err != nil {
		return fmt.Errorf("the server's answer: %w", err)
	}
	w := tabwriter.NewWriter(c.OutOrStdout(), 0, 4, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "NODE\tOWNS\tPARTITIONS\tEPOCH\tLEASE LEFT")
	for _, n := range o.Items {
		name := n.Name
		if name == o.Answering {
			name += " *"
		}
		var own []int
		for _, p := range n.Partitions {
			own = append(own, p.Partition)
		}
		_, _ = fmt.Fprintf(w, "%s\t%d of %d\t%s\t%s\t%s\n", name, len(own), o.Partitions, ranges(own), epochs(n.Partitions), leaseLeft(n.Partitions))
	}
	if len(o.Unowned) > 0 {
		_, _ = fmt.Fprintf(w, "(nobody)\t%d of %d\t%s\t-\t-\n", len(o.Unowned), o.Partitions, ranges(o.Unowned))
	}
	return w.Flush()
}

// ranges writes numbers in order the short way: 0-4,7.
func ranges(numbers []int) string {
	var out []string
	for i := 0; i < len(numbers); {
		j := i
		for j+1 < len(numbers) && numbers[j+1] == numbers[j]+1 {
			j++
		}
		one := strconv.Itoa(numbers[i])
		if j > i {
			one += "-" + strconv.Itoa(numbers[j])
		}
		out, i = append(out, one), j+1
	}
	return cmp.Or(strings.Join(out, ","), "-")
}

// epochs are the lowest and the highest of a node's: each partition counts its own.
func epochs(own []httpapi.OwnedPartition) string {
	var all []uint64
	for _, p := range own {
		if p.Epoch != nil {
			all = append(all, *p.Epoch)
		}
	}
	switch {
	case len(all) == 0:
		return "-"
	case slices.Min(all) == slices.Max(all):
		return strconv.FormatUint(all[0], 10)
	}
	return fmt.Sprintf("%d-%d", slices.Min(all), slices.Max(all))
}

// leaseLeft is the shortest of a node's leases.
func leaseLeft(own []httpapi.OwnedPartition) string {
	var all []int64
	for _, p := range own {
		if p.LeaseLeft != nil {
			all = append(all, *p.LeaseLeft)
		}
	}
	if len(all) == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1fs", (time.Duration(slices.Min(all)) * time.Millisecond).Seconds())
}
