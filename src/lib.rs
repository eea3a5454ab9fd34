#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

// In the order in which data flows: each module uses only those above it.
mod planted;
mod sync;
mod key;
mod visit;
mod fingerprint;
mod status;
mod error;
mod clock;
pub mod events;
mod shape;
mod codec;
mod format;
mod record;
mod map;
mod storage;
mod index;
mod log;
mod recover;
mod flights;
mod engine;
mod typed;
mod stats;
mod options;
mod completion;
mod lease;
mod outcome;
mod policy;
mod operation;
mod store;
pub mod guide;

// Two attributes, because clippy takes only the plain `cfg(test)` for a test.
#[cfg(test)]
#[cfg(oncekey_shuttle)]
mod shuttle_tests;

/// A disk that fails, for this crate's own tests. No part of the public interface: it may change at any time.
#[cfg(feature = "__simulation")]
#[doc(hidden)]
pub mod simulation {
    pub use crate::format::probe;
    pub use crate::planted::{Bug, plant};
    pub use crate::storage::simulated::{DiskFault, PathTarget, SimulatedDisk};
}

pub use clock::{ClockJump, ManualClock};
#[cfg(feature = "json")]
pub use codec::Json;
#[cfg(feature = "bincode")]
pub use codec::{AnyShape, Bincode};
pub use codec::{Codec, CodecError, DefaultCodec};
pub use completion::{Completion, Recorded};
pub use engine::{Compaction, Durability, Expected, Next};
pub use error::{Error, ErrorKind, Result};
pub use format::FORMAT_VERSION;
pub use key::{AnyKey, Fingerprint, Key, KeyProblem, MAX_KEY_BYTES, OwnedKey};
pub use lease::{Begin, Doubt, Lease};
pub use operation::Operation;
pub use options::Options;
pub use outcome::{Attempt, BoxError, Finding, Outcome, Reconciled, RunError};
pub use policy::{DoubtPolicy, KeepInDoubt, Reconcile, Refuse, ReleaseIf, ReleasePolicy, Rerun};
pub use stats::{CasOutcome, KeyState, Stats};
pub use status::{ParseVersionError, Status, Version};
pub use store::Store;
pub use visit::unordered;
