//! PostgreSQL: read dumps ([`archive`]), learn what a live database holds ([`schema`]), load rows beside production
//! ([`stage`]), compare ([`diff`]), write what was approved and take it back ([`merge`]), one recovery at a time ([`claim`]);
//! or restore a whole database and put it in production's place ([`database`]).

pub mod archive;
pub mod claim;
pub mod connect;
pub mod database;
pub mod diff;
pub mod merge;
pub mod name;
pub mod schema;
pub mod stage;
