//! An embedded idempotency store: it runs each side effect once, stores its result as durably as the side effect itself,
//! and gives every retry that same result.
//!
//! A program that charges a card, ships a box, sends a mail or handles a webhook must retry, because a lost reply looks
//! like a failure. oncekey is linked into that program and makes the retry harmless. It is one file and a library: no
//! server, no background thread, no async runtime.
//!
//! An **operation** is one side effect under a key that identifies the intent. Its begin is durable before the side
//! effect runs, and its result is durable before the call returns. If the process dies in between, only the outside
//! world knows whether the side effect happened. The operation is then **in doubt**, and does not run again until the
//! program, or a person, has found out what happened.
//!
//! ```
//! use oncekey::{Outcome, Store};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize, Debug, PartialEq)]
//! struct Receipt { id: u64 }
//!
//! /// A client of the payment provider.
//! struct Gateway;
//!
//! impl Gateway {
//!     fn charge(&self, token: &str, cents: u64) -> Result<Receipt, std::io::Error> {
//!         // Send the request, with `token` as its reference.
//! #       let _ = (token, cents);
//!         Ok(Receipt { id: 17 })
//!     }
//!     fn find(&self, token: &str) -> Result<Option<Receipt>, std::io::Error> {
//!         // Search for a charge with this reference.
//! #       let _ = token;
//!         Ok(None)
//!     }
//! }
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//! #   let directory = tempfile::tempdir()?;
//! #   let path = directory.path().join("payments.once");
//!     let (store, gateway) = (Store::open(path)?, Gateway);
//!     let charge = || {
//!         store
//!             .operation("order-1729")                                // the key
//!             .scope("charge")                                        // a refund of the order is a different operation
//!             .request(&("account 42", 1_000))                        // a different request under this key is refused
//!             .reconcile(|attempt| gateway.find(&attempt.token()))    // called only if an earlier attempt is in doubt
//!             .run(|attempt| gateway.charge(&attempt.token(), 1_000)) // the side effect
//!     };
//!     assert_eq!(charge()?, Outcome::Done(Receipt { id: 17 }));        // this call charged
//!     assert_eq!(charge()?, Outcome::AlreadyDone(Receipt { id: 17 })); // an earlier call did; the same receipt
//!     store.close()?;
//!     Ok(())
//! }
//! ```
//!
//! # Where things are
//!
//! | to | see |
//! |---|---|
//! | learn how to use it | the [guide], page by page |
//! | open a store | [`Store`], [`Options`] |
//! | make a key for a caller that has none | [`Key::mint`], [`Key::derive`] |
//! | run a side effect once | [`Operation`]: [`run`](Operation::run), [`reconcile`](Operation::reconcile), [`rerun`](Operation::rerun), [`release_if`](Operation::release_if) |
//! | run several side effects as one job | [`Attempt::step`], [`Step`], [`Operation::input`], [`Store::resume`] |
//! | see what the closures receive, and how a call ends | [`Attempt`], [`Outcome`], [`RunError`], [`Error`] |
//! | use bytes, without a codec | [`Store::begin`], [`Lease`], [`Doubt`], [`Store::record`], [`Store::replay_into`] |
//! | list what began and has not ended | [`Store::unfinished`] |
//! | list all keys, or forget a scope | [`Store::scan`], [`Store::forget_scope`] |
//! | read a store beside the process that has it open | [`Reader`] |
//! | pay one sync for many operations | [`Store::batch`], [`Batch`], [`Store::get_many`] |
//! | publish a message exactly when its operation is completed | [`Attempt::emit`], [`Operation::on_complete`], [`Store::outbox`] |
//! | inspect a key, or resolve a doubt by hand | [`Store::get`], [`KeyState`], [`Store::compare_and_set`], [`Store::forget`] |
//! | change how results are encoded | [`Codec`] |
//! | test with a clock of your own | [`ManualClock`] |
//! | check, back up or save a store | [`verify()`], [`Store::backup`], [`Options::may_have_forgotten`], [`repair()`] |
//! | monitor a store | [`Store::stats`], [`Stats::to_openmetrics`], [`events`] |
//! | read the file without this crate | [`guide::file_format`] |
//!
//! # Guarantees
//!
//! - **A killed process** loses nothing that was acknowledged. Operations that were in progress are in doubt.
//! - **A power loss** undoes nothing that was acknowledged under [`Durability::Sync`], the default.
//! - **A failed write or sync** is never acknowledged. The store refuses every later change until it is opened again.
//! - **A full disk** blocks new operations only, because each begin reserves the space for its completion.
//! - **Damaged bytes** are an error, never "absent" and never a different result.
//!
//! [`guide::limits`] states them in full, with what they assume of the disk and with every limit. The crate needs Rust
//! 1.89 and a 64-bit Unix, and is tested on Linux.
//!
//! # Features
//!
//! | feature | default | what |
//! |---|---|---|
//! | `bincode` | yes | the default [`Codec`] for results |
//! | `json` | no | the codec `Json`, for results of types that evolve |
//! | `tracing` | no | [`events`]: a store is opened, replay, mismatch, doubt, damage, reclaim, poison, clock jump |
//!
//! Without `bincode`, choose a codec with [`Operation::codec`], or use bytes.

