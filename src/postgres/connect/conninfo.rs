//! Connection strings as libpq reads them: keywords or a URL, completed from a service file, the `PG*` environment, a
//! password file and defaults, in this order. An operator's `psql` line works here unchanged.
//!
//! - Invariant: an error never repeats a value, since any of them could be a password that was not quoted.
//! - Invariant: a setting that libpq knows and we cannot honour is refused when leaving it out would weaken a check.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::{User, geteuid};

use super::passfile;
use crate::error::{Error, Result};
use crate::secret::Secret;

/// Where Debian's servers put their sockets, and so where its libpq looks first.
const SOCKET_FOLDER: &str = "/var/run/postgresql";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What we do with a keyword of libpq.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Read,
    /// Ours is fixed, or it makes no difference here.
    Ignored,
    /// Leaving it out would weaken a check; it is refused.
    Unsupported,
}

/// Keyword, environment variable (or empty), use. From the libpq chapter of the PostgreSQL 18 manual.
const KEYWORDS: &[(&str, &str, Use)] = &[
    ("service", "PGSERVICE", Use::Read),
    ("servicefile", "PGSERVICEFILE", Use::Read),
    ("user", "PGUSER", Use::Read),
    ("password", "PGPASSWORD", Use::Read),
    ("passfile", "PGPASSFILE", Use::Read),
    ("dbname", "PGDATABASE", Use::Read),
    ("host", "PGHOST", Use::Read),
    ("hostaddr", "PGHOSTADDR", Use::Read),
    ("port", "PGPORT", Use::Read),
    ("connect_timeout", "PGCONNECT_TIMEOUT", Use::Read),
    ("options", "PGOPTIONS", Use::Read),
    ("target_session_attrs", "PGTARGETSESSIONATTRS", Use::Read),
    ("channel_binding", "PGCHANNELBINDING", Use::Read),
    ("sslmode", "PGSSLMODE", Use::Read),
    ("sslnegotiation", "PGSSLNEGOTIATION", Use::Read),
    ("sslcert", "PGSSLCERT", Use::Read),
    ("sslkey", "PGSSLKEY", Use::Read),
    ("sslrootcert", "PGSSLROOTCERT", Use::Read),
    ("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION", Use::Read),
    ("application_name", "PGAPPNAME", Use::Ignored),
    ("fallback_application_name", "", Use::Ignored),
    ("client_encoding", "PGCLIENTENCODING", Use::Ignored),
    ("keepalives", "", Use::Ignored),
    ("keepalives_idle", "", Use::Ignored),
    ("keepalives_interval", "", Use::Ignored),
    ("keepalives_count", "", Use::Ignored),
    ("tcp_user_timeout", "", Use::Ignored),
    ("sslcompression", "PGSSLCOMPRESSION", Use::Ignored),
    ("sslsni", "PGSSLSNI", Use::Ignored),
    ("sslcertmode", "PGSSLCERTMODE", Use::Ignored),
    ("gssencmode", "PGGSSENCMODE", Use::Ignored),
    ("krbsrvname", "PGKRBSRVNAME", Use::Ignored),
    ("gsslib", "PGGSSLIB", Use::Ignored),
    ("gssdelegation", "PGGSSDELEGATION", Use::Ignored),
    ("load_balance_hosts", "PGLOADBALANCEHOSTS", Use::Ignored),
    ("min_protocol_version", "PGMINPROTOCOLVERSION", Use::Ignored),
    ("max_protocol_version", "PGMAXPROTOCOLVERSION", Use::Ignored),
    ("replication", "", Use::Unsupported),
    ("sslpassword", "", Use::Unsupported),
    ("sslcrl", "PGSSLCRL", Use::Unsupported),
    ("sslcrldir", "PGSSLCRLDIR", Use::Unsupported),
    ("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION", Use::Unsupported),
    ("requirepeer", "PGREQUIREPEER", Use::Unsupported),
    ("require_auth", "PGREQUIREAUTH", Use::Unsupported),
    ("requiressl", "PGREQUIRESSL", Use::Unsupported),
];

/// A libpq connection string merged with everything that libpq would add to it.
#[derive(Debug, Clone)]
pub struct Conninfo {
    /// All but the password, by keyword. An empty value is like none, but keeps lower-ranking sources out.
    values: BTreeMap<&'static str, String>,
    password: Option<Secret>,
    home: Option<PathBuf>,
    user: Option<String>,
}

