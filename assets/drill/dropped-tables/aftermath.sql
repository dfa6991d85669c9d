-- Nobody noticed for an hour, so work went on, with the new release. A time before the migration for the whole database
-- would lose all of it.

set session authorization programme_app;

-- Eight complaints with the new priority, three of them about a referral whose number is on paper.
select format('insert into complaints (registration_id, referral_id, body, priority) values (%s, %L, %L, %s)',
              1 + 4 * (600 + n), case when n <= 3 then 2400 + n else null end, 'Nobody can find my referral.', 1 + n % 5)
from generate_series(1, 8) n \gexec
select format('insert into complaint_decisions (complaint_id, decision) values (%s, %L)', 5 * n, 'paid back')
from generate_series(1, 6) n \gexec
select format('update complaints set settled = true where id = %s', 5 * n) from generate_series(1, 6) n \gexec

-- Five new households, each with a blanket; four that moved; two messages.
select format('with new as (insert into registrations (household_code, full_name, district_id, phone, status, '
              'vulnerability_score) values (%L, %L, %s, %L, %L, %s) returning id) '
              'insert into distributions (registration_id, item, quantity, unit_value, distributed_on) '
              'select id, %L, 1, 8.50, %L from new',
              household_code, full_name, district_id, phone, status, vulnerability_score, 'blanket', :'anchor'::date)
from generate_series(46300, 46304) n, pg_temp.household(n) \gexec
select format('update registrations set phone = %L, notes = %L where id = %s', '+999 222000' || n, 'Has moved.', 4 * (700 + n) + 1)
from generate_series(1, 4) n \gexec
select format('insert into sms_log values (now(), %L, %L)', '+999 2220001', 'We are looking for your referral.')
from generate_series(1, 2) n \gexec

reset session authorization;
