-- One ordinary day before the backup number :day of :days. After the last of them the database has 45,678
-- registrations and 12,345 distributions.

set session_replication_role = replica;
select (:'anchor'::timestamptz - make_interval(days => :days - :day)) as backup \gset

-- 40 households come and two leave: 38 more each day.
insert into registrations (household_code, full_name, district_id, phone, status, vulnerability_score, profile, notes,
                           registered_at, updated_at)
select household.*, stamp, stamp
from generate_series(1, 40) n, pg_temp.household(45488 + 40 * (:day - 1) + n),
     lateral (select :'backup'::timestamptz - make_interval(mins => 25 * (41 - n))) as at (stamp)
order by n;
delete from registrations where id in (36 * (1000 + :day) + 4, 36 * (1010 + :day) + 4);

insert into distributions (registration_id, item, quantity, unit_value, staff_id, remarks, distributed_on)
select distribution.*, (:'backup'::timestamptz - interval '10 hours')::date
from generate_series(12246 + 20 * (:day - 1), 12245 + 20 * :day) n, pg_temp.distribution(n) order by n;

update registrations set phone = '+999 ' || lpad((id * 31 % 10000000)::text, 7, '0'), updated_at = :'backup'::timestamptz - interval '9 hours'
where id % 1800 = 9 * :day;
insert into registrations_audit (registration_id, action, changed_by, changed_at)
select id, 'update', 'programme_app', updated_at from registrations where id % 1800 = 9 * :day order by id;

reset session_replication_role;
