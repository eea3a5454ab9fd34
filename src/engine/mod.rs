//! Wires the log, the index, the flights, the clock and the table together; the only place that knows all of them.
//!
//! Everything that changes a key goes the same way: take the flight, look the key up, let
//! [`status::transition`](crate::status::transition) decide, append a record, wait until it is as durable as was
//! asked for, say so in the index, leave the flight. `lifecycle` admits the calls that do so and closes the store, `view`
//! looks, `begin` and `change` hold the verbs, `renew` keeps a lease alive, `reclaim` gives space back, `path_check` watches where the file is.

mod begin;
mod change;
mod inside;
mod lifecycle;
mod path_check;
mod reclaim;
mod renew;
mod unreadable;
mod view;

use std::path::Path;
use std::sync::Arc;

use crate::clock::{Sleepers, StoreClock};
use crate::error::{Error, Result};
use crate::flights::{FlightGuard, Flights};
use crate::format::record::{Kind, MAX_BARE_RECORD_BYTES, RECORD_HEADER_BYTES, Record, Typing};
use crate::index::{Address, Index};
use crate::key::{Fingerprint, Key};
use crate::log::commit::{Until, record_cost_bytes};
use crate::log::{Log, Reservation, batch_limit_bytes};
use crate::planted::{Bug, planted};
use crate::record::{RecordSize, Retention};
use crate::recover::Recovered;
use crate::status::Version;
use crate::sync::Patience;
use crate::sync::atomic::{AtomicU64, Ordering};

pub(crate) use begin::Began;
pub(crate) use change::{Applied, Finish, Grant, Swap};
pub use change::{Expected, Next};
pub(crate) use inside::InClosure;
use lifecycle::Admission;
pub(crate) use lifecycle::Handle;
use path_check::PathCheck;
pub use reclaim::Compaction;
use reclaim::Reclaim;
use unreadable::UnreadableRecords;
pub(crate) use view::Found;
use view::IndexEntry;

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

/// The request that a call is for, by its fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    /// What is recorded if the call begins or records something.
    pub(crate) fingerprint: Fingerprint,
    /// Another one that is the same request: what an earlier version of the program made of it.
    pub(crate) or: Option<Fingerprint>,
}

impl Request {
    /// Whether a record with this fingerprint is of the same request.
    fn is(self, stored: Fingerprint) -> bool {
        stored == self.fingerprint || self.or == Some(stored)
    }
}

impl From<Fingerprint> for Request {
    fn from(fingerprint: Fingerprint) -> Request {
        Request { fingerprint, or: None }
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
    /// What begin records say of the typed interface.
    pub(crate) typing: Option<Typing>,
    /// How long to wait for other callers: one moment for the whole call, however often it looks again.
    pub(crate) patience: Patience,
}

/// What holds for the whole store.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) terms: Terms,
    /// The result retention that was asked for; None: results are kept as long as their keys.
    pub(crate) result_retention_ms: Option<u64>,
    pub(crate) max_result_bytes: usize,
}

/// The largest result that a frame in segments of this size can hold, whatever the key, also if its record is carried along
/// in another one because it cannot be read any more.
pub(crate) fn largest_result_bytes(segment_bytes: u64) -> u64 {
    largest_carried_bytes(segment_bytes) - MAX_BARE_RECORD_BYTES - 8
}

/// The longest record that can be carried along in another one.
fn largest_carried_bytes(segment_bytes: u64) -> u64 {
    batch_limit_bytes(segment_bytes) - record_cost_bytes(RECORD_HEADER_BYTES as u64)
}

/// A store's works.
#[derive(Debug)]
pub(crate) struct Engine {
    log: Arc<Log>,
    index: Index,
    flights: Arc<Flights>,
    clock: Arc<StoreClock>,
    open_count: u32,
    /// The counter of the last version that was given out.
    changes: AtomicU64,
    doubts: AtomicU64,
    settings: Settings,
    admission: Admission,
    path_check: PathCheck,
    reclaim: Reclaim,
    unreadable: UnreadableRecords,
}