/// One server to try.
#[derive(Debug, Clone)]
pub struct Target {
    /// Also tells how it is reached.
    pub host: Host,
    /// 5432 when none was given.
    pub port: u16,
    /// From the string, the environment, or the name of this process's user.
    pub user: String,
    /// As the user when none was given, as in libpq.
    pub database: String,
    /// From the string, the environment or the password file; `None`: the server must do without.
    pub password: Option<Secret>,
    /// Why the password file was not used, if it was not.
    pub passfile_refused: Option<String>,
}

/// How a server is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// The folder that holds the socket.
    Socket(PathBuf),
    /// The name that a certificate must carry, and where to connect when that is given apart from it.
    Tcp {
        /// As it was given; `localhost` or the address where no name was.
        name: String,
        /// `hostaddr`; `None`: the name is looked up.
        address: Option<IpAddr>,
    },
}

impl Host {
    /// Packets to it never leave this machine.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Socket(_) => true,
            Self::Tcp { address: Some(address), .. } => address.is_loopback(),
            Self::Tcp { name, address: None } => {
                name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|it| it.is_loopback())
            }
        }
    }

    /// For messages: the socket's folder or the name, without the port.
    pub fn shown(&self) -> String {
        match self {
            Self::Socket(folder) => folder.display().to_string(),
            Self::Tcp { name, .. } => name.clone(),
        }
    }
}

impl Conninfo {
    /// Reads a URL, keywords, or a lone database name, and completes it from this process's environment.
    pub fn parse(text: &str) -> Result<Self> {
        Self::with_environment(text, &environment())
    }

    /// What `psql` without arguments would connect to.
    pub fn from_environment() -> Result<Self> {
        Self::parse("")
    }

    /// Like [`Conninfo::parse`], with the environment's variables given.
    pub fn with_environment(text: &str, variables: &BTreeMap<String, String>) -> Result<Self> {
        let account = User::from_uid(geteuid()).ok().flatten();
        let home = match variables.get("HOME") {
            Some(home) if !home.is_empty() => Some(PathBuf::from(home)),
            _ => account.as_ref().map(|account| account.dir.clone()),
        };
        let user = account.map(|account| account.name);
        let mut conninfo = Self { values: BTreeMap::new(), password: None, home, user };
        let given = if let Some(rest) = strip_scheme(text.trim()) {
            from_url(rest)?
        } else if text.contains('=') {
            from_keywords(text)?
        } else if text.trim().is_empty() {
            Vec::new()
        } else {
            vec![("dbname".to_owned(), text.trim().to_owned())]
        };
        let mut explicit = BTreeMap::new();
        for (keyword, value) in given {
            explicit.insert(keyword, value);
        }
        conninfo.fill(explicit, "the connection string")?;
        conninfo.fill_from_service(variables)?;
        let surroundings = KEYWORDS.iter().filter(|(_, variable, _)| !variable.is_empty());
        let surroundings = surroundings.filter_map(|(keyword, variable, _)| {
            variables
                .get(*variable)
                .filter(|value| !value.is_empty())
                .map(|value| ((*keyword).to_owned(), value.clone()))
        });
        conninfo.fill(surroundings.collect(), "the environment")?;
        conninfo.targets()?;
        Ok(conninfo)
    }

    /// Where it leads, without secrets: `db.example.org:5432/programme as app`.
    pub fn shown(&self) -> String {
        let Ok(targets) = self.targets() else { return "an unreadable connection string".into() };
        let mut shown = String::new();
        for target in &targets {
            let comma = if shown.is_empty() { "" } else { "," };
            let _ = write!(shown, "{comma}{}:{}", target.host.shown(), target.port);
        }
        targets.first().map_or(shown.clone(), |first| format!("{shown}/{} as {}", first.database, first.user))
    }

    /// The database that it leads to.
    pub fn database(&self) -> Result<String> {
        Ok(self.targets()?.into_iter().next().map(|target| target.database).unwrap_or_default())
    }

    /// The same server, another database.
    #[must_use]
    pub fn to_database(&self, name: &str) -> Self {
        let mut other = self.clone();
        other.values.insert("dbname", name.to_owned());
        other
    }

    /// A password that was given; one of a password file is found there by whoever looks.
    pub fn password(&self) -> Option<&Secret> {
        self.password.as_ref()
    }

    /// The environment by which a program of PostgreSQL reaches the same servers; neither a password nor the database is in it.
    pub fn for_programs(&self) -> Vec<(&'static str, String)> {
        // The service was read already, and what it says is among the values.
        let left_out = ["service", "servicefile", "password", "dbname", "options"];
        let read = KEYWORDS.iter().filter(|(keyword, _, what)| *what == Use::Read && !left_out.contains(keyword));
        read.filter_map(|(keyword, variable, _)| Some((*variable, self.value(keyword)?.to_owned()))).collect()
    }

