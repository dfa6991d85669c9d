//! Lifeboat: a terminal recovery console.

pub mod backup;
pub mod cli;
pub mod config;
pub mod drill;
pub mod error;
pub mod postgres;
pub mod progress;
pub mod recovery;
pub mod secret;
pub mod text;
pub mod ui;
