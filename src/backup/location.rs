//! Where a repository is, in the forms that restic users already have in their environment and scripts.

use std::collections::BTreeMap;
use std::env;
use std::ops::Range;
use std::path::PathBuf;

use url::Url;

use crate::error::{Error, Result};
use crate::secret::Secret;

/// Where a repository is and how it is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// As restic takes it: `/path`, `local:path`, `s3:host/bucket/path`, `s3:https://host/bucket/path`,
    /// `sftp:user@host:/path`, `sftp://user@host:port//path`, `rest:https://host/path`, `rclone:remote:path`.
    pub url: String,
    /// Fetched when the repository is opened, not before.
    pub password: Password,
}

/// Where the password of a repository comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Password {
    /// Its first line.
    File(PathBuf),
    /// A command that prints it; split into words and run without a shell.
    Command(String),
    /// Held in memory, as from `RESTIC_PASSWORD`.
    Given(Secret),
}

/// What a repository URL means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Target {
    Local(PathBuf),
    S3(BTreeMap<&'static str, String>),
    Sftp(Sftp),
    /// `http://` or `https://`, with user and password where there are some.
    Rest(String),
    /// The remote in rclone's own words.
    Rclone(String),
}

/// A folder reached through `ssh`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sftp {
    /// What ssh is called with: `host` or `user@host`.
    pub destination: String,
    pub port: Option<u16>,
    /// Relative to the home of the user there, unless it begins with `/`.
    pub path: String,
}

