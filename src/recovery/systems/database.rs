//! A whole database: restored beside production, checked, and put in its place.

use std::process::Stdio;

use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

use super::{Evidence, Session, Systems, blocking, conninfo, location, points};
use crate::backup::Password;
use crate::error::{Error, Kind, Result};
use crate::postgres::connect::{self, Conninfo, Server, session_name};
use crate::postgres::database::{self, Exchange, Restored};
use crate::progress::{Progress, Unit};
use crate::recovery::record::Finding;

/// The dump whose rows were counted last.
pub(super) struct Dump {
    point: String,
    path: String,
    counted: Vec<database::Counted>,
}

impl Systems {
    pub(super) async fn needs(&self, recovery: &str, point: &str, dump: &str, progress: &Progress) -> Result<Finding> {
        progress.begin("opening the dump", Unit::Items, None);
        let (origin, conninfo) = (self.origin(recovery, point, dump, progress).await?, conninfo(&self.system)?);
        let server = database::maintenance(&conninfo, &session_name(recovery)).await?;
        let shown = format!("{}:{}", server.facts.host, server.facts.port);
        let at = (shown.as_str(), server.facts.version_number);
        let last = self.counted.lock().await.take().filter(|last| (&*last.point, &*last.path) == (point, dump));
        let known = last.map(|last| last.counted);
        let mut needs = database::needs(&server.client, at, &conninfo.database()?, (&origin, known), progress).await?;
        let counted = needs.counted.clone();
        *self.counted.lock().await = Some(Dump { point: point.into(), path: dump.into(), counted });
        if server.facts.in_recovery {
            needs.refusal = Some((
                "the server is a standby: nothing can be written there".into(),
                "Connect to the primary.".into(),
            ));
        }
        Ok(Finding::Needs(needs))
    }

    pub(super) async fn restore_database(
        &self,
        recovery: &str,
        (point, dump): (&str, &str),
        progress: &Progress,
    ) -> Result<Finding> {
        let Finding::Needs(needs) = self.needs(recovery, point, dump, progress).await? else {
            return Err(Error::bug("needs were looked for, something else was found"));
        };
        if let Some((why, hint)) = needs.refusal {
            return Err(Error::refused(why).hint(hint));
        }
        let (origin, conninfo) = (self.origin(recovery, point, dump, progress).await?, conninfo(&self.system)?);
        let server = database::maintenance(&conninfo, &session_name(recovery)).await?;
        let production =
            if needs.production.is_some() { Some(self.production(recovery, &conninfo).await?) } else { None };
        let written_before = match &production {
            Some(production) => database::written(&production.client).await?,
            None => None,
        };
        self.session.lock().await.restored = Some(recovery.into());
        let lock = self.lock().await;
        let at = (&*server.client, &conninfo, server.facts.superuser);
        let outcome = async {
            let mut restored = database::restore(at, recovery, &origin, &needs, progress).await?;
            restored.written_before = written_before;
            let (beside, name) = (conninfo.to_database(&restored.database), session_name(recovery));
            let (inside, gathering) =
                tokio::try_join!(connect::connect(&beside, &name), connect::connect(&beside, &name))?;
            let queries: Vec<_> =
                self.system.checks.iter().map(|check| (check.query.clone(), check.at_least)).collect();
            let other = production.as_ref().map(|production| &*production.client);
            let sessions: [&tokio_postgres::Client; 2] = [&inside.client, &gathering.client];
            let checked = database::check(sessions, other, &restored.loaded, &queries, progress).await?;
            Ok((restored, checked, inside))
        };
        let outcome = outcome.await;
        let _ = tokio::task::spawn_blocking(move || drop(lock)).await;
        match outcome {
            Ok((restored, checked, inside)) => {
                self.session.lock().await.inside = Some(Box::new(inside));
                Ok(Finding::RestoredDatabase(Box::new(restored), checked))
            }
            Err(error) => {
                // What went wrong matters more than a failure to clean up, which `clean` finds.
                let _ = self.session.lock().await.drop_restored(&conninfo).await;
                Err(error)
            }
        }
    }

    /// A session in production itself. It is of no further use once names are exchanged.
    async fn production(&self, recovery: &str, conninfo: &Conninfo) -> Result<Server> {
        connect::connect(conninfo, &session_name(recovery)).await
    }