    /// A value that was given and is not empty.
    pub fn value(&self, keyword: &str) -> Option<&str> {
        self.values.get(keyword).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// A file below the home folder, as `~/.postgresql/root.crt`.
    pub fn home_file(&self, below: &str) -> Option<PathBuf> {
        self.home.as_ref().map(|home| home.join(below))
    }

    /// How long one attempt may take; `None` when the operator asked to wait for ever.
    pub fn connect_timeout(&self) -> Result<Option<Duration>> {
        let Some(text) = self.value("connect_timeout") else { return Ok(Some(CONNECT_TIMEOUT)) };
        let seconds: i64 = text.trim().parse().map_err(|_| not_a("connect_timeout", "a number of seconds"))?;
        // As in libpq: zero or less waits, and one second would be too short to be meant.
        Ok(u64::try_from(seconds)
            .ok()
            .filter(|seconds| *seconds > 0)
            .map(|seconds| Duration::from_secs(seconds.max(2))))
    }

    /// The servers to try, in order.
    pub fn targets(&self) -> Result<Vec<Target>> {
        let list = |keyword| self.value(keyword).map(|text| text.split(',').map(str::trim).collect::<Vec<_>>());
        let (names, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
        let count = names.as_ref().or(addresses.as_ref()).map_or(1, Vec::len);
        if addresses.as_ref().is_some_and(|addresses| addresses.len() != count) {
            return Err(Error::operator("host and hostaddr do not name the same number of servers"));
        }
        if ports.as_ref().is_some_and(|ports| ports.len() != 1 && ports.len() != count) {
            return Err(Error::operator("host and port do not name the same number of servers")
                .hint("Give one port for all servers, or one for each."));
        }
        let user = match self.value("user") {
            Some(user) => user.to_owned(),
            None => self.user.clone().ok_or_else(|| {
                Error::operator("this process's user has no name").hint("Add user=NAME to the connection string.")
            })?,
        };
        let database = self.value("dbname").unwrap_or(&user).to_owned();
        (0..count)
            .map(|place| {
                let nth = |list: &Option<Vec<&str>>| {
                    list.as_ref().and_then(|list| list.get(place).copied()).unwrap_or_default().to_owned()
                };
                let host = host(&nth(&names), &nth(&addresses))?;
                let port = match ports.as_ref().map(|ports| if ports.len() == 1 { ports[0] } else { ports[place] }) {
                    None | Some("") => 5432,
                    Some(text) => text.parse().ok().filter(|port| *port > 0).ok_or_else(|| not_a("port", "a port"))?,
                };
                let mut target = Target {
                    host,
                    port,
                    user: user.clone(),
                    database: database.clone(),
                    password: self.password.clone(),
                    passfile_refused: None,
                };
                if target.password.is_none() {
                    self.look_up_password(&mut target);
                }
                Ok(target)
            })
            .collect()
    }

    fn look_up_password(&self, target: &mut Target) {
        let file = self.value("passfile").map(PathBuf::from).or_else(|| self.home_file(".pgpass"));
        let Some(file) = file else { return };
        let host = match &target.host {
            // libpq's rule: the default socket folder is called localhost in a password file.
            Host::Socket(folder) if folder == Path::new(SOCKET_FOLDER) => "localhost".to_owned(),
            Host::Tcp { name, address: Some(address) } if name.is_empty() => address.to_string(),
            host => host.shown(),
        };
        match passfile::look_up(&file, &[&host, &target.port.to_string(), &target.database, &target.user]) {
            Ok(password) => target.password = password,
            Err(why) => target.passfile_refused = Some(why),
        }
    }

    /// Takes what is not set yet.
    fn fill(&mut self, values: BTreeMap<String, String>, source: &str) -> Result<()> {
        for (keyword, value) in values {
            let Some((known, _, what)) = KEYWORDS.iter().find(|(known, _, _)| *known == keyword) else {
                return Err(unknown(&keyword, source));
            };
            match what {
                Use::Unsupported if !value.is_empty() => {
                    return Err(Error::operator(format!("{keyword} in {source} is not supported")).hint(format!(
                        "Leaving {keyword} out could weaken a check, so it is not ignored: remove it."
                    )));
                }
                Use::Unsupported | Use::Ignored => {}
                Use::Read if keyword == "password" => {
                    if self.password.is_none() && !value.is_empty() {
                        self.password = Some(Secret::new(value));
                    }
                }
                Use::Read => {
                    self.values.entry(known).or_insert(value);
                }
            }
        }
        Ok(())
    }

    fn fill_from_service(&mut self, variables: &BTreeMap<String, String>) -> Result<()> {
        let variable = |name: &str| variables.get(name).filter(|value| !value.is_empty()).map(String::as_str);
        let Some(name) = self.value("service").or(variable("PGSERVICE")).map(str::to_owned) else { return Ok(()) };
        let own = self.value("servicefile").or(variable("PGSERVICEFILE")).map(PathBuf::from);
        let own = own.or_else(|| self.home_file(".pg_service.conf"));
        let folder = variable("PGSYSCONFDIR").unwrap_or("/etc/postgresql-common");
        let files: Vec<_> = own.into_iter().chain([Path::new(folder).join("pg_service.conf")]).collect();
        for file in &files {
            if let Some(values) = service(file, &name)? {
                return self.fill(values, &format!("service \"{name}\" of {}", file.display()));
            }
        }
        let files: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
        Err(Error::operator(format!("there is no service \"{name}\""))
            .hint(format!("Add a section [{name}] to {}.", files.join(" or "))))
    }
}

/// The environment of this process, as far as it is text.
fn environment() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| name.starts_with("PG") || name == "HOME")
        .collect()
}

