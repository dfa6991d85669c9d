//! What other roles would have us run. Writing to a table runs the code of its triggers, CHECK constraints, generated
//! columns, domains and indexes, with the rights of whoever writes. A role that may write to a table anyway loses little by
//! that; a superuser would lend all its rights to whoever owns that code (CVE-2018-1058 and its kind).

use tokio_postgres::Client;

use super::super::connect::server_error;
use super::Triggers;
use super::frozen::Work;
use crate::error::{Error, Result};

/// Functions, also of operators, that the table depends on and that a role other than a superuser owns; none unless we are a
/// superuser ourselves. A SECURITY DEFINER function runs with its owner's rights. `$1` the table, `$2` whether triggers fire.
const FUNCTIONS: &str = "
with relation as (select $1::oid as oid union select relid::oid from pg_partition_tree($1::oid)),
code as (
    select 'pg_trigger'::regclass::oid as class, t.oid from pg_trigger t join relation r on r.oid = t.tgrelid
    where $2 and not t.tgisinternal and t.tgenabled in ('O', 'A')
    union all
    select 'pg_constraint'::regclass, k.oid from pg_constraint k join relation r on r.oid = k.conrelid
    union all
    select 'pg_constraint'::regclass, k.oid from pg_constraint k
    where k.contypid in (select a.atttypid from pg_attribute a join relation r on r.oid = a.attrelid where a.attnum > 0)
    union all
    select 'pg_class'::regclass, i.indexrelid from pg_index i join relation r on r.oid = i.indrelid
    union all
    select 'pg_attrdef'::regclass, d.oid from pg_attrdef d join relation r on r.oid = d.adrelid)
select distinct f.oid::regprocedure::text, pg_get_userbyid(f.proowner)::text
from code join pg_depend d on d.classid = code.class and d.objid = code.oid
left join pg_operator o on d.refclassid = 'pg_operator'::regclass and o.oid = d.refobjid
join pg_proc f on f.oid = case when d.refclassid = 'pg_proc'::regclass then d.refobjid else o.oprcode::oid end
join pg_roles owner on owner.oid = f.proowner
where not f.prosecdef and not owner.rolsuper and exists (select from pg_roles where rolname = current_user and rolsuper)
order by 1";

/// Errors when we are a superuser and writing would run code of a role that is none.
pub(super) async fn refuse(client: &Client, work: &Work) -> Result<()> {
    let live = &work.table.live;
    let fire = work.mode == Triggers::Fire;
    let rows = client
        .query(FUNCTIONS, &[&live.oid, &fire])
        .await
        .map_err(|error| server_error(error, &format!("looking whose code writing to {} would run", live.name)))?;
    if rows.is_empty() {
        return Ok(());
    }
    let functions: Vec<_> =
        rows.iter().map(|row| format!("{} of {}", row.get::<_, &str>(0), row.get::<_, &str>(1))).collect();
    Err(Error::refused(format!(
        "writing to {} as a superuser would run other roles' code with all rights: {}",
        live.name,
        functions.join(", ")
    ))
    .hint("Connect as the owner of the table: the code then runs with no more rights than it has every day.")
    .hint("Or skip the table's triggers, when they are the reason."))
}