impl Engine {
    pub(crate) fn new(recovered: Recovered, settings: Settings) -> Engine {
        let Recovered { log, index, clock, open_count, counter, unreadable } = recovered;
        let (storage, path) = (Arc::clone(log.storage()), log.path().to_owned());
        let flights = Arc::new(Flights::new());
        clock.wake_when_moved(Arc::downgrade(&(Arc::clone(&flights) as Arc<dyn Sleepers>)));
        let path_check = PathCheck::new(storage, path, clock.now_ms(), log.span().1);
        Engine {
            log,
            index,
            flights,
            clock,
            open_count,
            changes: AtomicU64::new(counter),
            doubts: AtomicU64::new(0),
            settings,
            admission: Admission::new(),
            path_check,
            reclaim: Reclaim::new(),
            unreadable: UnreadableRecords::new(unreadable),
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

    /// Leases and doubts that are alive. Touches no lock.
    pub(crate) fn claim_count(&self) -> usize {
        self.flights.claims()
    }

    /// Whether this process was forked from the one that opened the store. Touches no lock.
    pub(crate) fn has_forked(&self) -> bool {
        self.admission.has_forked()
    }

    pub(crate) fn check_process(&self) -> Result<()> {
        self.admission.check_process()
    }

    /// Whether the path was seen to lead to another file than the open one, or to none.
    pub(crate) fn is_replaced(&self) -> bool {
        self.path_check.is_replaced()
    }

    /// [`Error::Replaced`] if it was.
    pub(crate) fn check_in_place(&self) -> Result<()> {
        self.path_check.check()
    }

    pub(crate) fn fingerprint(&self, request: &[u8]) -> Fingerprint {
        self.log.hasher().fingerprint(request)
    }

    /// Checks the process, the key, and that the store is open; the key's identity.
    fn admit(&self, key: Key<'_>) -> Result<u128> {
        self.admission.check_open()?;
        key.check()?;
        Ok(self.log.hasher().key(key))
    }

    /// The next version. Only ever called with the key's flight held, so that the versions of one key grow in the
    /// order of its records.
    fn next_version(&self) -> Result<Version> {
        let counter = self.changes.fetch_add(1, Ordering::Relaxed) + 1;
        Version::compose(self.open_count, counter).ok_or_else(|| Error::changes_exhausted(self.path()))
    }

    /// Appends a record, waits for it, and makes the index say so. The caller holds the flight and decided by the
    /// table; `old` is the entry that it found.
    fn commit(
        &self,
        flight: &FlightGuard<'_>,
        hash: u128,
        record: &Record<'_>,
        reservation: Reservation,
        until: Until,
        old: Option<IndexEntry>,
    ) -> Result<()> {
        let length = crate::format::record::encoded_bytes(record.key, &record.value);
        if planted(Bug::IndexBeforeDurability) {
            let ticket = self.log.append(record, hash, reservation, Until::Written)?;
            let address = self.log.wait(&ticket)?;
            flight.publish_claim();
            self.apply(hash, record, length, address, old);
            return if until == Until::Synced { self.log.sync() } else { Ok(()) };
        }
        let ticket = self.log.append(record, hash, reservation, until)?;
        // Moved records ride along in the frame that this thread waits for anyway.
        let piece = self.reclaim_along(length);
        let applied = self.log.wait(&ticket).map(|address| {
            if !planted(Bug::LeaseAfterIndex) {
                flight.publish_claim();
            }
            self.apply(hash, record, length, address, old);
            flight.publish_claim();
        });
        flight.note_change();
        self.path_check.look_if_new(self.log.span().1);
        // Whatever became of the record itself: nobody else waits for these, and the segment must not be given up
        // under them. What goes wrong with the moving is not this change's failure; the next change will meet it.
        if let Some(piece) = piece {
            let _ = self.finish_piece(piece);
        }
        applied
    }

    /// Makes the index say what a record says that has just become durable.
    fn apply(&self, hash: u128, record: &Record<'_>, length: u64, address: Address, old: Option<IndexEntry>) {
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
            self.log.space_usage().mark_dead(&old.size);
            self.unreadable.remove(old.address);
        }
        self.log.space_usage().add(&RecordSize::of(record, length), record.time_ms);
    }

    /// How many records are known that cannot be read.
    pub(crate) fn unreadable_records(&self) -> u64 {
        self.unreadable.count()
    }

    pub(crate) fn sync(&self) -> Result<()> {
        let _events = crate::events::hold_back();
        let _inside = self.admission.enter()?;
        let in_place = self.path_check.look();
        self.log.sync()?;
        in_place
    }

    /// Marks the log as closed. No call may be inside: the mark states the counter of the last version.
    fn mark_closed(&self) -> Result<()> {
        self.log.mark_closed(self.changes.load(Ordering::SeqCst))
    }
}