    pub(super) async fn standing(&self, recovery: &str, restored: &Restored, progress: &Progress) -> Result<Finding> {
        progress.begin("looking how production stands now", Unit::Items, None);
        let conninfo = conninfo(&self.system)?;
        let server = database::maintenance(&conninfo, &session_name(recovery)).await?;
        let written = match self.production(recovery, &conninfo).await {
            Ok(production) => database::written(&production.client).await?,
            Err(_) => None,
        };
        let standing = database::standing(&server.client, &conninfo.database()?, restored, written).await?;
        Ok(Finding::Standing(standing))
    }

    pub(super) async fn way_back(&self, recovery: &str, exchange: &Exchange) -> Result<Finding> {
        let server = database::maintenance(&conninfo(&self.system)?, &session_name(recovery)).await?;
        database::way_back(&server.client, exchange).await.map(Finding::WayBack)
    }

    pub(super) async fn promote(&self, recovery: &str, exchange: &Exchange, progress: &Progress) -> Result<Evidence> {
        progress.begin("exchanging the databases", Unit::Items, None);
        let conninfo = conninfo(&self.system)?;
        // A session of ours would stand in the way, and is ended like any other.
        self.session.lock().await.server = None;
        let done = database::promote(&conninfo, recovery, exchange).await;
        let wanted = Some(exchange.oid);
        self.exchanged(recovery, &conninfo, exchange, wanted, done).await.map(Evidence::Promoted)
    }

    pub(super) async fn exchange_back(
        &self,
        recovery: &str,
        earlier: &str,
        exchange: &Exchange,
        progress: &Progress,
    ) -> Result<Evidence> {
        progress.begin("exchanging the databases", Unit::Items, None);
        let conninfo = conninfo(&self.system)?;
        self.session.lock().await.server = None;
        let done = database::back(&conninfo, recovery, earlier, exchange).await;
        self.exchanged(recovery, &conninfo, exchange, exchange.production, done).await.map(Evidence::Returned)
    }

    /// What an attempt came to. When the reply to its COMMIT was lost, the server knows which database has the name.
    async fn exchanged(
        &self,
        recovery: &str,
        conninfo: &Conninfo,
        exchange: &Exchange,
        wanted: Option<u32>,
        done: Result<database::Exchanged>,
    ) -> Result<database::Exchanged> {
        let error = match done {
            Err(error) if error.kind == Kind::Unresolved => error,
            known => return known,
        };
        let server = database::maintenance(conninfo, &session_name(recovery)).await.map_err(|_| error.clone())?;
        if database::holder(&server.client, &exchange.database).await.map_err(|_| error)? == wanted {
            return Ok(database::Exchanged::default());
        }
        Err(Error::target("the connection was lost, and the exchange was rolled back")
            .hint("Nothing was changed. Try again."))
    }

    /// What became of an exchange whose process ended in the middle.
    pub(super) async fn settle_exchange(
        &self,
        recovery: &str,
        exchange: &Exchange,
        wanted: Option<u32>,
    ) -> Result<Option<database::Exchanged>> {
        let server = database::maintenance(&conninfo(&self.system)?, &session_name(recovery)).await?;
        let now = database::holder(&server.client, &exchange.database).await?;
        Ok((now == wanted).then(database::Exchanged::default))
    }

    pub(super) async fn prove_promotion(&self, recovery: &str, exchange: &Exchange) -> Result<Evidence> {
        let conninfo = conninfo(&self.system)?;
        let server = connect::connect(&conninfo, &session_name(recovery)).await?;
        if server.facts.database_oid != exchange.oid {
            return Err(Error::bug(format!("{} does not lead to the restored database", exchange.database)));
        }
        // What was written to the earlier one since the restore began; nobody writes to it any more.
        let left_behind = match exchange.production {
            Some(_) => {
                let earlier =
                    connect::connect(&conninfo.to_database(&exchange.before), &session_name(recovery)).await?;
                let written = database::written(&earlier.client).await?;
                exchange.written_before.zip(written).and_then(|(before, now)| now.checked_sub(before))
            }
            None => None,
        };
        let tables = database::tables(&server.client).await?.len() as u64;
        Ok(Evidence::PromotionProved { tables, left_behind })
    }

    /// Takes over the database that a process of the same recovery has restored, and that nobody has decided about.
    pub async fn hold_restored(&self, recovery: &str) {
        self.session.lock().await.restored = Some(recovery.to_owned());
    }

