-- The database as it was just before the first day that has a backup. :anchor is the instant of the last backup and
-- :days the number of daily backups.

-- Triggers would stamp today's clock on rows that are months old.
set session_replication_role = replica;
select (:'anchor'::timestamptz - make_interval(days => :days)) as start \gset

insert into districts
select n, (array['AMB','BES','DAK','ERE','FON','GUL','KOR','LIN','SÃO'])[n],
       (array['Amberlo','Bessin','Dakoma','Erevale','Fontaine-Basse','Gulmari','Korvane','Lindiwe','São Aniceto'])[n]
from generate_series(1, 9) n;

insert into staff (full_name, role, district_id)
select full_name, (array['field officer','nurse','store keeper','data clerk'])[1 + n % 4], 1 + n % 9
from generate_series(1, 36) n, pg_temp.household(n * 97);

insert into registrations (household_code, full_name, district_id, phone, status, vulnerability_score, profile, notes,
                           registered_at, updated_at)
select household.*, :'start'::timestamptz - make_interval(mins => 17 * (45488 - n)::integer),
       :'start'::timestamptz - make_interval(mins => (11 * (45488 - n))::integer)
from generate_series(1, 45488) n, pg_temp.household(n) order by n;

insert into distributions (registration_id, item, quantity, unit_value, staff_id, remarks, distributed_on)
select distribution.*, (:'start'::timestamptz - make_interval(mins => 40 * (12245 - n)::integer))::date
from generate_series(1, 12245) n, pg_temp.distribution(n) order by n;

insert into payments (distribution_id, amount, currency, method, paid_at)
select 1 + n * 7 / 5, payment.*, :'start'::timestamptz - make_interval(mins => 55 * (8700 - n)::integer)
from generate_series(1, 8700) n, pg_temp.payment(n) order by n;

insert into distributions_archive (id, registration_id, item, quantity, unit_value, total_value, distributed_on)
select n, registration_id, item, quantity, unit_value, quantity * unit_value,
       (:'start'::timestamptz - make_interval(days => 800 + n % 300))::date
from generate_series(1, 2000) n, pg_temp.distribution(n * 3) order by n;

-- Every fortieth message was delivered twice.
insert into sms_log
select :'start'::timestamptz - make_interval(mins => 90 * (3000 - n)), '+999 ' || lpad((n * 7919 % 10000000)::text, 7, '0'),
       'Your distribution takes place on day ' || n % 28 || '. ' || case when n % 50 = 0 then '🛟' else 'Bring your card.' end
from generate_series(1, 3000) n, generate_series(1, case when n % 40 = 0 then 2 else 1 end);

insert into registrations_audit (registration_id, action, changed_by, changed_at)
select 1 + n * 31 % 45488, 'update', 'programme_app', :'start'::timestamptz - make_interval(mins => 25 * (1500 - n))
from generate_series(1, 1500) n;

reset session_replication_role;
analyze;
