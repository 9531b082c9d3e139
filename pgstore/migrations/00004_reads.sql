-- What nodes ask all the time while they wait for each other. Asked as a plain query, each of these costs the database more to plan
-- than to answer. As in look, the plan is kept, and goes by the indexes whatever the tables seemed to hold when it was made.

-- outcomes_of finds the outcomes of commands, each by the ordinal of its decision where that is known, or by its id. Asking for the
-- first row from there on, in that order, leaves one index to go by: of an empty table any other would seem as good.
create function {schema}.outcomes_of(p_partition integer[], p_id text[], p_ordinal bigint[])
returns table (command_id text, "partition" integer, status smallint, "position" bigint, version bigint, events integer, time_ns bigint,
	stream text, fingerprint bytea, encoded bytea)
language plpgsql stable set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_sort = off
set plan_cache_mode = force_generic_plan as $$
begin
	return query
		select o.command_id, o.partition, o.status, o.position, o.version, o.events, o.time_ns, o.stream, o.fingerprint, o.encoded
			from unnest(p_partition, p_ordinal) u(partition, ordinal)
			cross join lateral (select * from {schema}.outcomes o
				where o.partition = u.partition and o.ordinal >= u.ordinal order by o.ordinal limit 1) o
			where u.ordinal > 0 and o.ordinal = u.ordinal
		union all
		select o.command_id, o.partition, o.status, o.position, o.version, o.events, o.time_ns, o.stream, o.fingerprint, o.encoded
			from unnest(p_partition, p_id, p_ordinal) u(partition, id, ordinal)
			cross join lateral (select * from {schema}.outcomes o
				where o.partition = u.partition and o.type is null and o.command_id >= u.id order by o.command_id limit 1) o
			where u.ordinal = 0 and o.command_id = u.id;
end $$;

-- commands_of finds what was kept of commands before they were decided.
create function {schema}.commands_of(p_partition integer[], p_id text[])
returns table (id text, "partition" integer, time_ns bigint, stream text, fingerprint bytea)
language plpgsql stable set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
set plan_cache_mode = force_generic_plan as $$
begin
	return query
		select c.id, c.partition, c.time_ns, c.stream, c.fingerprint
			from unnest(p_partition, p_id) u(partition, id)
			join {schema}.commands c on c.partition = u.partition and c.id = u.id;
end $$;

-- undecided reads a page of what waits in a partition, in the order of acceptance, behind a place and up to a time, where one is
-- given. asked is when the statement came, which is before it took its snapshot.
create function {schema}.undecided(p_partition integer, p_at timestamptz, p_seq integer, p_id text, p_most integer, p_until timestamptz)
returns table (asked timestamptz, accepted_at timestamptz, seq integer, id text, stream text, type text, time_ns bigint, expected bigint,
	correlation_id text, causation_id text, source text, data bytea, fingerprint bytea)
language plpgsql stable set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_sort = off
set plan_cache_mode = force_generic_plan as $$
begin
	return query
		select now(), p.accepted_at, p.seq, c.id, c.stream, c.type, c.time_ns, c.expected, c.correlation_id, c.causation_id, c.source,
				c.data, c.fingerprint
			from (
				select w.partition, w.accepted_at, w.seq, w.id from {schema}.pending w
					where w.partition = p_partition and (w.accepted_at, w.seq, w.id) > (p_at, p_seq, p_id)
					and (p_until is null or w.accepted_at <= p_until)
					order by w.accepted_at, w.seq, w.id limit p_most
			) p join {schema}.commands c on c.partition = p.partition and c.id = p.id
			order by p.accepted_at, p.seq, p.id;
end $$;
