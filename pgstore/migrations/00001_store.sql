-- The tables of a store and the functions that write to them. {schema} stands for the schema's quoted name.
--
-- The rules of the tables, which a test reads this file for:
--   * every table but three leads its primary key and all its unique indexes with partition, so that it can be distributed
--     by it; keys is distributed by id, store and nodes are reference tables;
--   * no foreign keys, no sequences, nothing unlogged, no triggers;
--   * times of facts are nanoseconds since 1970, because the hash chain is computed over them;
--   * what a client may choose freely and what is compared byte by byte is bytea: text holds neither NUL nor
--     what is not UTF-8, and sorts by the database's locale.
--
-- Every write is one call of a function below: one statement is one transaction and one round trip. No lock is ever held
-- while a client thinks, and a client that vanishes leaves nothing open.

create table {schema}.store (
	one        smallint primary key check (one = 1),
	id         text not null,
	epoch      bigint not null,
	partitions integer not null
);

-- One row for each partition: its head, its owner. The fill factor leaves room for new versions of a row in its page, so
-- that moving a head touches no index.
create table {schema}.partitions (
	partition   integer primary key,
	position    bigint not null default 0,
	chain       bytea not null,
	ordinal     bigint not null default 0, -- decisions so far
	epoch       bigint not null default 0, -- the fencing token: rises with each owner
	owner       text not null default '',
	lease_until timestamptz not null default '-infinity'
) with (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

-- Who is there to own partitions, and until when unless it says so again.
create table {schema}.nodes (
	name  text collate "C" primary key,
	until timestamptz not null
);

-- Who has which command id, over the whole store. The ordinal is that of the decision that the command came with; null where it
-- was kept before it was decided.
create table {schema}.keys (
	id          text collate "C" primary key,
	partition   integer not null,
	fingerprint bytea not null,
	ordinal     bigint
);

-- The commands that were kept before they were decided; they stay when they are.
create table {schema}.commands (
	partition      integer not null,
	id             text collate "C" not null,
	stream         text collate "C" not null,
	type           text collate "C" not null,
	time_ns        bigint not null,
	expected       bigint, -- an unsigned number, its highest bit taken for a sign
	correlation_id text collate "C" not null,
	causation_id   text collate "C" not null,
	source         text collate "C" not null,
	data           bytea not null,
	fingerprint    bytea not null,
	primary key (partition, id)
);

-- The undecided commands: a queue that is short while the owner keeps up.
create table {schema}.pending (
	partition   integer not null,
	accepted_at timestamptz not null,
	seq         integer not null, -- the order of what was accepted together
	id          text collate "C" not null,
	primary key (partition, id)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 20000);

create index pending_order on {schema}.pending (partition, accepted_at, seq, id);

-- The decisions, each with its command, but for what is in commands.
create table {schema}.outcomes (
	partition       integer not null,
	ordinal         bigint not null, -- from 1, without gaps
	command_id      text collate "C" not null,
	status          smallint not null,
	position        bigint not null, -- before
	version         bigint not null, -- before
	events          integer not null,
	time_ns         bigint not null,
	stream          text collate "C" not null,
	correlation_id  text collate "C" not null,
	fingerprint     bytea not null,
	-- The rest of a command that came with its decision; null, all of it, where the command has a row in commands.
	type            text collate "C",
	command_time_ns bigint,
	expected        bigint,
	causation_id    text collate "C",
	source          text collate "C",
	data            bytea,
	encoded         bytea, -- the canonical encoding of a refusal or a dead letter; null where the events say it all
	chain           bytea not null,
	primary key (partition, ordinal)
);

-- The others are found by the ordinal in keys, which also sees to it that there is one of each.
create unique index outcomes_of_commands on {schema}.outcomes (partition, command_id) where type is null;

create table {schema}.events (
	partition      integer not null,
	position       bigint not null,
	stream         text collate "C" not null,
	version        bigint not null,
	type           text collate "C" not null,
	data           bytea not null,
	time_ns        bigint not null,
	command_id     text collate "C" not null,
	correlation_id text collate "C" not null,
	primary key (partition, position),
	unique (partition, stream, version)
);

create table {schema}.documents (
	partition  integer not null,
	collection text collate "C" not null,
	id         bytea not null,
	data       bytea not null,
	doc        jsonb, -- the same for people's queries; null where PostgreSQL cannot hold it
	keys       bytea not null, -- the sort keys, each led by its length
	primary key (partition, collection, id)
) with (fillfactor = 90, toast_tuple_target = 4096); -- room for new versions of totals; no compression of usual orders

create table {schema}.document_keys (
	partition  integer not null,
	collection text collate "C" not null,
	idx        smallint not null,
	key        bytea not null,
	id         bytea not null,
	primary key (partition, collection, idx, key, id)
);

-- token names the commit that wrote the row, before the one before it: a statement that a lost connection left behind
-- finds another token and cannot overwrite what came after it.
create table {schema}.checkpoints (
	partition integer not null,
	consumer  text collate "C" not null,
	position  bigint not null,
	token     bigint not null,
	before    bigint not null,
	primary key (partition, consumer)
) with (fillfactor = 50);

-- What the functions below are given: a row of a table, or what changes one. One array of rows is far less work than an array
-- for each of their columns. A fresh command is one that comes with its decision.
create type {schema}.head_row as (partition integer, epoch bigint, position bigint, chain bytea, ordinal bigint,
	new_position bigint, new_chain bytea, new_ordinal bigint);
create type {schema}.command_row as (partition integer, id text, stream text, type text, time_ns bigint, expected bigint,
	correlation_id text, causation_id text, source text, data bytea, fingerprint bytea);
create type {schema}.outcome_row as (partition integer, ordinal bigint, command_id text, status smallint, position bigint,
	version bigint, events integer, time_ns bigint, stream text, correlation_id text, fingerprint bytea,
	type text, command_time_ns bigint, expected bigint, causation_id text, source text, data bytea, -- of a fresh command, or null
	encoded bytea, chain bytea);
create type {schema}.event_row as (partition integer, position bigint, stream text, version bigint, type text, data bytea,
	time_ns bigint, command_id text, correlation_id text);
create type {schema}.document_row as (partition integer, collection text, id bytea, data bytea, is_json boolean, keys bytea,
	is_new boolean);
create type {schema}.key_row as (partition integer, collection text, idx smallint, key bytea, id bytea);
create type {schema}.gone_row as (partition integer, collection text, id bytea);
create type {schema}.checkpoint_row as (partition integer, epoch bigint, consumer text, position bigint, token bigint,
	before bigint);

-- look finds out what is known of commands before they are decided: for the n-th id that somebody has (n, the partition of its
-- command, the ordinal of keys or 0), and for the n-th stream that has events (-n, its newest version, 0). By the indexes,
-- whatever the tables seemed to hold when the plan was made: it is kept, and a store grows.
create function {schema}.look(k_id text[], s_partition integer[], s_stream text[])
returns table (n integer, value bigint, ordinal bigint)
language plpgsql stable set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
set plan_cache_mode = force_generic_plan as $$
begin
	return query
		select u.n::integer, k.partition::bigint, coalesce(k.ordinal, 0)
			from unnest(k_id) with ordinality u(id, n)
			cross join lateral (select k.partition, k.ordinal from {schema}.keys k where k.id = u.id limit 1) k
		union all
		select -u.n::integer, e.version, 0::bigint
			from unnest(s_partition, s_stream) with ordinality u(partition, stream, n)
			cross join lateral (select e.version from {schema}.events e
				where e.partition = u.partition and e.stream = u.stream order by e.version desc limit 1) e;
end $$;

-- claim takes the ids of commands that are to be kept (c) and of the fresh ones in o, as many as the caller says, and tells
-- whether all were free. numbered says that the decisions in o are written by the same transaction, so that their ordinals
-- are those of the commands. It raises MR002 with the ids that another content or partition has. In the order of ids, so
-- that two callers that want the same ones wait for each other and never both.
--
-- A caller that takes all for free is sure: then a claim is a plain insert, which looks into the index once and not twice, and
-- where one is not free it is a unique_violation of keys.
create function {schema}.claim(
	c {schema}.command_row[], o {schema}.outcome_row[], fresh integer, numbered boolean, sure boolean) returns boolean
language plpgsql set lock_timeout = '5s' as $$
declare
	n integer;
	taken text[];
begin
	if sure then
		insert into {schema}.keys (id, partition, fingerprint, ordinal)
			select w.id, w.partition, w.fingerprint, w.ordinal from (
				select u.id, u.partition, u.fingerprint, null::bigint as ordinal from unnest(c) u
				union all
				select u.command_id, u.partition, u.fingerprint, case when numbered then u.ordinal end
					from unnest(o) u where u.type is not null
			) w order by w.id collate "C";
		return true;
	end if;
	insert into {schema}.keys (id, partition, fingerprint, ordinal)
		select w.id, w.partition, w.fingerprint, w.ordinal from (
			select u.id, u.partition, u.fingerprint, null::bigint as ordinal from unnest(c) u
			union all
			select u.command_id, u.partition, u.fingerprint, case when numbered then u.ordinal end
				from unnest(o) u where u.type is not null
		) w order by w.id collate "C"
		on conflict (id) do nothing;
	get diagnostics n = row_count;
	if n = cardinality(c) + fresh then
		return true;
	end if;
	select array_agg(w.id) into taken
		from (
			select u.id, u.partition, u.fingerprint from unnest(c) u
			union all
			select u.command_id, u.partition, u.fingerprint from unnest(o) u where u.type is not null
		) w join {schema}.keys k on k.id = w.id
		where k.partition <> w.partition or k.fingerprint <> w.fingerprint;
	if taken is not null then
		raise exception 'command ids have another content' using errcode = 'MR002', detail = array_to_json(taken)::text;
	end if;
	return false;
end $$;

-- keep keeps commands that wait for their decision (c); what is there already stays as it is. added counts what is undecided
-- now and was not there.
--
-- Of the fresh ones in o it finds out whether their outcomes' rows are enough. Where all ids were free (alone) they are:
-- nothing is there yet, and nobody need look. Otherwise another node may be keeping the same command at this moment, under a
-- claim made before; only the key of commands tells who was first, so the fresh ones get a row there. known are those that
-- were kept, or decided, already.
create function {schema}.keep(
	do_claim boolean, sure boolean, c {schema}.command_row[], o {schema}.outcome_row[], fresh integer,
	out added integer, out alone boolean, out known text[])
language plpgsql set lock_timeout = '5s' set enable_seqscan = off as $$
begin
	added := 0;
	alone := do_claim and {schema}.claim(c, o, fresh, true, sure);
	if not alone then
		with given as (
			select u.partition, u.id, u.stream, u.type, u.time_ns, u.expected, u.correlation_id, u.causation_id, u.source,
				u.data, u.fingerprint, null::bigint as ordinal
			from unnest(c) u
			union all
			select u.partition, u.command_id, u.stream, u.type, u.command_time_ns, u.expected, u.correlation_id, u.causation_id,
				u.source, u.data, u.fingerprint, u.ordinal
			from unnest(o) u where u.type is not null
		), inserted as (
			insert into {schema}.commands (partition, id, stream, type, time_ns, expected, correlation_id, causation_id,
				source, data, fingerprint)
				select g.partition, g.id, g.stream, g.type, g.time_ns, g.expected, g.correlation_id, g.causation_id, g.source,
					g.data, g.fingerprint
				from given g
				-- Not those that came with a decision, which is another one than the one at hand. By the index, as in look:
				-- offset 0 keeps this from becoming a join.
				where not exists (select from {schema}.keys k where k.id = g.id and k.ordinal is distinct from g.ordinal
					and k.ordinal is not null offset 0)
				order by g.partition, g.id collate "C"
				on conflict (partition, id) do nothing
				returning partition, id
		), waiting as (
			insert into {schema}.pending (partition, accepted_at, seq, id)
				select u.partition, clock_timestamp(), u.seq, u.id
				from unnest(c) with ordinality u(partition, id, stream, type, time_ns, expected, correlation_id, causation_id,
					source, data, fingerprint, seq)
				join inserted i on i.partition = u.partition and i.id = u.id
				order by u.seq
				returning 1
		)
		select (select count(*) from waiting),
			(select array_agg(u.command_id) from unnest(o) u where u.type is not null
				and not exists (select from inserted i where i.partition = u.partition and i.id = u.command_id))
			into added, known;
	elsif cardinality(c) > 0 then
		insert into {schema}.commands (partition, id, stream, type, time_ns, expected, correlation_id, causation_id,
			source, data, fingerprint)
			select u.partition, u.id, u.stream, u.type, u.time_ns, u.expected, u.correlation_id, u.causation_id, u.source,
				u.data, u.fingerprint
			from unnest(c) u;
		insert into {schema}.pending (partition, accepted_at, seq, id)
			select u.partition, clock_timestamp(), u.seq, u.id
			from unnest(c) with ordinality u(partition, id, stream, type, time_ns, expected, correlation_id, causation_id,
				source, data, fingerprint, seq)
			order by u.seq;
		get diagnostics added = row_count;
	end if;
end $$;

-- decide keeps decisions with all that belongs to them, in one or several partitions; fresh ones among them are as many as the
-- caller says. It raises
--   MR001 where a partition is not where the caller thinks it is: another owner, another head;
--   MR002 with the ids of commands that are decided already, were never kept, or have another content;
--   MR004 where a partition of g_partition has undecided commands that neither this call decides nor g_held names: they may
--         come before commands that it would decide without having kept them first. The row lock is held by then, so that
--         whatever was kept and answered before this call was made is seen.
create function {schema}.decide(
	do_claim boolean, sure boolean, fresh integer, h {schema}.head_row[], g_partition integer[], g_held text[],
	c {schema}.command_row[], o {schema}.outcome_row[], e {schema}.event_row[],
	d {schema}.document_row[], x {schema}.key_row[],
	out added integer, out removed integer)
language plpgsql set lock_timeout = '5s' as $$
declare
	n integer;
	alone boolean := false;
	known text[];
	wrong text[];
begin
	-- In the order of partitions, so that two owners, one of them in error, never wait for each other.
	if cardinality(h) > 1 then
		perform 1 from {schema}.partitions p where p.partition in (select u.partition from unnest(h) u)
			order by p.partition for no key update;
	end if;
	update {schema}.partitions p
		set position = u.new_position, chain = u.new_chain, ordinal = u.new_ordinal
		from unnest(h) u
		where p.partition = u.partition
			and p.epoch = u.epoch and p.position = u.position and p.chain = u.chain and p.ordinal = u.ordinal; -- the fence
	get diagnostics n = row_count;
	if n <> cardinality(h) then
		raise exception 'a partition has another owner or head' using errcode = 'MR001';
	end if;
	if cardinality(g_partition) > 0 and exists (
			select from {schema}.pending p where p.partition = any(g_partition)
				and p.id <> all(array(select u.command_id from unnest(o) u)) and p.id <> all(g_held)) then
		raise exception 'other nodes have kept commands' using errcode = 'MR004';
	end if;
	added := 0;
	n := cardinality(o) - fresh; -- kept before
	if cardinality(c) > 0 or fresh > 0 then
		select k.added, k.alone, k.known into added, alone, known from {schema}.keep(do_claim, sure, c, o, fresh) k;
	end if;
	-- A command that came with its decision may have been kept by another node meanwhile: it is the same one.
	n := n + coalesce(cardinality(known), 0);
	removed := 0;
	if n > 0 then
		delete from {schema}.pending p
			using unnest(o) u
			where p.partition = u.partition and p.id = u.command_id and (u.type is null or u.command_id = any(known));
		get diagnostics removed = row_count;
	end if;
	if removed <> n then
		select array_agg(u.command_id) into wrong
			from unnest(o) u
			where (u.type is null or u.command_id = any(known)) and (
				not exists (select from {schema}.commands c where c.partition = u.partition and c.id = u.command_id)
				or exists (select from {schema}.outcomes o
					where o.partition = u.partition and o.command_id = u.command_id and o.type is null));
		raise exception 'commands are decided already or were never kept'
			using errcode = 'MR002', detail = coalesce(array_to_json(wrong)::text, '[]');
	end if;
	if alone then
		insert into {schema}.outcomes (partition, ordinal, command_id, status, position, version, events, time_ns, stream,
			correlation_id, fingerprint, type, command_time_ns, expected, causation_id, source, data, encoded, chain)
			select u.partition, u.ordinal, u.command_id, u.status, u.position, u.version, u.events, u.time_ns, u.stream,
				u.correlation_id, u.fingerprint, u.type, u.command_time_ns, u.expected, u.causation_id, u.source, u.data,
				u.encoded, u.chain
			from unnest(o) u;
	else
		insert into {schema}.outcomes (partition, ordinal, command_id, status, position, version, events, time_ns, stream,
			correlation_id, fingerprint, encoded, chain)
			select u.partition, u.ordinal, u.command_id, u.status, u.position, u.version, u.events, u.time_ns, u.stream,
				u.correlation_id, u.fingerprint, u.encoded, u.chain
			from unnest(o) u;
	end if;
	insert into {schema}.events (partition, position, stream, version, type, data, time_ns, command_id, correlation_id)
		select u.partition, u.position, u.stream, u.version, u.type, u.data, u.time_ns, u.command_id, u.correlation_id
		from unnest(e) u;
	if cardinality(d) > 0 then
		perform {schema}.put_documents(d, x);
	end if;
end $$;

create function {schema}.put_documents(d {schema}.document_row[], x {schema}.key_row[]) returns void
language plpgsql set lock_timeout = '5s' as $$
begin
	insert into {schema}.documents (partition, collection, id, data, doc, keys)
		select u.partition, u.collection, u.id, u.data, case when u.is_json then convert_from(u.data, 'UTF8')::jsonb end, u.keys
		from unnest(d) u
		on conflict (partition, collection, id) do update set data = excluded.data, doc = excluded.doc, keys = excluded.keys;
	insert into {schema}.document_keys (partition, collection, idx, key, id)
		select u.partition, u.collection, u.idx, u.key, u.id from unnest(x) u
		on conflict do nothing;
end $$;

-- add_documents is put_documents where those that are new are known, and no row of x is there yet: a plain insert looks into
-- each index once, not twice.
create function {schema}.add_documents(d {schema}.document_row[], x {schema}.key_row[]) returns void
language plpgsql as $$
begin
	insert into {schema}.documents (partition, collection, id, data, doc, keys)
		select u.partition, u.collection, u.id, u.data, case when u.is_json then convert_from(u.data, 'UTF8')::jsonb end, u.keys
		from unnest(d) u where u.is_new;
	if exists (select from unnest(d) u where not u.is_new) then
		insert into {schema}.documents (partition, collection, id, data, doc, keys)
			select u.partition, u.collection, u.id, u.data, case when u.is_json then convert_from(u.data, 'UTF8')::jsonb end, u.keys
			from unnest(d) u where not u.is_new
			on conflict (partition, collection, id) do update set data = excluded.data, doc = excluded.doc, keys = excluded.keys;
	end if;
	insert into {schema}.document_keys (partition, collection, idx, key, id)
		select u.partition, u.collection, u.idx, u.key, u.id from unnest(x) u;
end $$;

-- commit_views writes documents and the checkpoints that go with them. It raises
--   MR001 where a partition has another owner;
--   MR003 where a checkpoint is not the one that the caller knows;
--   unique_violation where it is told that documents or keys are new (sure), and they are not.
-- Views follow from facts, so nobody waits for the disk: what a crash takes is made again.
create function {schema}.commit_views(
	b {schema}.checkpoint_row[], d {schema}.document_row[], x {schema}.key_row[], r {schema}.gone_row[], y {schema}.key_row[],
	sure boolean)
returns void language plpgsql as $$
declare
	n integer;
begin
	perform set_config('synchronous_commit', 'off', true);
	perform set_config('lock_timeout', '5s', true);
	-- A share of the row: beside the owner's own commits of facts, but not beside a change of owner.
	perform 1 from {schema}.partitions p
		join unnest(b) u on p.partition = u.partition and p.epoch = u.epoch -- the fence
		order by p.partition for key share of p;
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

-- drop_views removes what a consumer has in a partition.
create function {schema}.drop_views(p_partition integer, p_consumer text, p_collections text[]) returns void
language plpgsql set lock_timeout = '5s' as $$
begin
	delete from {schema}.checkpoints where partition = p_partition and consumer = p_consumer;
	delete from {schema}.document_keys where partition = p_partition and collection = any(p_collections);
	delete from {schema}.documents where partition = p_partition and collection = any(p_collections);
end $$;

-- acquire takes a partition that is free, whose lease is over, or that is the caller's already, under a new epoch. It
-- returns no row where the partition is somebody else's. The lock waits for every commit of the owner before, views
-- included, and what he sends later finds another epoch.
create function {schema}.acquire(p_partition integer, p_node text, p_ttl interval)
returns table (epoch bigint, "position" bigint, chain bytea, ordinal bigint)
language plpgsql set lock_timeout = '5s' as $$
begin
	perform 1 from {schema}.partitions p where p.partition = p_partition
		and (p.owner = '' or p.owner = p_node or p.lease_until < clock_timestamp()) for update;
	if not found then
		return;
	end if;
	return query update {schema}.partitions p
		set epoch = p.epoch + 1, owner = p_node, lease_until = clock_timestamp() + p_ttl
		where p.partition = p_partition
		returning p.epoch, p.position, p.chain, p.ordinal;
end $$;

-- renew extends leases and returns the partitions that are still the caller's.
create function {schema}.renew(r_partition integer[], r_epoch bigint[], p_ttl interval) returns setof integer
language plpgsql set lock_timeout = '5s' as $$
begin
	perform 1 from {schema}.partitions p where p.partition = any(r_partition) order by p.partition for no key update;
	return query update {schema}.partitions p
		set lease_until = clock_timestamp() + p_ttl
		from unnest(r_partition, r_epoch) u(partition, epoch)
		where p.partition = u.partition and p.epoch = u.epoch
		returning p.partition;
end $$;

-- join says that a node is there for another while, and returns who is. Nobody waits for the disk for that.
create function {schema}.join_nodes(p_name text, p_ttl interval) returns setof text
language plpgsql as $$
begin
	perform set_config('synchronous_commit', 'off', true);
	perform set_config('lock_timeout', '5s', true);
	insert into {schema}.nodes as n (name, until) values (p_name, clock_timestamp() + p_ttl)
		on conflict (name) do update set until = excluded.until;
	delete from {schema}.nodes where until < clock_timestamp() - interval '1 hour'; -- random names come and go
	return query select n.name from {schema}.nodes n where n.until > clock_timestamp() order by n.name;
end $$;

-- release ends leases at once.
create function {schema}.release(r_partition integer[], r_epoch bigint[]) returns void
language plpgsql set lock_timeout = '5s' as $$
begin
	perform 1 from {schema}.partitions p where p.partition = any(r_partition) order by p.partition for no key update;
	update {schema}.partitions p
		set lease_until = '-infinity', owner = ''
		from unnest(r_partition, r_epoch) u(partition, epoch)
		where p.partition = u.partition and p.epoch = u.epoch;
end $$;
