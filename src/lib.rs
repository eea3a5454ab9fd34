#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

// In the order in which data flows: each module uses only those above it.
pub(crate) mod clock;
pub(crate) mod codec;
pub(crate) mod engine;
pub(crate) mod error;
pub(crate) mod events;
pub(crate) mod flights;
pub(crate) mod format;
pub(crate) mod index;
pub(crate) mod key;
pub(crate) mod lease;
pub(crate) mod log;
pub(crate) mod operation;
pub(crate) mod options;
pub(crate) mod record;
pub(crate) mod recover;
pub(crate) mod stats;
pub(crate) mod status;
pub(crate) mod storage;
pub(crate) mod store;

pub use clock::ManualClock;
#[cfg(feature = "bincode")]
pub use codec::Bincode;
pub use codec::CodecError;
#[cfg(feature = "json")]
pub use codec::Json;
pub use codec::{Codec, DefaultCodec};
pub use engine::Durability;
pub use engine::{Expected, Next};
pub use error::{Error, ErrorKind, Result};
pub use format::FORMAT_VERSION;
pub use key::{Fingerprint, Key, KeyProblem, MAX_KEY_BYTES, OwnedKey};
pub use lease::{Begin, Completion, Doubt, Lease, Recorded};
pub use operation::{
    Attempt, DoubtPolicy, Failure, Operation, Outcome, Reconcile, Reconciled, Refuse, Rerun, RunError,
};
pub use options::Options;
pub use stats::{Snapshot, Stats};
pub use status::{Status, Version};
pub use store::{Store, Swapped};
