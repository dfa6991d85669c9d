-- Migration 0042, in one transaction as migrations are. Its first half is what the release is about. Its second half removes
-- "tables of the pilot", and CASCADE, which made an error go away on the test server, takes along what hung on them. Prints
-- the first whole second after its commit, and ends no sooner: a time that people can tell without being wrong.

set session authorization programme_admin;
set role programme_app;

begin;
alter table complaints add column priority integer not null default 3
    constraint complaints_priority_check check (priority between 1 and 5);
update complaints set priority = 1 where not settled;
create table complaint_decisions (
    id integer generated always as identity primary key,
    complaint_id bigint not null references complaints on delete cascade,
    decision text not null,
    decided_at timestamptz not null default now()
);
insert into complaint_decisions (complaint_id, decision) select id, 'carried over' from complaints where id % 50 = 0 order by id;
insert into schema_migrations (version, title) values ('0042', 'complaints: priorities and decisions; tables of the pilot removed');

drop table home_visits cascade;
drop table referrals cascade;
drop table referral_notes cascade;
select pg_current_xact_id() as migration \gset
commit;

reset role;
reset session authorization;
select date_trunc('second', pg_xact_commit_timestamp(:'migration'::xid)) + interval '1 second' as finished \gset
select to_char(:'finished'::timestamptz at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
from pg_sleep(greatest(0, extract(epoch from :'finished'::timestamptz - clock_timestamp())));
