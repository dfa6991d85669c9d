-- Writes an image of the whole database, as of one moment, into files of the folder :folder.

\set ON_ERROR_STOP on
begin isolation level repeatable read;

create temp view catalog (kind, name, definition) as
    select 'relation', oid::regclass::text, concat_ws(' ', relkind, relpersistence, relowner::regrole, relacl, reloptions)
    from pg_class where relnamespace = 'public'::regnamespace
    union all
    select 'column', attrelid::regclass || '.' || attname,
           concat_ws(' ', format_type(atttypid, atttypmod), attnotnull, attidentity, attgenerated,
                     pg_get_expr(adbin, adrelid))
    from pg_attribute join pg_class on pg_class.oid = attrelid
    left join pg_attrdef on adrelid = attrelid and adnum = attnum
    where relnamespace = 'public'::regnamespace and attnum > 0 and not attisdropped and relkind in ('r', 'v')
    union all
    select 'constraint', coalesce(nullif(conrelid, 0)::regclass::text || '.', '') || conname,
           concat_ws(' ', pg_get_constraintdef(oid), convalidated)
    from pg_constraint where connamespace = 'public'::regnamespace
    union all
    select 'index', indexrelid::regclass::text, concat_ws(' ', pg_get_indexdef(indexrelid), indisvalid)
    from pg_index join pg_class on pg_class.oid = indexrelid where relnamespace = 'public'::regnamespace
    union all
    select 'trigger', tgrelid::regclass || '.' || tgname, concat_ws(' ', pg_get_triggerdef(pg_trigger.oid), tgenabled)
    from pg_trigger join pg_class on pg_class.oid = tgrelid
    where relnamespace = 'public'::regnamespace and not tgisinternal
    union all
    select 'view', oid::regclass::text, pg_get_viewdef(oid)
    from pg_class where relkind = 'v' and relnamespace = 'public'::regnamespace
    union all
    select 'function', oid::regprocedure::text, pg_get_functiondef(oid)
    from pg_proc where pronamespace = 'public'::regnamespace
    union all
    select 'type', oid::regtype::text, typtype::text || ' ' || coalesce(
        (select string_agg(enumlabel, ',' order by enumsortorder) from pg_enum where enumtypid = pg_type.oid), '')
    from pg_type where typnamespace = 'public'::regnamespace and typtype in ('e', 'd');

create temp view sequence_state (name, last_value) as
    select sequencename, coalesce(last_value, 0) from pg_sequences where schemaname = 'public';
create temp view staging (name) as
    select nspname from pg_namespace where nspname like 'restore\_staging%';

select format('copy (select * from %s) to %L', source, :'folder' || '/' || source)
from unnest(array['registrations', 'distributions', 'payments', 'districts', 'staff', 'sms_log', 'distributions_archive',
                  'registrations_audit', 'catalog', 'sequence_state', 'staging']) source \gexec
rollback;
