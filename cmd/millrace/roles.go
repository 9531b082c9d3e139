package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/millrace-io/millrace/httpapi"
	"github.com/millrace-io/millrace/lease"
	"github.com/millrace-io/millrace/pgstore"
)

// The roles that a process can have. What has an owner for each partition has its leases under the same names.
const (
	roleIntake  = "intake"  // the API: commands are accepted, and what there is can be read
	roleCommand = "command" // commands are decided
	roleFeed    = "feed"    // read models, snapshots and processes follow the feed
	roleNotify  = "notify"  // customers are told
)

// allRoles are all of them, in the order in which they are shown.
func allRoles() []string { return []string{roleIntake, roleCommand, roleFeed, roleNotify} }

// roles are those of a process; none named is all.
type roles []string

func (r roles) has(role string) bool { return len(r) == 0 || slices.Contains(r, role) }

// all says whether it has all roles.
func (r roles) all() bool {
	return !slices.ContainsFunc(allRoles(), func(role string) bool { return !r.has(role) })
}

// checkRoles says what is wrong with the roles of the settings.
func (o *serveOptions) checkRoles() error {
	for _, r := range o.roles {
		if !slices.Contains(allRoles(), r) {
			return badSetting("roles", "must be some of %s", strings.Join(allRoles(), ", "))
		}
	}
	switch r := roles(o.roles); {
	case o.store == "" && !r.all():
		return badSetting("roles", "need a store that several processes share: a data folder has one process with all roles")
	case o.demo && !r.has(roleIntake):
		return badSetting("demo", "needs the role intake")
	}
	return nil
}

// attend says that this node is there to take requests, until ctx ends: such a node owns nothing by which others could tell.
func (c *cluster) attend(ctx context.Context) error {
	t := time.NewTicker(leaseEvery)
	defer t.Stop()
	for {
		// What fails is tried again; until then others may not show it.
		_ = c.driver.Attend(ctx, roleIntake)
		select {
		case <-t.C:
			continue
		case <-ctx.Done():
		case <-c.life.Done():
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaseEvery)
		defer cancel()
		_ = c.driver.Depart(ctx, roleIntake) // or it is forgotten by itself
		return nil
	}
}

// lead takes this node's share of the partitions in a role, until ctx ends or the node is told to stop.
func (c *cluster) lead(ctx context.Context, m *lease.Manager) error {
	led, end := context.WithCancel(ctx)
	defer end()
	defer context.AfterFunc(c.life, end)()
	return m.Run(led)
}

// newLeases makes the managers of the roles beside the deciding. They take what this node decides first, so that most of what
// one node does with a partition it finds in its own memory.
func (c *cluster) newLeases(partitions int, o lease.Options) {
	manager := func(r pgstore.Role, serve func(ctx context.Context, partition int)) *lease.Manager {
		o := o
		o.Node, o.Partitions, o.Every, o.Prefer = c.driver.Node(), partitions, leaseEvery, c.driver.Owned
		o.Serve = func(ctx context.Context, partition int, _ uint64) error {
			serve(ctx, partition)
			return nil
		}
		return lease.New(c.driver.Leases(r), o)
	}
	// Consumers go by what is owned (see follow), and the calls of processes by what is served.
	serving := func(role string) func(context.Context, int) {
		return func(ctx context.Context, partition int) {
			c.calls[role].serve(partition)
			<-ctx.Done()
			c.calls[role].leave(partition)
		}
	}
	c.feed = manager(pgstore.Feed, serving(roleFeed))
	c.notify = manager(pgstore.Notify, serving(roleNotify))
}

// ownership is who owns what in a role.
type ownership struct {
	role  string
	rows  []pgstore.Lease
	owned func(*httpapi.NodeStatus) *[]httpapi.OwnedPartition
	none  func(*httpapi.Ownership) *[]int
}

// unowned counts the partitions that nobody owns, by role. Of the notifications only where some node is there to tell customers:
// whether they are to be told at all is a matter of settings.
func (c *cluster) unowned(ctx context.Context) (map[string]int, error) {
	o, err := manyNodes{sharedStore{c.driver}}.Ownership(ctx)
	return map[string]int{roleCommand: len(o.Unowned), roleFeed: len(o.UnownedFeed), roleNotify: len(o.UnownedNotify)}, err
}

// unattended is a check that tells for how many partitions nobody has a role, and what comes of it.
func (c *cluster) unattended(ctx context.Context, role, what string) error {
	n, err := c.unowned(ctx)
	if err == nil && n[role] > 0 {
		err = fmt.Errorf("%s: %d partitions have no owner", what, n[role])
	}
	return err
}

// sharedStore is a driver as the API's view of who owns what has it.
type sharedStore struct{ *pgstore.Driver }

// shares are the roles that own partitions, without who does.
func shares() []ownership {
	return []ownership{
		{
			role:  roleCommand,
			owned: func(n *httpapi.NodeStatus) *[]httpapi.OwnedPartition { return &n.Partitions },
			none:  func(o *httpapi.Ownership) *[]int { return &o.Unowned },
		}, {
			role:  roleFeed,
			owned: func(n *httpapi.NodeStatus) *[]httpapi.OwnedPartition { return &n.Feed },
			none:  func(o *httpapi.Ownership) *[]int { return &o.UnownedFeed },
		}, {
			role:  roleNotify,
			owned: func(n *httpapi.NodeStatus) *[]httpapi.OwnedPartition { return &n.Notify },
			none:  func(o *httpapi.Ownership) *[]int { return &o.UnownedNotify },
		},
	}
}

// leases are those of all roles that own partitions.
func (s sharedStore) leases(ctx context.Context) ([]ownership, error) {
	out := shares()
	for i, read := range []func(context.Context) ([]pgstore.Lease, error){s.Nodes, s.Leases(pgstore.Feed).Nodes, s.Leases(pgstore.Notify).Nodes} {
		var err error
		if out[i].rows, err = read(ctx); err != nil {
			return nil, err
		}
	}
	return out, nil
}
