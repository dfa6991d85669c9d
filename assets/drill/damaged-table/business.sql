-- Ordinary work between the last backup and the incident, each statement a transaction of its own. None of it touches
-- a row that the incident will damage, since no backup could bring such work back.

set session authorization programme_app;

-- 30 households have a new telephone number.
select format('update registrations set phone = %L where id = %s', '+999 555' || lpad(n::text, 4, '0'), 9 * (600 + 41 * n))
from generate_series(1, 30) n \gexec

-- Ten are visited, and their status changes: an honest change of the very column that the incident corrupts.
select format('update registrations set status = %L, notes = %L where id = %s',
              case when status = 'pending' then 'active' else 'pending' end, 'Visited again.', id)
from registrations where id % 9 = 3 and id > 9000 order by id limit 10 \gexec

-- 25 new households register, and get a blanket at once.
select format('with new as (insert into registrations (household_code, full_name, district_id, phone, status, '
              'vulnerability_score, profile, notes) values (%L, %L, %s, %L, %L, %s, %L, %L) returning id) '
              'insert into distributions (registration_id, item, quantity, unit_value, distributed_on, staff_id) '
              'select id, %L, 1, 8.50, %L, 7 from new',
              household_code, full_name, district_id, phone, status, vulnerability_score, profile, notes,
              'blanket', :'anchor'::date)
from generate_series(46000, 46100) n, pg_temp.household(n)
where district_id <> 7 order by n limit 25 \gexec

-- Eight distributions are corrected, and five are paid.
select format('update distributions set quantity = quantity + 1, remarks = %L where id = %s', 'recounted', id)
from (select distributions.id from distributions join registrations on registrations.id = registration_id
      where district_id = 5 order by 1 limit 8) corrected \gexec
select format('insert into payments (distribution_id, amount, method, paid_at) values (%s, 42.50, %L, %L)', id, 'cash', :'anchor')
from (select distributions.id from distributions join registrations on registrations.id = registration_id
      where district_id = 8 order by 1 limit 5) paid \gexec

-- Three duplicate households are deleted on purpose. They have no distributions.
select format('delete from registrations where id = %s', id)
from registrations where id in (14404, 21604, 28804) order by id \gexec

reset session authorization;
