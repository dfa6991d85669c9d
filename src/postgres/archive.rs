//! .
use crate::postgres::name::Name;
use chrono::NaiveDateTime;
use serde::Serialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Format {
    Custom,
    Folder,
    Tar,
    Plain,
}
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Header {
    pub format: Format,
    pub version: Option<(u8, u8, u8)>,
    pub created_local: Option<NaiveDateTime>,
    pub database: Option<String>,
    pub server_version: Option<String>,
    pub dump_version: Option<String>,
}
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Column {
    pub name: String,
    pub type_sql: String,
    pub not_null: bool,
    pub generated: bool,
}
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Table {
    pub name: Name,
    pub columns: Vec<Column>,
    pub copied: Vec<String>,
    pub compressed_size: Option<u64>,
    pub has_data: bool,
    pub primary_key: Option<Vec<String>>,
    pub partition_of: Option<Name>,
    pub inserts: bool,
}
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Estimate {
    pub rows: u64,
    pub exact: bool,
}
