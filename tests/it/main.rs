//! Every test of the project that needs more than one function: one binary, real servers.

mod backup;
mod cluster;
mod connect;
mod decisions;
mod diff;
mod faults;
mod merge;
mod recover;
mod sandbox;
mod stage;
mod tidy;