fn host(name: &str, address: &str) -> Result<Host> {
    let address: Option<IpAddr> = match address {
        "" => None,
        text => Some(text.parse().map_err(|_| not_a("hostaddr", "an IP address"))?),
    };
    Ok(match (name, address) {
        ("", None) if Path::new(SOCKET_FOLDER).is_dir() => Host::Socket(SOCKET_FOLDER.into()),
        ("", None) => Host::Tcp { name: "localhost".into(), address: None },
        ("", Some(address)) => Host::Tcp { name: address.to_string(), address: Some(address) },
        (folder, None) if folder.starts_with('/') => Host::Socket(folder.into()),
        (name, _) if name.starts_with('@') => return Err(not_a("host", "a name, an address or a folder")),
        (name, address) => Host::Tcp { name: name.to_owned(), address },
    })
}

/// One section of a service file, or `None` when the file or the section is not there.
fn service(file: &Path, name: &str) -> Result<Option<BTreeMap<String, String>>> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(Error::operator(format!("cannot read the service file {}", file.display())).detail(error));
        }
    };
    let mut found: Option<BTreeMap<String, String>> = None;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if line.starts_with('[') {
            if found.is_some() {
                break;
            }
            if line == format!("[{name}]") {
                found = Some(BTreeMap::new());
            }
            continue;
        }
        let Some(values) = &mut found else { continue };
        let place = format!("line {} of {}", number + 1, file.display());
        match line.split_once('=') {
            Some(("service" | "servicefile", _)) => {
                return Err(Error::operator(format!("{place} names a service within a service")));
            }
            Some((keyword, value)) => {
                values.entry(keyword.to_owned()).or_insert_with(|| value.to_owned());
            }
            None => return Err(Error::operator(format!("{place} is not KEYWORD=VALUE"))),
        }
    }
    Ok(found)
}

/// `keyword = value`, values in single quotes where they have spaces, backslash before a quote or a backslash.
fn from_keywords(text: &str) -> Result<Vec<(String, String)>> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    let mut letters = text.chars().peekable();
    loop {
        while letters.next_if(|letter| letter.is_whitespace()).is_some() {}
        if letters.peek().is_none() {
            return Ok(pairs);
        }
        let mut keyword = String::new();
        while let Some(letter) = letters.next_if(|letter| *letter != '=' && !letter.is_whitespace()) {
            keyword.push(letter);
        }
        while letters.next_if(|letter| letter.is_whitespace()).is_some() {}
        let after = pairs.last().map_or_else(String::new, |(before, _)| format!(" after {before}"));
        if letters.next_if_eq(&'=').is_none() {
            return Err(Error::operator(format!("the connection string has a word without \"=\"{after}"))
                .hint("Put a value that has spaces in single quotes."));
        }
        let named = KEYWORDS.iter().any(|(known, _, _)| *known == keyword);
        if !named && pairs.last().is_some_and(|(before, _)| before == "password") {
            // What looks like a keyword may be the rest of a password with a space in it.
            return Err(Error::operator("the connection string has an unknown keyword after password")
                .hint("Put a value that has spaces in single quotes."));
        }
        while letters.next_if(|letter| letter.is_whitespace()).is_some() {}
        let mut value = String::new();
        let quoted = letters.next_if_eq(&'\'').is_some();
        loop {
            match letters.peek() {
                None if quoted => {
                    return Err(Error::operator(format!("the value of {keyword} has a quote that is not closed")));
                }
                None => break,
                Some('\'') if quoted => {
                    letters.next();
                    break;
                }
                Some(letter) if !quoted && letter.is_whitespace() => break,
                Some('\\') => {
                    letters.next();
                    value.extend(letters.next());
                }
                Some(_) => value.extend(letters.next()),
            }
        }
        pairs.push((keyword, value));
    }
}