impl Location {
    /// Reads `RESTIC_REPOSITORY` or `RESTIC_REPOSITORY_FILE`, and `RESTIC_PASSWORD_COMMAND`, `RESTIC_PASSWORD_FILE` or
    /// `RESTIC_PASSWORD`. `None` when no repository is named.
    pub fn from_environment() -> Result<Option<Self>> {
        Self::from_variables(|name| env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let url = match (variable("RESTIC_REPOSITORY"), variable("RESTIC_REPOSITORY_FILE")) {
            (None, None) => return Ok(None),
            (Some(url), None) => url,
            (None, Some(path)) => {
                let text = std::fs::read_to_string(&path).map_err(|error| {
                    Error::operator(format!("cannot read the repository file {path}"))
                        .detail(error)
                        .hint("Correct RESTIC_REPOSITORY_FILE: the file holds the repository's location on one line.")
                })?;
                text.trim().to_owned()
            }
            (Some(_), Some(_)) => {
                return Err(Error::operator("RESTIC_REPOSITORY and RESTIC_REPOSITORY_FILE are both set")
                    .hint("Unset one of them."));
            }
        };
        let password = match (variable("RESTIC_PASSWORD_COMMAND"), variable("RESTIC_PASSWORD_FILE")) {
            (Some(_), Some(_)) => {
                return Err(Error::operator("RESTIC_PASSWORD_COMMAND and RESTIC_PASSWORD_FILE are both set")
                    .hint("Unset one of them."));
            }
            (Some(command), None) => Password::Command(command),
            (None, Some(path)) => Password::File(path.into()),
            (None, None) => match variable("RESTIC_PASSWORD") {
                Some(password) => Password::Given(Secret::new(password)),
                None => {
                    return Err(Error::operator(format!("no password is set for repository {}", hide_password(&url)))
                        .hint("Set RESTIC_PASSWORD_FILE or RESTIC_PASSWORD_COMMAND, as for restic."));
                }
            },
        };
        Ok(Some(Self { url, password }))
    }

    /// The URL without the password that may be in it.
    pub fn shown(&self) -> String {
        hide_password(&self.url)
    }

    /// The password, with the white space around it removed as restic does.
    pub(super) fn password(&self) -> Result<Secret> {
        let trimmed = |secret: &Secret| Secret::new(secret.reveal().trim().to_owned());
        let secret = match &self.password {
            Password::File(path) => trimmed(&Secret::from_file(path)?),
            Password::Command(command) => trimmed(&Secret::from_command(command)?),
            Password::Given(secret) => secret.clone(),
        };
        if secret.reveal().is_empty() {
            return Err(Error::operator(format!("the password for repository {} is empty", self.shown()))
                .hint("Correct the password file, command or variable; restic repositories always have a password."));
        }
        Ok(secret)
    }

    /// The texts that must not appear in a message: the password inside the URL, as written and as decoded.
    pub(super) fn hidden(&self) -> Vec<Secret> {
        let Some(position) = password_in(&self.url) else { return Vec::new() };
        let written = self.url[position].to_owned();
        let decoded =
            url::form_urlencoded::parse(format!("p={}", written.replace('+', "%2B").replace('&', "%26")).as_bytes())
                .next()
                .map(|(_, value)| value.into_owned())
                .unwrap_or_default();
        [written, decoded].into_iter().filter(|text| !text.is_empty()).map(Secret::new).collect()
    }

    pub(super) fn target(&self) -> Result<Target> {
        let url = self.url.as_str();
        let looks_like_a_path = url.starts_with(['/', '.']);
        let Some((scheme, rest)) = url.split_once(':').filter(|_| !looks_like_a_path) else {
            return Ok(Target::Local(url.into()));
        };
        match scheme {
            "local" => Ok(Target::Local(rest.into())),
            "s3" => s3(rest, |name| env::var(name).ok()).ok_or_else(|| self.malformed("s3:https://HOST/BUCKET/PATH")),
            "sftp" => sftp(rest).map(Target::Sftp).ok_or_else(|| self.malformed("sftp:USER@HOST:/PATH")),
            "rest" => rest_server(rest, |name| env::var(name).ok())
                .map(Target::Rest)
                .ok_or_else(|| self.malformed("rest:https://HOST:PORT/PATH")),
            "rclone" if !rest.is_empty() => Ok(Target::Rclone(rest.to_owned())),
            "rclone" => Err(self.malformed("rclone:REMOTE:PATH")),
            _ => Err(Error::operator(format!("cannot read repositories of the kind `{scheme}:`"))
                .hint("These kinds can be read: local:, s3:, sftp:, rest: and rclone:.")
                .hint(
                    "For a local folder with a colon in its name write local: before it; rclone reaches all others.",
                )),
        }
    }

    fn malformed(&self, form: &str) -> Error {
        Error::operator(format!("the repository location {} is not complete", self.shown()))
            .hint(format!("Write it in this form: {form}."))
    }
}

/// `s3:host/bucket/path`, `s3://host/bucket/path`, `s3:http://host:port/bucket/path`. Keys are taken from the AWS
/// environment, profile or instance by the S3 client itself.
fn s3(rest: &str, variable: impl Fn(&str) -> Option<String>) -> Option<Target> {
    let (scheme, rest) = match rest.split_once("://") {
        Some((scheme @ ("http" | "https"), rest)) => (scheme, rest),
        Some(("", _)) | None => ("https", rest.trim_start_matches('/')),
        Some(_) => return None,
    };
    let rest = rest.strip_prefix("//").unwrap_or(rest);
    let mut parts = rest.splitn(3, '/');
    let (host, bucket) = (parts.next()?, parts.next()?);
    let path = parts.next().unwrap_or_default().trim_matches('/');
    if host.is_empty() || bucket.is_empty() {
        return None;
    }
    let region = variable("AWS_REGION")
        .or_else(|| variable("AWS_DEFAULT_REGION"))
        .filter(|region| !region.is_empty())
        .or_else(|| {
            let region = host.strip_suffix(".amazonaws.com")?.strip_prefix("s3")?;
            let region = region.strip_prefix(".dualstack").unwrap_or(region).trim_start_matches(['.', '-']);
            (!region.is_empty()).then(|| region.to_owned())
        })
        .unwrap_or_else(|| "us-east-1".to_owned());
    Some(Target::S3(BTreeMap::from([
        ("endpoint", format!("{scheme}://{host}")),
        ("bucket", bucket.to_owned()),
        ("root", format!("/{path}")),
        ("region", region),
    ])))
}

/// `sftp:user@host:path`, `sftp://user@host:port/path` (relative to the home, absolute after a second slash).
fn sftp(rest: &str) -> Option<Sftp> {
    let (destination, port, path) = if let Some(rest) = rest.strip_prefix("//") {
        let (authority, path) = rest.split_once('/')?;
        let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
        let (host, port) = match host.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port.parse().ok()?)),
            _ => (host, None),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        (user.map_or_else(|| host.to_owned(), |user| format!("{user}@{host}")), port, path)
    } else {
        let (destination, path) = rest.split_once(':')?;
        (destination.to_owned(), None, path)
    };
    // A destination that begins with a dash would be taken for an option by ssh.
    let usable = !destination.is_empty() && !destination.starts_with('-') && !path.is_empty();
    usable.then(|| Sftp { destination, port, path: path.to_owned() })
}

/// The URL of a REST server, with user and password from the environment when it has none itself.
fn rest_server(rest: &str, variable: impl Fn(&str) -> Option<String>) -> Option<String> {
    let mut url = Url::parse(rest).ok().filter(|url| matches!(url.scheme(), "http" | "https"))?;
    if url.username().is_empty()
        && let Some(user) = variable("RESTIC_REST_USERNAME")
    {
        url.set_username(&user).ok()?;
        url.set_password(variable("RESTIC_REST_PASSWORD").as_deref()).ok()?;
    }
    if !url.path().ends_with('/') {
        let path = format!("{}/", url.path());
        url.set_path(&path);
    }
    Some(url.into())
}

/// Where the password is in a URL: `scheme://user:password@host`.
fn password_in(url: &str) -> Option<Range<usize>> {
    let begin = url.find("://")? + 3;
    let authority = url[begin..].split('/').next()?;
    let (user_info, _) = authority.rsplit_once('@')?;
    let (user, password) = user_info.split_once(':')?;
    let start = begin + user.len() + 1;
    Some(start..start + password.len())
}

