-- Loads an image that export.sql wrote into schema :image of the database that keeps the truth.

\set ON_ERROR_STOP on
\connect drill_truth
set client_min_messages = warning;

drop schema if exists :image cascade;
create schema :image;
create table :image.catalog (kind text, name text, definition text);
create table :image.sequence_state (name text, last_value bigint);
create table :image.staging (name text);

-- No constraints, so that whatever the database has become can be loaded and compared.
select format('create table %I.%I as table public.%2$I with no data', :'image', source)
from unnest(array['registrations', 'distributions', 'payments', 'districts', 'staff', 'sms_log', 'distributions_archive',
                  'registrations_audit']) source \gexec
select format('copy %I.%I from %L', :'image', relname, :'folder' || '/' || relname)
from pg_class where relnamespace = :'image'::regnamespace \gexec