fn strip_scheme(text: &str) -> Option<&str> {
    text.strip_prefix("postgresql://").or_else(|| text.strip_prefix("postgres://"))
}

/// `user:password@host:port,host:port/database?keyword=value&...`, everything percent-encoded.
fn from_url(rest: &str) -> Result<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    // As in libpq: what comes before an "@" is the login, even with a question mark in it.
    let login_end = rest.find(['@', '/']).filter(|at| rest[*at..].starts_with('@')).unwrap_or(0);
    let authority_end = rest[login_end..].find(['/', '?']).map_or(rest.len(), |at| login_end + at);
    let (authority, rest) = rest.split_at(authority_end);
    let (path, query) = rest.split_once('?').map_or((rest, None), |(path, query)| (path, Some(query)));
    let database = path.strip_prefix('/').unwrap_or_default();
    if database.contains('@') {
        // Half a password would be taken for the database's name, and shown as such.
        return Err(Error::operator("the URL has an \"@\" after its first \"/\"")
            .hint("Write %2F for a slash in a name or a password, and %40 for an at sign."));
    }
    let (login, servers) =
        authority.rsplit_once('@').map_or((None, authority), |(login, servers)| (Some(login), servers));
    if let Some(login) = login {
        let (user, password) = login.split_once(':').map_or((login, None), |(user, password)| (user, Some(password)));
        pairs.push(("user".to_owned(), decode(user)?));
        if let Some(password) = password {
            pairs.push(("password".to_owned(), decode(password)?));
        }
    }
    let (mut hosts, mut ports) = (Vec::new(), Vec::new());
    for server in servers.split(',') {
        let (host, port) = match server.strip_prefix('[') {
            Some(inner) => {
                let wrong = || Error::operator("the URL has an IPv6 address without its closing bracket");
                let (host, after) = inner.split_once(']').ok_or_else(wrong)?;
                (host, after.strip_prefix(':').unwrap_or(after))
            }
            None => server.split_once(':').unwrap_or((server, "")),
        };
        hosts.push(decode(host)?);
        ports.push(decode(port)?);
    }
    if hosts.iter().any(|host| !host.is_empty()) {
        pairs.push(("host".to_owned(), hosts.join(",")));
    }
    if ports.iter().any(|port| !port.is_empty()) {
        pairs.push(("port".to_owned(), ports.join(",")));
    }
    if !database.is_empty() {
        pairs.push(("dbname".to_owned(), decode(database)?));
    }
    for parameter in query.into_iter().flat_map(|query| query.split('&')).filter(|parameter| !parameter.is_empty()) {
        let (keyword, value) = parameter
            .split_once('=')
            .ok_or_else(|| Error::operator("the URL has a parameter without \"=\" after its question mark"))?;
        match (decode(keyword)?, decode(value)?) {
            // As JDBC writes it.
            (keyword, value) if keyword == "ssl" && value == "true" => pairs.push(("sslmode".into(), "require".into())),
            pair => pairs.push(pair),
        }
    }
    Ok(pairs)
}

fn decode(text: &str) -> Result<String> {
    let wrong = || {
        Error::operator("the URL has a \"%\" that is not followed by two hexadecimal digits")
            .hint("Write %25 for a percent sign in a name or a password.")
    };
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16)).ok_or_else(wrong);
        let value = digit()? * 16 + digit()?;
        match u8::try_from(value) {
            Ok(value) if value != 0 => bytes.push(value),
            _ => return Err(Error::operator("the URL has a NUL byte (%00)")),
        }
    }
    String::from_utf8(bytes).map_err(|_| Error::operator("the URL is not UTF-8 once decoded"))
}

fn not_a(keyword: &str, what: &str) -> Error {
    Error::operator(format!("{keyword} of the database connection is not {what}"))
}

fn unknown(keyword: &str, source: &str) -> Error {
    let plain = keyword.len() <= 40 && keyword.chars().all(|letter| letter.is_ascii_alphabetic() || letter == '_');
    let known: Vec<_> = KEYWORDS.iter().filter(|(_, _, what)| *what == Use::Read).map(|(known, _, _)| *known).collect();
    let error = if plain && !keyword.is_empty() {
        Error::operator(format!("{source} has an unknown keyword \"{keyword}\""))
    } else {
        Error::operator(format!("{source} has an unknown keyword"))
    };
    error.hint(format!("Known keywords are {}.", known.join(", ")))
}