fn hide_password(url: &str) -> String {
    match password_in(url) {
        Some(Range { start, end }) => format!("{}***{}", &url[..start], &url[end..]),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(url: &str) -> Location {
        Location { url: url.into(), password: Password::Given(Secret::new("x".into())) }
    }

    fn none(_: &str) -> Option<String> {
        None
    }

    #[test]
    fn an_unknown_or_incomplete_location_is_refused() {
        assert_eq!(at("b2:bucket:path").target().unwrap_err().message, "cannot read repositories of the kind `b2:`");
        for url in ["s3:host", "s3:https://host/", "sftp:host", "sftp:-oProxyCommand=x:/p", "rest:host/path", "rclone:"]
        {
            assert!(at(url).target().unwrap_err().message.ends_with("is not complete"), "{url}");
        }
    }

    #[test]
    fn a_path_is_local_even_with_a_colon_in_it() {
        for (url, path) in [("/srv/a:b", "/srv/a:b"), ("./a:b", "./a:b"), ("repo", "repo"), ("local:a:b", "a:b")] {
            assert_eq!(at(url).target().unwrap(), Target::Local(path.into()));
        }
    }

    #[test]
    fn s3_locations_become_endpoint_bucket_and_root() {
        let plain = |rest: &str| match s3(rest, none).unwrap() {
            Target::S3(options) => {
                format!("{} {} {} {}", options["endpoint"], options["bucket"], options["root"], options["region"])
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(plain("s3.amazonaws.com/b"), "https://s3.amazonaws.com b / us-east-1");
        assert_eq!(plain("//s3.amazonaws.com/b/x/y/"), "https://s3.amazonaws.com b /x/y us-east-1");
        assert_eq!(plain("https://minio:9000/b/x"), "https://minio:9000 b /x us-east-1");
        assert_eq!(plain("http://127.0.0.1:5000/b/x"), "http://127.0.0.1:5000 b /x us-east-1");
        assert_eq!(plain("s3.eu-west-1.amazonaws.com/b"), "https://s3.eu-west-1.amazonaws.com b / eu-west-1");
        assert_eq!(plain("s3-eu-west-1.amazonaws.com/b"), "https://s3-eu-west-1.amazonaws.com b / eu-west-1");
        let region = s3("host/b", |name| (name == "AWS_DEFAULT_REGION").then(|| "mars".to_owned())).unwrap();
        assert!(matches!(region, Target::S3(options) if options["region"] == "mars"));
    }

    #[test]
    fn sftp_locations_keep_relative_and_absolute_paths_apart() {
        let shown = |rest: &str| {
            let Sftp { destination, port, path } = sftp(rest).unwrap();
            format!("{destination} {port:?} {path}")
        };
        assert_eq!(shown("ann@host:/srv/repo"), "ann@host None /srv/repo");
        assert_eq!(shown("host:repo"), "host None repo");
        assert_eq!(shown("//ann@host:2222//srv/repo"), "ann@host Some(2222) /srv/repo");
        assert_eq!(shown("//host/repo"), "host None repo");
        assert_eq!(shown("//ann@[::1]:22//r"), "ann@::1 Some(22) /r");
    }

    #[test]
    fn a_rest_server_takes_its_user_from_the_environment_when_the_url_has_none() {
        let variable = |name: &str| Some(if name.ends_with("USERNAME") { "ann" } else { "p@ss" }.to_owned());
        assert_eq!(rest_server("http://host:8000/a", variable).unwrap(), "http://ann:p%40ss@host:8000/a/");
        assert_eq!(rest_server("http://bob:x@host/", variable).unwrap(), "http://bob:x@host/");
    }

    #[test]
    fn the_password_inside_a_url_is_never_shown() {
        assert_eq!(at("rest:https://ann:can%40ary@host/p").shown(), "rest:https://ann:***@host/p");
        assert_eq!(at("rest:https://host/p@q:r").shown(), "rest:https://host/p@q:r");
        let hidden: Vec<_> = at("rest:https://ann:can%40ary@host/p").hidden();
        assert_eq!(hidden.iter().map(Secret::reveal).collect::<Vec<_>>(), ["can%40ary", "can@ary"]);
    }

    #[test]
    fn the_environment_of_restic_is_understood() {
        let read = |pairs: &[(&str, &str)]| {
            let variables: BTreeMap<String, String> =
                pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            Location::from_variables(|name| variables.get(name).cloned())
        };
        assert_eq!(read(&[]), Ok(None));
        let error = read(&[("RESTIC_REPOSITORY", "rest:http://a:canary@h/")]).unwrap_err();
        assert_eq!(error.message, "no password is set for repository rest:http://a:***@h/");
        let found = read(&[("RESTIC_REPOSITORY", "/r"), ("RESTIC_PASSWORD_FILE", "/p")]).unwrap().unwrap();
        assert_eq!(found, Location { url: "/r".into(), password: Password::File("/p".into()) });
        let both =
            read(&[("RESTIC_REPOSITORY", "/r"), ("RESTIC_PASSWORD_FILE", "/p"), ("RESTIC_PASSWORD_COMMAND", "c")]);
        assert_eq!(both.unwrap_err().message, "RESTIC_PASSWORD_COMMAND and RESTIC_PASSWORD_FILE are both set");
    }
}
