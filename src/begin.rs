//! What a begin returns to its caller.

use std::sync::Arc;

use crate::completion::Completion;
use crate::doubt::Doubt;
use crate::engine::{Began, Engine, Terms};
use crate::key::Key;
use crate::lease::Lease;

/// The outcome of [`Store::begin`](crate::Store::begin).
///
/// ```
/// use oncekey::{Begin, Fingerprint, Store};
///
/// let store = Store::in_memory()?;
/// match store.begin("charge:1", Fingerprint::NONE)? {
///     Begin::Acquired(mut lease) => {
///         // .. the side effect ..
///         lease.complete(b"receipt 17")?;
///     }
///     Begin::Completed(done) => println!("{:?}", done.result()),
///     Begin::InProgress { attempt, .. } => println!("attempt {attempt} is running"),
///     Begin::InDoubt(doubt) => println!("did attempt {} happen?", doubt.attempt()),
///     _ => unreachable!(),
/// }
/// # Ok::<(), oncekey::Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
#[must_use = "an acquired lease that is dropped leaves its operation in doubt"]
pub enum Begin {
    /// An attempt began, and the caller runs it. Its begin record is as durable as was asked for.
    Acquired(Lease),
    /// An earlier attempt began, and it is unknown whether its side effect happened. The caller must resolve that
    /// doubt; until the [`Doubt`] is dropped, every other caller gets `InProgress`.
    InDoubt(Doubt),
    /// Another caller in this process is running an attempt or resolving a doubt.
    #[non_exhaustive]
    InProgress {
        /// The number of that attempt, counted from 1.
        attempt: u32,
    },
    /// The operation is completed, with this result.
    Completed(Completion),
}

impl Begin {
    pub(crate) fn new(engine: &Arc<Engine>, key: Key<'_>, terms: &Terms, began: Began) -> Begin {
        match began {
            Began::Acquired(grant) => Begin::Acquired(Lease::new(engine, key, terms, grant)),
            Began::InDoubt(grant) => Begin::InDoubt(Doubt::new(engine, key, terms, grant)),
            Began::InProgress { attempt } => Begin::InProgress { attempt },
            Began::Completed(found) => Begin::Completed(Completion::new(key, found)),
        }
    }
}
