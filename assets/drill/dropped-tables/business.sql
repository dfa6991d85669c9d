-- The work between the base backup and the migration, each statement a transaction of its own. It is in no dump: whoever
-- brings the tables back out of one loses it.

set session authorization programme_app;

-- 24 people are sent to a clinic, each with a note.
select format('with new as (insert into referrals (registration_id, clinic, reason, urgency) values (%s, %L, %L, %s) '
              'returning id) insert into referral_notes (referral_id, author, body) select id, %s, %L from new',
              1 + 4 * (9000 + 17 * n), 'Mobile team 2', 'fever', 1 + n % 5, 1 + n, 'First note of referral ' || n)
from generate_series(1, 24) n \gexec

-- Twelve referrals are closed, and one that was opened by mistake is deleted, its notes with it.
select format('update referrals set outcome = %L, closed_at = now() where id = %s', 'well again', 4 * (200 + 31 * n))
from generate_series(1, 12) n \gexec
delete from referrals where id = 1001;

-- 15 households are visited, and five visits of long ago are corrected.
select format('insert into home_visits (registration_id, staff_id, visited_on, needs) values (%s, %s, %L, %L)',
              1 + 4 * (10000 + 7 * n), 1 + n, :'anchor'::date, '{"water": true, "people": 4}')
from generate_series(1, 15) n \gexec
select format('update home_visits set needs = needs || %L where id = %s', '{"corrected": true}', 100 * n)
from generate_series(1, 5) n \gexec

-- Six complaints, about referrals that are minutes old; ten households have a new telephone number.
select format('insert into complaints (registration_id, referral_id, body) values (%s, %s, %L)',
              registration_id, id, 'No transport to the clinic.')
from (select id, registration_id from referrals order by id desc limit 6) recent \gexec
select format('update registrations set phone = %L where id = %s', '+999 333' || lpad(n::text, 4, '0'), 4 * (5000 + 13 * n) + 1)
from generate_series(1, 10) n \gexec

-- A clinic writes what it may: outcomes and notes.
set session authorization partner_clinic;
select format('update referrals set outcome = %L where id = %s', 'admitted, ward ' || n, 4 * (10 + n))
from generate_series(1, 4) n \gexec
insert into referral_notes (referral_id, body) values (2400, 'Admitted; the family is told.');

reset session authorization;
