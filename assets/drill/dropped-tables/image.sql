-- Prints what the truth is made of, as of one moment: a hash of every row of every table, of the definition of every object,
-- and where the sequences are. Definitions are hashed because they have lines, and a line is one object here.

\set ON_ERROR_STOP on
begin isolation level repeatable read;

select format('select ''row'', %L, %I, md5(t::text) from only %I t', relname, attname, relname)
from pg_class join pg_attribute on attrelid = pg_class.oid and attnum = 1
where relkind = 'r' and relnamespace = 'public'::regnamespace order by relname \gexec

-- Lists of grants are sorted, and one that was never set is what it stands for.
create function pg_temp.grants(list aclitem[]) returns text language sql as $$
    select string_agg(item::text, ',' order by item::text) from unnest(list) item
$$;
create temp view catalog (kind, part_of, name, definition) as
    -- A sequence is part of its table.
    select 'relation', coalesce(refobjid, pg_class.oid)::regclass::text, pg_class.oid::regclass::text,
           concat_ws(' ', relkind, relpersistence, relowner::regrole, reloptions, obj_description(pg_class.oid, 'pg_class'),
                     pg_temp.grants(coalesce(relacl,
                         acldefault(case when relkind = 'S' then 's' else 'r' end::"char", relowner))))
    from pg_class
    left join pg_depend on classid = 'pg_class'::regclass and objid = pg_class.oid
        and refclassid = 'pg_class'::regclass and relkind = 'S' and deptype in ('a', 'i')
    where relnamespace = 'public'::regnamespace and relkind <> 'i'
    union all
    select 'column', attrelid::regclass::text, attrelid::regclass || '.' || attname,
           concat_ws(' ', format_type(atttypid, atttypmod), attnotnull, attidentity, attgenerated,
                     pg_get_expr(adbin, adrelid), pg_temp.grants(attacl), col_description(attrelid, attnum))
    from pg_attribute join pg_class on pg_class.oid = attrelid
    left join pg_attrdef on adrelid = attrelid and adnum = attnum
    where relnamespace = 'public'::regnamespace and attnum > 0 and not attisdropped and relkind in ('r', 'v')
    union all
    select 'constraint', case when conrelid <> 0 then conrelid::regclass::text else '' end,
           coalesce(nullif(conrelid, 0)::regclass::text || '.', '') || conname,
           concat_ws(' ', pg_get_constraintdef(oid), convalidated)
    from pg_constraint where connamespace = 'public'::regnamespace
    union all
    select 'index', indrelid::regclass::text, indexrelid::regclass::text,
           concat_ws(' ', pg_get_indexdef(indexrelid), indisvalid)
    from pg_index join pg_class on pg_class.oid = indexrelid where relnamespace = 'public'::regnamespace
    union all
    select 'trigger', tgrelid::regclass::text, tgrelid::regclass || '.' || tgname,
           concat_ws(' ', pg_get_triggerdef(pg_trigger.oid), tgenabled)
    from pg_trigger join pg_class on pg_class.oid = tgrelid
    where relnamespace = 'public'::regnamespace and not tgisinternal
    union all
    select 'view', oid::regclass::text, oid::regclass::text, pg_get_viewdef(oid)
    from pg_class where relkind = 'v' and relnamespace = 'public'::regnamespace
    union all
    select 'function', '', oid::regprocedure::text,
           concat_ws(' ', pg_get_functiondef(oid), proowner::regrole, pg_temp.grants(proacl))
    from pg_proc where pronamespace = 'public'::regnamespace
    union all
    select 'type', '', oid::regtype::text, typtype::text || ' ' || coalesce(
        (select string_agg(enumlabel, ',' order by enumsortorder) from pg_enum where enumtypid = pg_type.oid), '')
    from pg_type where typnamespace = 'public'::regnamespace and typtype in ('e', 'd');

select 'object', kind, part_of, name, md5(definition) from catalog;
select 'sequence', sequencename, coalesce(last_value, 0) from pg_sequences where schemaname = 'public';
select 'staging', nspname from pg_namespace where nspname like 'restore\_staging%';
rollback;
