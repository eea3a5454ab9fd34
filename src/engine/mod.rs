//! The engine: runs every call on an open store, and owns the single pipeline that changes a key.
//!
//! ```text
//! view     read the key's state, under its flight (the per-key lock)
//! decide   pure: what the call does; the state machine is `status::transition`
//! reserve  space for the record, or leave the flight and make space
//! write    encode and checksum the record, append it to the gathering batch, wait
//! apply    index, space usage, claims
//! ```
//!
//! A call that changes one key goes through all four steps. A commit of several changes and the moves of reclaiming
//! share the last one. Each module may touch only what the table lists:
//!
//! | module | what it owns | what it touches |
//! |---|---|---|
//! | `terms` | the parameters of a call | nothing: data |
//! | `admission` | which calls may change the store, and in which process | its own counters |
//! | `path_check` | whether the path still leads to the open file | the storage's path |
//! | `unreadable` | the set of records that are known to be unreadable | its own set |
//! | `unfinished` | the table of operations that began and have not ended | its own table |
//! | `unstarted` | the attempts that never run and are to be released | its own list |
//! | `inside` | the claims whose closures a thread is running, and the callbacks that it is in | thread-local lists |
//! | `outbox` | the pending messages, and which of them are out | its own state |
//! | `counters` | how often calls did what | its own counters |
//! | `records` | the last record of every key | log (read only), index |
//! | `view` | reading the state of a key | records, flights, clock (all read only) |
//! | `decide` | the choice of what a call does to a key | nothing: pure |
//! | `write` | the way of a change into the log and the index | log, records, the flights of its keys |
//! | `step_record` | the records of steps | nothing: pure, except that it encodes |
//! | `reclaim` | freeing the space of dead records | records, the write path, flights |
//! | `assembly` | the [`Engine`], which holds the parts | the parts above |
//! | `emit` | the ids and the changes of messages | the parts above |
//! | `releases` | writing the releases of attempts that never ran | the parts above |
//! | `step_reading` | reading the steps of an operation | the parts above, all read only |
//! | `resuming` | what the typed interface asks about an operation with steps | the parts above, all read only |
//! | `call` | the rules of one call | nothing: data |
//! | `reading`, `walk`, `change`, `begin`, `finish`, `edit`, `batch`, `claims`, `notes`, `steps`, `deliver`, `lifecycle`, `backup` | the calls | the parts above |

// Each module uses only those above it.
mod terms;
mod admission;
mod path_check;
mod unreadable;
mod unfinished;
mod unstarted;
mod outbox;
mod inside;
mod counters;
mod records;
mod view;
mod decide;
mod write;
mod step_record;
mod reclaim;
mod assembly;
mod emit;
mod releases;
mod reading;
mod step_reading;
mod resuming;
mod call;
mod walk;
mod change;
mod begin;
mod finish;
mod edit;
mod batch;
mod claims;
mod notes;
mod steps;
mod deliver;
mod lifecycle;
mod backup;

pub(crate) use assembly::Engine;
pub(crate) use batch::{Entry, EntryDone, EntryKind, FrameSize};
pub(crate) use begin::Began;
pub(crate) use change::Grant;
pub(crate) use counters::Counted;
pub(crate) use deliver::HandedOut;
pub(crate) use edit::Swap;
pub(crate) use finish::Applied;
pub(crate) use inside::{InCallback, InClosure};
pub(crate) use lifecycle::Handle;
pub(crate) use notes::MAX_NOTE_BYTES;
pub(crate) use outbox::Ticket;
pub(crate) use reading::{ListedRecord, Listing};
pub use reclaim::Compaction;
pub(crate) use records::{CARRIED_REASON, Found, HashedKey, found_at};
pub(crate) use resuming::Resumable;
pub(crate) use step_reading::{StepInfo, StepOf};
pub(crate) use steps::{StepBegan, StepEnd, StepGrant};
pub use terms::{Durability, Expected, Next};
pub(crate) use terms::{Finish, NewMessage, Request, Settings, Terms};
pub(crate) use unfinished::ListedOperation;
pub(crate) use walk::{WalkedKey, WalkedSegment};
