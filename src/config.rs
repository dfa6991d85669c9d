//! The configuration: several systems, each with its repository and its database.
use crate::error::{Error, Result};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    #[serde(default, rename = "system")]
    pub systems: Vec<System>,
}
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct System {
    pub name: String,
    #[serde(default)]
    pub environment: Environment,
    #[serde(skip)]
    pub repository: Option<RepositorySettings>,
    pub database: Option<String>,
    pub host: Option<String>,
    #[serde(default)]
    pub tags: Vec<String>,
    #[serde(skip)]
    pub rpo: Option<Duration>,
    #[serde(skip)]
    pub rto: Option<Duration>,
}
#[derive(Debug, Clone)]
pub struct RepositorySettings {
    pub url: String,
    pub password_file: Option<PathBuf>,
    pub password_command: Option<String>,
}
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Environment {
    #[default]
    Production,
    Staging,
    Drill,
}
impl std::fmt::Display for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Production => "PRODUCTION",
            Self::Staging => "STAGING",
            Self::Drill => "DRILL",
        })
    }
}
impl Config {
    pub fn load(_path: Option<&Path>) -> Result<Self> {
        Ok(Self {
            systems: vec![System {
                name: "default".into(),
                environment: Environment::Production,
                repository: None,
                database: None,
                host: None,
                tags: vec![],
                rpo: None,
                rto: None,
            }],
        })
    }
}
pub fn state_folder() -> Result<PathBuf> {
    let base = std::env::var_os("XDG_STATE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state")));
    Ok(base.ok_or_else(|| Error::operator("neither XDG_STATE_HOME nor HOME is set"))?.join("lifeboat"))
}
