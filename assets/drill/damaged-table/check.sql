-- Compares the image in schema found with the truth. Each row is one check: what it asks, the number that is right, the
-- number that was found, and the keys of a few rows that are wrong.

update found.registrations set updated_at = null where id in (select id from damaged);
analyze expected.registrations, expected.distributions, expected.payments;
analyze found.registrations, found.distributions, found.payments;

create temp table pairs as
    select 'registrations' as source, id, coalesce(how, 'sound') as how, expected::text, found::text,
           (expected.status, expected.vulnerability_score) is not distinct from
               (found.status, found.vulnerability_score) as columns_right,
           to_jsonb(expected) - '{status,vulnerability_score}'::text[] is not distinct from
               to_jsonb(found) - '{status,vulnerability_score}'::text[] as others_right
    from expected.registrations expected full join found.registrations found using (id) left join damaged using (id)
    union all
    select 'distributions', id, case when live.id is null then 'deleted' else 'sound' end, expected::text, found::text,
           null, null
    from expected.distributions expected full join found.distributions found using (id)
    left join live.distributions live using (id)
    union all
    select 'payments', id, case when live.id is null then 'deleted' else 'sound' end, expected::text, found::text,
           null, null
    from expected.payments expected full join found.payments found using (id)
    left join live.payments live using (id);

create function pg_temp.differing(source text) returns bigint language plpgsql as $$
declare differing bigint;
begin
    execute format('select count(*) from ((select t::text from live.%1$I t except all select t::text from found.%1$I t)
                    union all (select t::text from found.%1$I t except all select t::text from live.%1$I t)) both_ways',
                   source) into differing;
    return differing;
end
$$;

-- The keys of up to three wrong rows.
create function pg_temp.examples(ids bigint[]) returns text language sql as $$
    select string_agg(id::text, ', ') from (select unnest(ids) as id order by 1 limit 3) few
$$;

select * from (
    select 10 as place, source || ': deleted rows are back as they were' as name, count(*) as expected,
           count(*) filter (where expected = found) as found,
           pg_temp.examples(array_agg(id) filter (where expected is distinct from found)) as examples
    from pairs where how = 'deleted' and expected is not null group by source
    union all
    select 20, 'registrations: status and vulnerability_score of the corrupted rows are as before', count(*),
           count(*) filter (where columns_right), pg_temp.examples(array_agg(id) filter (where not columns_right))
    from pairs where how = 'corrupted'
    union all
    select 21, 'registrations: the other columns of the corrupted rows are as work has left them', count(*),
           count(*) filter (where others_right), pg_temp.examples(array_agg(id) filter (where not others_right))
    from pairs where how = 'corrupted'
    union all
    select 30, source || ': rows that were not damaged are untouched', count(*), count(*) filter (where expected = found),
           pg_temp.examples(array_agg(id) filter (where expected is distinct from found))
    from pairs where how = 'sound' and expected is not null group by source
    union all
    select 40, source || ': rows that should not be there', 0, count(*) filter (where expected is null),
           pg_temp.examples(array_agg(id) filter (where expected is null))
    from pairs group by source
    union all
    select 50, source || ': rows that differ', 0, pg_temp.differing(source), null
    from unnest(array['districts', 'staff', 'sms_log', 'distributions_archive']) source
    union all
    select 60, 'registrations_audit: earlier entries are all there', count(*), count(*) - (
        select count(*) from (select a::text from live.registrations_audit a
                              except all select a::text from found.registrations_audit a) lost), null
    from live.registrations_audit
    union all
    select 70, 'tables, triggers, constraints and other objects that differ', 0, count(*), string_agg(name, ', ')
    from ((table live.catalog except table found.catalog) union (table found.catalog except table live.catalog)) differing
    union all
    select 80, 'sequences that moved backwards', 0, count(*), string_agg(name, ', ')
    from live.sequence_state live left join found.sequence_state found using (name)
    where found.last_value is null or found.last_value < live.last_value
    union all
    select 90, 'staging schemas left behind', 0, count(*), string_agg(name, ', ') from found.staging
) checks order by place, name;
