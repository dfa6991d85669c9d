-- What the n-th household, distribution and payment look like. Everything follows from n: no chance, no clock. The
-- other scripts include this one; its functions live in pg_temp, so that no dump contains them.

\set ON_ERROR_STOP on

create function pg_temp.household(n bigint)
returns table (household_code text, full_name text, district_id integer, phone text, status registration_status,
               vulnerability_score numeric, profile jsonb, notes text)
language sql immutable as $$
    -- District 7 has exactly 5,000 households: what would be the 5,001st is in district 1 instead.
    with place (district) as (select case when n % 9 = 6 and n / 9 >= 5000 then 1 else n % 9 + 1 end)
    select (array['AMB','BES','DAK','ERE','FON','GUL','KOR','LIN','SÃO'])[district] || '-' || lpad(n::text, 6, '0'),
           (array['Amina','José','Zoë','Li','Nguyễn','Fatima','Olga','Kwame','Siobhán','Ibrahim','Marta','Тарас',
                  'Leïla','João','Aïcha','Søren','محمد','Grace','Ağca','Ruth','Élodie','Peter'])[1 + n * 7 % 22]
               || ' ' ||
           (array['Haddad','O''Brien','Núñez','Tan','Okafor','D''Souza','Müller','Nakamura','Kowalczyk','Mensah','Đặng',
                  'Петренко','da Silva','العلي','García Márquez','Smith','van der Berg','Nkosi','Yılmaz'])[1 + n * 11 % 19],
           district::integer,
           case when n % 13 <> 0 then '+999 ' || lpad((n * 7919 % 10000000)::text, 7, '0') end,
           (array['active','active','pending','active','suspended','active','closed'])[1 + n * 5 % 7]::registration_status,
           5 + (n * 6151 % 9301) / 100.0,
           jsonb_build_object('size', 1 + n * 3 % 9, 'water_km', round((n * 17 % 80) / 10.0, 1),
                              'languages', (array['["fr"]','["ar","fr"]','["en"]','["pt","en"]'])[1 + n % 4]::jsonb,
                              'shelter', (array['house','tent','host family','school'])[1 + n * 3 / 5 % 4]),
           case when n % 5 = 0 then 'Visited; head of household met.'
                when n % 17 = 0 then E'Second line:\n\tcall before noon \\ or after six'
                when n % 101 = 0 then '' end
    from place
$$;

create function pg_temp.distribution(n bigint)
returns table (registration_id bigint, item text, quantity integer, unit_value numeric, staff_id integer, remarks text)
language sql immutable as $$
    -- Households whose number is divisible by four have no distributions; those can go without taking anything along.
    with household (number) as (select 1 + n * 7919 % 45400)
    select case when number % 4 = 0 then number + 1 else number end,
           (array['blanket','rice 25 kg','water filter','school kit','tarpaulin','cash grant'])[1 + n * 5 % 6],
           (1 + n % 4)::integer, (array[8.50, 21.75, 33.00, 12.40, 19.99, 120.00])[1 + n * 5 % 6],
           (1 + n % 36)::integer, case when n % 11 = 0 then 'collected by a neighbour' end
    from household
$$;

create function pg_temp.payment(n bigint)
returns table (amount numeric, currency currency_code, method text)
language sql immutable as $$
    select 10 + (n * 37 % 900) / 4.0, (array['EUR','USD','XOF'])[1 + n % 3]::currency_code,
           (array['mobile money','cash','voucher'])[1 + n * 7 % 3]
$$;