#![cfg_attr(docsrs, feature(doc_cfg))]

// In the order in which data flows: each module uses only those above it.
mod planted;
mod sync;
mod key;
mod hash;
mod visit;
mod fingerprint;
mod status;
mod error;
mod progress;
mod key_source;
mod clock;
pub mod events;
mod shape;
mod codec;
mod format;
mod record;
mod key_filter;
mod map;
mod storage;
mod index;
mod log;
mod step_set;
mod recover;
mod flights;
mod engine;
mod typed;
mod stats;
mod openmetrics;
mod options;
mod completion;
mod messages;
mod held_grant;
mod lease;
mod doubt;
mod begin;
mod attempt;
mod outcome;
mod policy;
mod listed_step;
mod side_effect;
mod step;
mod operation;
mod batch;
mod outbox;
mod store;
mod unfinished;
mod verify;
mod repair;
mod scan;
mod reader;
#[cfg(feature = "__simulation")]
mod step_probe;
pub mod guide;

/// The examples of the README, so that they are tested.
#[cfg(all(doctest, feature = "bincode"))]
#[doc = include_str!("../README.md")]
pub mod readme {}

// Two attributes, because clippy recognizes only the plain `cfg(test)` as test code.
#[cfg(test)]
#[cfg(oncekey_shuttle)]
mod shuttle_tests;

/// A failing disk, for this crate's own tests. Not part of the public interface: it may change at any time.
#[cfg(feature = "__simulation")]
#[doc(hidden)]
pub mod simulation {
    pub use crate::format::probe;
    pub use crate::planted::{Bug, plant};
    pub use crate::repair::repair_simulated;
    /// Steps on bytes.
    pub mod steps {
        pub use crate::step_probe::{
            BegunStep, ListedStep, StepLease, begin_step, begin_with_input, give_up, input, result_of, steps,
        };
    }
    pub use crate::storage::simulated::{DiskFault, PathTarget, SimulatedDisk};
    pub use crate::verify::verify_simulated;
}

pub use attempt::Attempt;
pub use batch::{Answer, Answers, Batch, HeldAttempt};
pub use begin::Begin;
pub use clock::{ClockJump, ManualClock};
#[cfg(feature = "json")]
pub use codec::Json;
#[cfg(feature = "bincode")]
pub use codec::{AnyShape, Bincode};
pub use codec::{Codec, CodecError, DefaultCodec};
pub use completion::{Completion, Recorded};
pub use doubt::Doubt;
pub use engine::{Compaction, Durability, Expected, Next};
pub use error::{Error, ErrorKind, Result};
pub use format::FORMAT_VERSION;
pub use key::{AnyKey, Fingerprint, Key, KeyProblem, MAX_KEY_BYTES, OwnedKey};
pub use lease::Lease;
pub use listed_step::ListedStep;
pub use messages::Messages;
pub use operation::Operation;
pub use options::Options;
pub use outbox::{Deliveries, Delivery, Message, Outbox};
pub use outcome::{BoxError, Finding, Outcome, Reconciled, RunError};
pub use policy::{
    BatchPolicy, DoubtPolicy, EmitPolicy, KeepInDoubt, NoMessages, OnComplete, Reconcile, Refuse, ReleaseIf,
    ReleasePolicy, Rerun,
};
pub use progress::Progress;
pub use reader::Reader;
pub use repair::{Repair, repair, repair_with};
pub use scan::{ForgottenScope, Scan, ScannedKey};
pub use stats::{CasOutcome, KeyState, Stats};
pub use status::{ParseVersionError, Status, Version};
pub use step::Step;
pub use store::{Backup, Store};
pub use unfinished::{Unfinished, UnfinishedOperation};
pub use verify::{Consequence, Fault, Verification, verify, verify_with};
pub use visit::unordered;
