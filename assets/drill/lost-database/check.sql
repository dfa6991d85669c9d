-- Every table of the database with its number of rows, and all of them hashed.

\set ON_ERROR_STOP on
select format('select %L, count(*), md5(coalesce(string_agg(t::text, chr(10) order by t::text), %L)) from only %I.%I t',
              tablename, '', schemaname, tablename)
from pg_tables where schemaname = 'public' order by tablename \gexec
