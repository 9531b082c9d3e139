// Package pgstore is the backend for several nodes: facts and views in PostgreSQL 15 or later.
//
// Any node keeps commands. Only the owner of a partition decides them, gives positions and writes views: it leases the
// partition, and each lease has an epoch. Every write is one call of a function that the migrations define, which is one
// transaction and one round trip, and checks the epoch and the head of the partition while it holds the partition's
// row. An owner that was paused and wakes up, or whose words were under way for long, finds another epoch.
//
// What is written together is gathered: requests queue while a transaction is on its way, and the next one takes all of
// them, of all partitions. With Citus each transaction is of one partition.
//
// # What may be lost, and what may not
//
// done(nil) means that the server has flushed the transaction, and with synchronous standbys that they have. Where the
// answer to a commit is lost, the driver looks for the outcome of its last decision; acceptances are simply written
// again. What is found then may still wait for a standby, so it is acknowledged after a commit behind it. For the same
// reason a statement that takes too long is given up and not cancelled: the server would end its wait for the standby
// and show to everybody what the standby lacks. As long as the standby hangs, statements that were given up keep their
// connections on the server. Who ends such a wait by hand, with pg_cancel_backend, shows commands and events to readers
// that a failover may take. The documents of views are written without waiting for the disk: they follow from facts. A database that
// lost acknowledged commits, as one restored from a backup or a standby that lagged has, is noticed by its heads, and
// the store fails rather than go on beside the truth.
//
// # Roles
//
// Migrations need a role that may create the schema and its tables: CREATE on the database, or a schema that it owns.
// A node that finds the tables up to date needs no such rights. Of a role for nodes, PostgreSQL asks:
//
//	grant connect on database d to node;
//	grant usage on schema millrace to node;
//	grant select on all tables in schema millrace to node;
//	grant insert on millrace.keys, millrace.commands, millrace.pending, millrace.outcomes, millrace.events to node;
//	grant delete on millrace.pending to node;
//	grant update on millrace.partitions to node;
//	grant insert, update on millrace.leases to node;
//	grant insert, update, delete on millrace.nodes, millrace.documents, millrace.document_keys, millrace.checkpoints to node;
//	grant execute on all functions in schema millrace to node;
//
// It can neither change nor remove facts. The same is in [RuntimeGrants], as statements.
//
// # Reports
//
// [Options.Reports] are read models as views, in a schema of their own, for a role that reads nothing else: see
// [ReportGrants]. The role that migrates makes them. A node whose role may not, or that knows older ones, leaves them as they
// are.
//
// # Pools
//
// All but notifications and migrations works behind pgbouncer in transaction mode. These need a session:
// [Options.ListenDSN] names a direct connection for both, or [Options.NoListen] leaves notifications out, and [Migrate] is
// called over a direct connection where there is something to migrate. Writes are sent without names as soon as one
// shows that a pool does not know of prepared ones; see [Open].
package pgstore

import "strings"

// RuntimeGrants are the statements that give a role what a node needs, and nothing more. They are to be run by the
// owner of the tables, after each migration.
func RuntimeGrants(schema, role string) string {
	text := strings.NewReplacer("S", quoted(schema), "R", quoted(role)).Replace(`grant usage on schema S to R;
grant select on all tables in schema S to R;
grant insert on S.keys, S.commands, S.pending, S.outcomes, S.events to R;
grant delete on S.pending to R;
grant update on S.partitions to R;
grant insert, update on S.leases to R;
grant insert, update, delete on S.nodes, S.documents, S.document_keys, S.checkpoints to R;
grant execute on all functions in schema S to R;
`)
	return text
}
