//! PostgreSQL: read dumps ([`archive`]), learn what a live database holds ([`schema`]), load rows beside production
//! ([`stage`]), compare ([`diff`]), write what was approved and take it back ([`merge`]), one recovery at a time ([`claim`]);
//! restore a whole database and put it in production's place ([`database`]); lay out a second cluster as of a moment in time
//! ([`cluster`]), and find the moment ([`waldump`]).

pub mod archive;
pub mod claim;
pub mod cluster;
pub mod connect;
pub mod database;
pub mod diff;
pub mod merge;
pub mod name;
pub mod origin;
pub mod programs;
pub mod schema;
pub mod stage;
pub mod waldump;
