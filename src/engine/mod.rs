//! The engine: the one write pipeline of a store, and everything that a call to it touches.
//!
//! ```text
//! view     read the key's state, under its flight (the per-key lock)
//! decide   pure: what the call does; the state machine is `status::transition`
//! reserve  space for the record, or leave the flight and make space
//! write    encode and checksum the record, append it to the gathering batch, wait
//! apply    index, space usage, claims
//! ```
//!
//! Single calls and the moves of reclaiming go this way, and so do several changes in one call. The engine is cut by what a
//! part may touch:
//!
//! | module | what it does | what it touches |
//! |---|---|---|
//! | `terms` | what a call asks for | nothing: data |
//! | `admission` | which calls may change the store, and in which process | its own counters |
//! | `path_check` | whether the path still leads to the open file | the storage's path |
//! | `unreadable` | which records are known to be unreadable | its own set |
//! | `inside` | in whose closures a thread is | a thread-local list |
//! | `records` | the last record of every key | log (reading), index |
//! | `view` | the state of a key | records, flights, clock (all reading) |
//! | `decide` | what a call does to a key | nothing: pure |
//! | `write` | from a change to its record and the index | log, records, the flights of its keys |
//! | `reclaim` | gives the space of dead records back | records, the write path, flights |
//! | `assembly` | holds the parts | |
//! | `reading`, `change`, `begin`, `finish`, `edit`, `claims`, `lifecycle` | the calls | the parts |

// Each module uses only those above it.
mod terms;
mod admission;
mod path_check;
mod unreadable;
mod inside;
mod records;
mod view;
mod decide;
mod write;
mod reclaim;
mod assembly;
mod reading;
mod change;
mod begin;
mod finish;
mod edit;
mod claims;
mod lifecycle;

pub(crate) use assembly::Engine;
pub(crate) use begin::Began;
pub(crate) use change::Grant;
pub(crate) use edit::Swap;
pub(crate) use finish::Applied;
pub(crate) use inside::InClosure;
pub(crate) use lifecycle::Handle;
pub use reclaim::Compaction;
pub(crate) use records::Found;
pub use terms::{Durability, Expected, Next};
pub(crate) use terms::{Finish, Request, Settings, Terms};
