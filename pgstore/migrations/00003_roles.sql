-- Beside the deciding of a partition, whose owner is in its own row, other work on it has owners of its own, each by a role.

create table {schema}.leases (
	partition   integer not null,
	role        text collate "C" not null,
	epoch       bigint not null default 0, -- the fencing token of the role: rises with each owner
	owner       text not null default '',
	lease_until timestamptz not null default '-infinity',
	primary key (partition, role)
) with (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

-- A node is there for each of its roles by itself: one that comes back with fewer is not waited for in the others.
alter table {schema}.nodes add column role text collate "C" not null default 'command';
alter table {schema}.nodes drop constraint nodes_pkey;
alter table {schema}.nodes add primary key (name, role);

-- The role whose epoch a checkpoint is written under; empty for the deciding.
alter type {schema}.checkpoint_row add attribute role text;

-- acquire_role is acquire for a role. It returns the epoch, or null where the partition is somebody else's.
create function {schema}.acquire_role(p_partition integer, p_role text, p_node text, p_ttl interval) returns bigint
language plpgsql set lock_timeout = '5s' as $$
declare
	n bigint;
begin
	insert into {schema}.leases (partition, role) values (p_partition, p_role) on conflict (partition, role) do nothing;
	perform 1 from {schema}.leases l where l.partition = p_partition and l.role = p_role
		and (l.owner = '' or l.owner = p_node or l.lease_until < clock_timestamp()) for update;
	if not found then
		return null;
	end if;
	update {schema}.leases l
		set epoch = l.epoch + 1, owner = p_node, lease_until = clock_timestamp() + p_ttl
		where l.partition = p_partition and l.role = p_role
		returning l.epoch into n;
	return n;
end $$;

-- renew_role extends leases and returns the partitions that are still the caller's.
create function {schema}.renew_role(p_role text, r_partition integer[], r_epoch bigint[], p_ttl interval) returns setof integer
language plpgsql set lock_timeout = '5s' as $$
begin
	perform 1 from {schema}.leases l where l.partition = any(r_partition) and l.role = p_role order by l.partition for no key update;
	return query update {schema}.leases l
		set lease_until = clock_timestamp() + p_ttl
		from unnest(r_partition, r_epoch) u(partition, epoch)
		where l.partition = u.partition and l.role = p_role and l.epoch = u.epoch
		returning l.partition;
end $$;

-- release_role ends leases at once.
create function {schema}.release_role(p_role text, r_partition integer[], r_epoch bigint[]) returns void
language plpgsql set lock_timeout = '5s' as $$
begin
	perform 1 from {schema}.leases l where l.partition = any(r_partition) and l.role = p_role order by l.partition for no key update;
	update {schema}.leases l
		set lease_until = '-infinity', owner = ''
		from unnest(r_partition, r_epoch) u(partition, epoch)
		where l.partition = u.partition and l.role = p_role and l.epoch = u.epoch;
end $$;

-- join says that a node is there for another while, in a role, and returns who is in that role. Nobody waits for the disk for that.
drop function {schema}.join_nodes(text, interval);
create function {schema}.join_nodes(p_name text, p_role text, p_ttl interval) returns setof text
language plpgsql as $$
begin
	perform set_config('synchronous_commit', 'off', true);
	perform set_config('lock_timeout', '5s', true);
	insert into {schema}.nodes as n (name, role, until) values (p_name, p_role, clock_timestamp() + p_ttl)
		on conflict (name, role) do update set until = excluded.until;
	delete from {schema}.nodes where until < clock_timestamp() - interval '1 hour'; -- random names come and go
	return query select n.name from {schema}.nodes n where n.role = p_role and n.until > clock_timestamp() order by n.name;
end $$;

-- commit_views writes documents and the checkpoints that go with them. It raises
--   MR001 where a partition has another owner, for the role of all rows or, without one, for the deciding;
--   MR003 where a checkpoint is not the one that the caller knows;
--   unique_violation where it is told that documents or keys are new (sure), and they are not.
-- Views follow from facts, so nobody waits for the disk: what a crash takes is made again.
create or replace function {schema}.commit_views(
	b {schema}.checkpoint_row[], d {schema}.document_row[], x {schema}.key_row[], r {schema}.gone_row[], y {schema}.key_row[],
	sure boolean)
returns void language plpgsql as $$
declare
	n integer;
begin
	perform set_config('synchronous_commit', 'off', true);
	perform set_config('lock_timeout', '5s', true);
	-- A share of the row: beside the owner's own commits of facts, but not beside a change of owner.
	if b[1].role = '' then
		perform 1 from {schema}.partitions p
			join unnest(b) u on p.partition = u.partition and p.epoch = u.epoch -- the fence
			where u.role = ''
			order by p.partition for key share of p;
	else
		perform 1 from {schema}.leases l
			join unnest(b) u on l.partition = u.partition and l.role = u.role and l.epoch = u.epoch -- the fence of a role
			order by l.partition for key share of l;
	end if;
	get diagnostics n = row_count;
	if n <> cardinality(b) then
		raise exception 'a partition has another owner' using errcode = 'MR001';
	end if;
	select count(*) into n
		from unnest(b) u
		left join {schema}.checkpoints c on c.partition = u.partition and c.consumer = u.consumer
		where coalesce(c.token, 0) = u.before;
	if n <> cardinality(b) then
		raise exception 'a checkpoint was moved by another commit' using errcode = 'MR003';
	end if;
	insert into {schema}.checkpoints as c (partition, consumer, position, token, before)
		select u.partition, u.consumer, u.position, u.token, u.before
		from unnest(b) u
		order by u.partition, u.consumer
		on conflict (partition, consumer) do update
			set position = excluded.position, token = excluded.token, before = excluded.before
			where c.token = excluded.before;
	get diagnostics n = row_count;
	if n <> cardinality(b) then
		raise exception 'a checkpoint was moved by another commit' using errcode = 'MR003';
	end if;
	if cardinality(y) > 0 then
		delete from {schema}.document_keys k
			using unnest(y) u
			where k.partition = u.partition and k.collection = u.collection and k.idx = u.idx and k.key = u.key and k.id = u.id;
	end if;
	if cardinality(r) > 0 then
		delete from {schema}.documents d
			using unnest(r) u
			where d.partition = u.partition and d.collection = u.collection and d.id = u.id;
	end if;
	if cardinality(d) = 0 then
		return;
	end if;
	if sure then
		perform {schema}.add_documents(d, x);
	else
		perform {schema}.put_documents(d, x);
	end if;
end $$;
