//! Drills: the real console, against a private sandbox that nobody's data is in.

pub mod cluster;
mod database;
mod documents;
mod dropped;
mod files;
mod repository;
pub mod sandbox;
pub mod scenarios;
mod tree;
