//! Wires the log, the index, the flights, the clock and the table together; the only place that knows all of them.
//!
//! Everything that changes a key goes the same way: take the flight, look the key up, let
//! [`status::transition`](crate::status::transition) decide, append a record, wait until it is as durable as was
//! asked for, say so in the index, leave the flight. `view` looks, `begin` and `change` hold the verbs, `reclaim` gives space back.

mod begin;
mod change;
mod reclaim;
mod view;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::StoreClock;
use crate::error::{Error, Result};
use crate::flights::{FlightGuard, Flights};
use crate::format::footer::ENTRY_BYTES;
use crate::format::frame::FRAME_HEADER_BYTES;
use crate::format::record::{Kind, MAX_BARE_RECORD_BYTES, Record};
use crate::index::{Address, Index};
use crate::key::{Fingerprint, Key};
use crate::log::commit::Until;
use crate::log::{Log, Promise, batch_limit_bytes};
use crate::planted::{Bug, planted};
use crate::record::{Retention, Weight};
use crate::recover::Recovered;
use crate::status::Version;
use crate::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};

pub(crate) use begin::{Began, Grant};
pub use change::{Expected, Next};
pub(crate) use change::{Finish, Swap};
use reclaim::Reclaim;
use view::Entry;
pub(crate) use view::Found;

/// When a call that changes something returns.
///
/// ```
/// use oncekey::{Durability, Options};
///
/// // A store whose records survive the process, and power loss only from the next `sync` on.
/// let store = Options::new().durability(Durability::Buffered).open_in_memory()?;
/// store.sync()?;
/// # Ok::<(), oncekey::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Durability {
    /// When the change survives power loss: written and synced.
    #[default]
    Sync,
    /// When the change survives the process: written to the operating system.
    /// [`Store::sync`](crate::Store::sync) makes it survive power loss.
    Buffered,
}

impl Durability {
    pub(crate) fn until(self) -> Until {
        match self {
            Durability::Sync => Until::Synced,
            Durability::Buffered => Until::Written,
        }
    }
}

/// What one call asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    pub(crate) durability: Durability,
    /// The begin record is written and not synced: the act is idempotent, so a begin that a power loss takes back
    /// does no harm.
    pub(crate) begin_unsynced: bool,
    pub(crate) retention: Retention,
    /// From its begin, after which a lease may be taken over; None: never.
    pub(crate) lease_ms: Option<u64>,
    /// How long to wait for somebody else's lease to end; None: not at all.
    pub(crate) wait: Option<Duration>,
}

/// What holds for the whole store.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) terms: Terms,
    pub(crate) max_result_bytes: usize,
}

/// The largest result that a frame in segments of this size can hold, whatever the key.
pub(crate) fn largest_result_bytes(segment_bytes: u64) -> u64 {
    batch_limit_bytes(segment_bytes) - FRAME_HEADER_BYTES as u64 - ENTRY_BYTES - MAX_BARE_RECORD_BYTES - 8
}

const OPEN: u8 = 0;
const CLOSING: u8 = 1;
const CLOSED: u8 = 2;

/// A store's works.
#[derive(Debug)]
pub(crate) struct Engine {
    log: Arc<Log>,
    index: Index,
    flights: Flights,
    clock: Arc<StoreClock>,
    open_count: u32,
    /// The counter of the last version that was given out.
    changes: AtomicU64,
    doubts: AtomicU64,
    settings: Settings,
    leases: AtomicUsize,
    /// OPEN, CLOSING or CLOSED.
    phase: AtomicU8,
    reclaim: Reclaim,
}

impl Engine {
    pub(crate) fn new(recovered: Recovered, settings: Settings) -> Engine {
        let Recovered { log, index, clock, open_count, counter } = recovered;
        Engine {
            log,
            index,
            flights: Flights::new(),
            clock,
            open_count,
            changes: AtomicU64::new(counter),
            doubts: AtomicU64::new(0),
            settings,
            leases: AtomicUsize::new(0),
            phase: AtomicU8::new(OPEN),
            reclaim: Reclaim::new(),
        }
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) fn path(&self) -> &Path {
        self.log.path()
    }

    pub(crate) fn log(&self) -> &Log {
        &self.log
    }

    pub(crate) fn index(&self) -> &Index {
        &self.index
    }

    pub(crate) fn clock(&self) -> &StoreClock {
        &self.clock
    }

    pub(crate) fn lease_count(&self) -> usize {
        self.leases.load(Ordering::Acquire)
    }

    pub(crate) fn fingerprint(&self, request: &[u8]) -> Fingerprint {
        self.log.hasher().fingerprint(request)
    }

