//! Drills: the real console, against a private sandbox that nobody's data is in.

pub mod cluster;
pub mod sandbox;
pub mod scenarios;
