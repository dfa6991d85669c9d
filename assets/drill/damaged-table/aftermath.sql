-- Nobody noticed at once, so work went on. Nothing here touches the status or the score of a damaged household.

set session authorization programme_app;

-- Three households of Korvane, closed by mistake a moment ago, have a new telephone number: writing their whole rows
-- back would lose it.
select format('update registrations set phone = %L where id = %s', '+999 777' || lpad(n::text, 4, '0'), id)
from (values (1, 906), (2, 18006), (3, 36006)) damaged (n, id) \gexec

-- Seven others, which are not damaged.
select format('update registrations set notes = %L where id = %s', 'Called back.', 9 * (500 + 53 * n) + 8)
from generate_series(1, 7) n \gexec

-- Five new households, and a distribution to a damaged one.
select format('insert into registrations (household_code, full_name, district_id, phone, status, vulnerability_score) '
              'values (%L, %L, %s, %L, %L, %s)',
              household_code, full_name, district_id, phone, status, vulnerability_score)
from generate_series(46200, 46220) n, pg_temp.household(n) where district_id <> 7 order by n limit 5 \gexec
insert into distributions (registration_id, item, quantity, unit_value, distributed_on)
values (18006, 'tarpaulin', 1, 19.99, :'anchor'::date);

reset session authorization;
