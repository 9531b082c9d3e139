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
)

// localNode is the name of a node that has its store to itself.
const localNode = "local"

// nodes shows the API who owns what.
func (n *node) nodes() httpapi.Nodes {
	if n.cluster == nil {
		return oneNode(n.store.Partitions())
	}
	return manyNodes{sharedStore{n.cluster.driver}}
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
		Answering: localNode, Partitions: int(n),
		Items: []httpapi.NodeStatus{{Name: localNode, Partitions: own, Roles: allRoles(), Feed: own, Notify: own}},
	}, nil
}

// leaseTable is what of a shared store tells who owns what.
type leaseTable interface {
	leases(ctx context.Context) ([]ownership, error)
	Members(ctx context.Context) (map[string][]string, error)
	Node() string
}

// manyNodes is the ownership of a shared store.
type manyNodes struct{ leaseTable }

// Ownership implements httpapi.Nodes.
func (n manyNodes) Ownership(ctx context.Context) (httpapi.Ownership, error) {
	all, err := n.leases(ctx)
	if err != nil {
		return httpapi.Ownership{}, err
	}
	members, err := n.Members(ctx)
	if err != nil {
		return httpapi.Ownership{}, err
	}
	o := httpapi.Ownership{Answering: n.Node()}
	byName := map[string]*httpapi.NodeStatus{}
	node := func(name string) *httpapi.NodeStatus {
		if byName[name] == nil {
			byName[name] = &httpapi.NodeStatus{Name: name}
		}
		return byName[name]
	}
	node(o.Answering)
	told := false // somebody is there to tell customers
	for name, roles := range members {
		slices.SortFunc(roles, func(a, b string) int { return slices.Index(allRoles(), a) - slices.Index(allRoles(), b) })
		node(name).Roles = roles
		told = told || slices.Contains(roles, roleNotify)
	}
	for _, share := range all {
		o.Partitions = max(o.Partitions, len(share.rows))
		for _, l := range share.rows {
			left := l.Left.Milliseconds()
			if l.Node != "" && left > 0 {
				own := share.owned(node(l.Node))
				*own = append(*own, httpapi.OwnedPartition{Partition: l.Partition, Epoch: &l.Epoch, LeaseLeft: &left})
			} else if share.role != roleNotify || told {
				none := share.none(&o)
				*none = append(*none, l.Partition)
			}
		}
	}
	for _, one := range byName {
		o.Items = append(o.Items, *one)
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
		Long: `Show which node decides which partitions of the store that several nodes share, under which epochs, and how long its leases
last if they are not renewed; of which partitions it follows the feed, and tells customers; and which roles it has. Any node answers for all; the one that did is marked by *. A server on a data folder is
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
	_, _ = fmt.Fprintln(w, "NODE\tOWNS\tPARTITIONS\tEPOCH\tLEASE LEFT\tFEED\tNOTIFY\tROLES")
	for _, n := range o.Items {
		name := n.Name
		if name == o.Answering {
			name += " *"
		}
		own := numbers(n.Partitions)
		_, _ = fmt.Fprintf(w, "%s\t%d of %d\t%s\t%s\t%s\t%s\t%s\t%s\n", name, len(own), o.Partitions, ranges(own), epochs(n.Partitions),
			leaseLeft(n.Partitions), ranges(numbers(n.Feed)), ranges(numbers(n.Notify)), cmp.Or(strings.Join(n.Roles, ","), "-"))
	}
	if len(o.Unowned)+len(o.UnownedFeed)+len(o.UnownedNotify) > 0 {
		_, _ = fmt.Fprintf(w, "(nobody)\t%d of %d\t%s\t-\t-\t%s\t%s\t-\n", len(o.Unowned), o.Partitions, ranges(o.Unowned),
			ranges(o.UnownedFeed), ranges(o.UnownedNotify))
	}
	return w.Flush()
}

// numbers are those of partitions.
func numbers(own []httpapi.OwnedPartition) (out []int) {
	for _, p := range own {
		out = append(out, p.Partition)
	}
	return out
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