    /// Backs production up as it is: `pg_dump` into restic, and what came of it is looked into.
    pub(super) async fn safety_backup(&self, recovery: &str, database: &str, progress: &Progress) -> Result<Evidence> {
        progress.begin(format!("backing up {database} as it is now"), Unit::Items, None);
        let (conninfo, location) = (conninfo(&self.system)?, location(&self.system)?);
        let folder = tempfile::Builder::new().prefix("lifeboat-").tempdir();
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            Error::operator(format!("cannot back up {database}: {what}"))
                .detail(error)
                .hint("Go back and go on without it, or make restic and pg_dump work here first.")
        };
        let folder = folder.map_err(|error| failed("no folder for temporary files", &error))?;
        let server = database::maintenance(&conninfo, &session_name(recovery)).await?;
        let mut dump = database::pg_dump(&conninfo, server.facts.version_number, folder.path(), recovery)?;
        dump.args(["--format=custom", "--dbname", database]);
        let mut restic = Command::new("restic");
        restic.args(["backup", "--json", "--stdin", "--stdin-filename", &format!("{database}.dump")]);
        restic.args(["--tag", "lifeboat-safety", "--tag", database, "--tag", recovery]);
        // A url may hold a password, and arguments can be read by all.
        restic.env("RESTIC_REPOSITORY", &location.url).env_remove("RESTIC_REPOSITORY_FILE");
        match &location.password {
            Password::File(file) => _ = restic.env("RESTIC_PASSWORD_FILE", file),
            Password::Command(command) => _ = restic.env("RESTIC_PASSWORD_COMMAND", command),
            Password::Given(password) => {
                let file = folder.path().join("password");
                database::write_secret(&file, password.reveal()).map_err(|error| failed("no password file", &error))?;
                restic.env("RESTIC_PASSWORD_FILE", file);
            }
        }
        let mut dump = dump.stdout(Stdio::piped()).spawn().map_err(|error| failed("pg_dump cannot be run", &error))?;
        let pipe = dump.stdout.take().map(tokio::process::ChildStdout::into_owned_fd).transpose();
        let pipe = pipe.map_err(|error| failed("no pipe", &error))?.map_or_else(Stdio::null, Stdio::from);
        let restic = restic
            .stdin(pipe)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed("restic cannot be run", &error))?;
        let mut complaints = String::new();
        let mut voice = dump.stderr.take();
        let listening = async {
            if let Some(voice) = &mut voice {
                let _ = voice.read_to_string(&mut complaints).await;
            }
            dump.wait().await
        };
        let both = async { tokio::join!(restic.wait_with_output(), listening) };
        let (backed_up, dumped) = tokio::select! {
            biased;
            () = progress.cancelled() => return Err(Error::cancelled()),
            both = both => both,
        };
        let backed_up = backed_up.map_err(|error| failed("restic was lost", &error))?;
        // A dump that was cut makes a snapshot all the same.
        if !dumped.map_err(|error| failed("pg_dump was lost", &error))?.success() {
            return Err(failed("pg_dump failed; the snapshot that restic made of it is of no use", &complaints));
        }
        if !backed_up.status.success() {
            return Err(failed("restic failed", &String::from_utf8_lossy(&backed_up.stderr)));
        }
        let lines = String::from_utf8_lossy(&backed_up.stdout).into_owned();
        let summary = lines.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let snapshot = summary.rev().find_map(|line| Some(line.get("snapshot_id")?.as_str()?.to_owned()));
        let snapshot = snapshot.ok_or_else(|| failed("restic names no snapshot", &lines))?;
        // Opened afresh: what was read before does not know it.
        *self.repository.lock().await = None;
        let point = self.find(&snapshot).await?;
        let repository = self.repository().await?;
        let found = blocking(move || Ok(points::search(&repository, &point, &Progress::default())?.0)).await?;
        match found.dumps.as_slice() {
            [one] if one.damage.is_none() => {
                Ok(Evidence::BackedUp { snapshot, tables: one.tables.unwrap_or_default() })
            }
            _ => Err(failed("the snapshot does not hold a dump that can be read", &snapshot)),
        }
    }
}

impl Session {
    /// Drops the database that this recovery restored, unless it is in production's place.
    pub(super) async fn drop_restored(&mut self, conninfo: &Conninfo) -> Result<()> {
        let Some(recovery) = self.restored.clone() else { return Ok(()) };
        let server = database::maintenance(conninfo, &session_name(&recovery)).await?;
        self.inside = None;
        database::drop_restored(&server.client, &recovery).await?;
        self.restored = None;
        Ok(())
    }
}
