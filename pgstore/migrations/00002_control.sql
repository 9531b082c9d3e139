-- The undecided commands of the category consumer are looked for by themselves while the deciding is paused: one of them says
-- that it is to go on, and there may be a million others.
create index commands_control on {schema}.commands (partition, id) where stream >= 'consumer-' and stream < 'consumer.';