    /// Checks the key and that the store is open; the key's identity.
    fn admit(&self, key: Key<'_>) -> Result<u128> {
        key.check()?;
        self.check_open()?;
        Ok(self.log.hasher().key(key))
    }

    fn check_open(&self) -> Result<()> {
        if self.phase.load(Ordering::SeqCst) == CLOSED { Err(Error::Closed) } else { Ok(()) }
    }

    /// Counts a claim that is about to be given, unless the store is closed. Counted first and then looked: either this
    /// sees that the store is closing, or the one who closes it sees the claim.
    fn count_lease(&self) -> Result<()> {
        self.leases.fetch_add(1, Ordering::SeqCst);
        loop {
            match self.phase.load(Ordering::SeqCst) {
                OPEN => return Ok(()),
                CLOSED => {
                    self.discount_lease();
                    return Err(Error::Closed);
                }
                // Decided in a few instructions: it looks at the count and goes one way or the other.
                _ => crate::sync::yield_now(),
            }
        }
    }

    fn discount_lease(&self) {
        self.leases.fetch_sub(1, Ordering::SeqCst);
    }

    /// The next version. Only ever called with the key's flight held, so that the versions of one key grow in the
    /// order of its records.
    fn next_version(&self) -> Result<Version> {
        let counter = self.changes.fetch_add(1, Ordering::Relaxed) + 1;
        Version::compose(self.open_count, counter)
            .ok_or_else(|| Error::VersionsExhausted { path: self.path().to_owned() })
    }

    /// Appends a record, waits for it, and makes the index say so. The caller holds the flight and decided by the
    /// table; `old` is the entry that it found.
    fn commit(
        &self,
        flight: &FlightGuard<'_>,
        hash: u128,
        record: &Record<'_>,
        promise: Promise,
        until: Until,
        old: Option<Entry>,
    ) -> Result<()> {
        let length = crate::format::record::encoded_bytes(record.key, record.result.map_or(0, <[u8]>::len));
        if planted(Bug::IndexBeforeDurability) {
            let ticket = self.log.append(record, hash, promise, Until::Written)?;
            let address = self.log.wait(&ticket)?;
            self.apply(hash, record, length, address, old);
            return if until == Until::Synced { self.log.sync() } else { Ok(()) };
        }
        let ticket = self.log.append(record, hash, promise, until)?;
        // Moved records ride along in the frame that this thread waits for anyway.
        let piece = self.reclaim_along(length);
        let applied = self.log.wait(&ticket).map(|address| self.apply(hash, record, length, address, old));
        flight.note_change();
        // Whatever became of the record itself: nobody else waits for these, and the segment must not be given up
        // under them. What goes wrong with the moving is not this change's failure; the next change will meet it.
        if let Some(piece) = piece {
            let _ = self.finish_piece(piece);
        }
        applied
    }

    /// Makes the index say what a record says that has just become durable.
    fn apply(&self, hash: u128, record: &Record<'_>, length: u64, address: Address, old: Option<Entry>) {
        match (old, record.kind) {
            (Some(old), Kind::Forgotten) => {
                self.index.remove(hash, old.address);
            }
            (Some(old), _) => {
                let replaced = self.index.replace(hash, old.address, address);
                debug_assert!(replaced, "the flight keeps the entry where it is");
            }
            (None, Kind::Forgotten) => {}
            (None, _) => self.index.insert(hash, address),
        }
        if let Some(old) = old {
            self.log.ledger().bury(&old.weight);
        }
        self.log.ledger().add(&Weight::of(record, length));
    }

    pub(crate) fn sync(&self) -> Result<()> {
        self.check_open()?;
        self.log.sync()
    }

    /// Marks the log as closed. Nothing is accepted afterwards.
    pub(crate) fn close(&self) -> Result<()> {
        let closing = self.phase.compare_exchange(OPEN, CLOSING, Ordering::SeqCst, Ordering::SeqCst);
        if closing.is_err() {
            return Err(Error::Closed);
        }
        let count = self.leases.load(Ordering::SeqCst);
        if count > 0 {
            self.phase.store(OPEN, Ordering::SeqCst);
            return Err(Error::LeasesAlive { count });
        }
        self.phase.store(CLOSED, Ordering::SeqCst);
        self.log.sync()?;
        self.mark_closed()
    }

    fn mark_closed(&self) -> Result<()> {
        self.log.mark_closed(self.changes.load(Ordering::SeqCst))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // The last handle is gone: as good a close as can be had. What fails here costs only that the next opening
        // writes the end of the log again.
        if self.phase.swap(CLOSED, Ordering::SeqCst) != CLOSED && self.log.check_poison().is_ok() {
            let _ = self.log.sync().and_then(|()| self.mark_closed());
        }
    }
}
