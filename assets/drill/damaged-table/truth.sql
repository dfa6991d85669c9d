-- What the rows must be after a right recovery. Schema public is the database as it was just before the incident,
-- schema live as it was when the operator was called. Rows that the incident deleted must be as they were before it; in
-- rows that it corrupted, the two columns must be, and every other column must stay as work has left it since.

create table damaged as
    select before.id, case when live.id is null then 'deleted' else 'corrupted' end as how
    from public.registrations before left join live.registrations live using (id)
    where live.id is null or (live.district_id = 7 and live.status = 'closed' and live.vulnerability_score = 0);
alter table damaged add primary key (id);

create schema expected;
create table expected.registrations as
    select live.id, live.household_code, live.full_name, live.district_id, live.phone,
           case when how = 'corrupted' then before.status else live.status end as status,
           case when how = 'corrupted' then before.vulnerability_score else live.vulnerability_score end
               as vulnerability_score,
           live.profile, live.notes, live.registered_at, live.updated_at
    from live.registrations live left join damaged using (id) left join public.registrations before using (id);
insert into expected.registrations
    select before.* from public.registrations before join damaged using (id) where how = 'deleted';

-- The trigger stamps updated_at on every row that is written, by whomever: nothing is asked of it in damaged rows.
update expected.registrations set updated_at = null where id in (select id from damaged);

create table expected.distributions as table live.distributions;
insert into expected.distributions
    select * from public.distributions where id not in (select id from live.distributions);
create table expected.payments as table live.payments;
insert into expected.payments select * from public.payments where id not in (select id from live.payments);
