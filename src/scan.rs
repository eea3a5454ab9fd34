//! The list of all keys of a store, and forgetting all keys of a scope.

use std::collections::HashSet;
use std::fmt;
use std::ops::ControlFlow;
use std::vec;

use crate::engine::{Durability, Handle, InCallback, ListedRecord, Listing, Terms, WalkedKey, WalkedSegment};
use crate::error::{Error, Result};
use crate::key::{Key, OwnedKey};
use crate::key_filter::KeyFilter;
use crate::planted::{Bug, planted};
use crate::progress::Progress;
use crate::record::Liveness;
use crate::status::{Status, Version};
use crate::store::Store;

impl Store {
    /// Lists every key that is not absent: what is in progress, in doubt and completed.
    ///
    /// The iterator walks over the log, from the oldest record to the newest, and reads all of it, so it takes as long as
    /// reading the file. Conditions such as [`Scan::scope`] skip keys, but save no reading. For the operations that have not
    /// ended, use [`unfinished`](Store::unfinished), which costs what it returns.
    ///
    /// Each key is shown as it is when the iterator gets there. The walk ends at the end of the log as it is when the walk
    /// gets there. No key that is there throughout is missed. A key that changes during the walk, or whose record is moved,
    /// may be shown more than once; one that begins or ends meanwhile may be shown or not. No lock is held between two
    /// items. What is shown may not be durable yet.
    ///
    /// ```
    /// use oncekey::{Fingerprint, Key, Status, Store};
    ///
    /// let store = Store::in_memory()?;
    /// store.record(Key::new("order-1").scope("acme"), Fingerprint::NONE, b"receipt")?;
    /// store.record(Key::new("order-2").scope("acme"), Fingerprint::NONE, b"receipt")?;
    /// store.record(Key::new("order-1").scope("other"), Fingerprint::NONE, b"receipt")?;
    ///
    /// let mut names = Vec::new();
    /// for key in store.scan().scope("acme").status(Status::Completed) {
    ///     let key = key?;
    ///     names.push(key.key().as_str().unwrap_or_default().to_owned());
    /// }
    /// assert_eq!(names, ["order-1", "order-2"]);
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Items of the iterator are errors, and the iterator goes on after them: [`Error::Corrupt`] for a key whose record
    /// cannot be read, whatever the conditions, or for a segment whose keys cannot be listed; [`Error::Io`]. The last item
    /// can be [`Error::Closed`] or [`Error::Forked`].
    pub fn scan<'a>(&self) -> Scan<'a> {
        let engine = self.engine().clone();
        let first_tail = if engine.has_forked() { 0 } else { engine.tail() };
        Scan::of(Box::new(StoreKeys { engine, first_tail }))
    }

    /// Forgets every key of a scope, as [`forget`](Store::forget) does for one, whatever its status, unless an attempt is in
    /// progress. For an account that is closed, or a test that cleans up.
    ///
    /// This walks over the whole store again and again, until a walk finds no key of the scope that can be forgotten. So it
    /// also finds keys that were added meanwhile; stop those who use the scope first, or this may not end. It makes
    /// everything durable with one sync for each walk.
    ///
    /// **A key in progress is left alone**, because its side effect may be running now, and is counted in
    /// [`ForgottenScope::in_progress`]. Call again when it has ended. A key in doubt is forgotten. What was forgotten is
    /// gone for calls at once; its bytes stay in the file until their segment is reclaimed, for instance by
    /// [`compact`](Store::compact).
    ///
    /// ```
    /// use oncekey::{Fingerprint, Key, Store};
    ///
    /// let store = Store::in_memory()?;
    /// for name in ["order-1", "order-2"] {
    ///     store.record(Key::new(name).scope("acme"), Fingerprint::NONE, b"receipt")?;
    /// }
    /// store.record("order-1", Fingerprint::NONE, b"receipt")?;
    /// assert_eq!(store.forget_scope("acme")?.forgotten, 2);
    /// assert_eq!(store.stats().keys, 1);
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`forget`](Store::forget). Keys that were forgotten before the error stay so, but may not be durable.
    pub fn forget_scope<B: AsRef<[u8]> + ?Sized>(&self, scope: &B) -> Result<ForgottenScope> {
        self.forget_scope_with(scope, |_| ControlFlow::Continue(()))
    }

    /// Does the same as [`forget_scope`](Store::forget_scope), and calls `on_progress` after each segment of each walk, which
    /// can stop it.
    ///
    /// # Errors
    ///
    /// Those of [`forget_scope`](Store::forget_scope).
    pub fn forget_scope_with<B: AsRef<[u8]> + ?Sized>(
        &self,
        scope: &B,
        mut on_progress: impl FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<ForgottenScope> {
        let settings = self.engine().settings();
        // One sync for each walk, and not one for each key.
        let terms = Terms { durability: Durability::Buffered, ..settings.terms };
        let mut done = ForgottenScope::default();
        loop {
            let mut in_progress = HashSet::new();
            let mut forgotten = 0;
            done.unreadable = 0;
            let mut scan = self.scan().scope(scope).on_progress(&mut on_progress);
            for item in &mut scan {
                let key = match item {
                    Ok(key) if key.status() == Status::InProgress => {
                        in_progress.insert(key.key);
                        continue;
                    }
                    Ok(key) => key.key,
                    Err(Error::Corrupt { .. }) => {
                        done.unreadable += 1;
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                match self.engine().forget(key.as_key(), &terms) {
                    Ok(was_there) => forgotten += u64::from(was_there),
                    Err(Error::InProgress { .. }) => drop(in_progress.insert(key)),
                    Err(error) => return Err(error),
                }
            }
            done.is_stopped = scan.is_stopped();
            done.forgotten += forgotten;
            done.in_progress = in_progress.len() as u64;
            if forgotten > 0 {
                self.sync()?;
            }
            if forgotten == 0 || done.is_stopped || planted(Bug::ForgetScopeWalksOnce) {
                return Ok(done);
            }
        }
    }
}

/// What [`Store::forget_scope`](crate::Store::forget_scope) did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ForgottenScope {
    /// The number of times that a key was forgotten.
    pub forgotten: u64,
    /// The number of keys of the scope that were left, because an attempt at them was in progress during the last walk.
    pub in_progress: u64,
    /// The number of records of any scope that the last walk could not read. Their keys may be of the scope.
    pub unreadable: u64,
    /// Whether the callback stopped the call, so that keys of the scope may be left.
    pub is_stopped: bool,
}

/// A key that a [`Scan`] shows: what its last record states, without the result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScannedKey {
    key: OwnedKey,
    status: Status,
    version: Version,
    attempt: u32,
    changed_at_ms: u64,
    expires_at_ms: Option<u64>,
    result_expires_at_ms: Option<u64>,
    result_bytes: Option<usize>,
    record_bytes: u64,
}

impl ScannedKey {
    fn of(record: ListedRecord) -> ScannedKey {
        let ListedRecord { key, status, found, result_bytes, .. } = record;
        let finite = |ms: u64| (ms != u64::MAX).then_some(ms);
        ScannedKey {
            key,
            status,
            version: found.version,
            attempt: found.attempt,
            changed_at_ms: found.time_ms,
            expires_at_ms: finite(found.key_expires_ms),
            result_expires_at_ms: finite(found.result_expires_ms)
                .filter(|_| found.liveness == Liveness::Completed),
            result_bytes,
            record_bytes: found.place.length_bytes,
        }
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> Key<'_> {
        self.key.as_key()
    }

    /// The status; never [`Status::Absent`].
    #[must_use]
    pub fn status(&self) -> Status {
        self.status
    }

    /// The version of the key's latest record, for [`Store::compare_and_set`](crate::Store::compare_and_set).
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The number of attempts that began.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// When the key's latest record was written, which is its begin or its completion: in store time, in ms since the Unix
    /// epoch.
    #[must_use]
    pub fn changed_at_ms(&self) -> u64 {
        self.changed_at_ms
    }

    /// When the retention of the key ends and the key becomes absent, in store time, in ms since the Unix epoch. `None` if
    /// the operation is not completed or never expires.
    #[must_use]
    pub fn expires_at_ms(&self) -> Option<u64> {
        self.expires_at_ms
    }

    /// When the retention of the result ends, in store time, in ms since the Unix epoch. `None` if there is no result, or if it
    /// never expires.
    #[must_use]
    pub fn result_expires_at_ms(&self) -> Option<u64> {
        self.result_expires_at_ms
    }

    /// The length of the result, in bytes. `None` if there is no result, or if its retention has passed.
    #[must_use]
    pub fn result_bytes(&self) -> Option<usize> {
        self.result_bytes
    }

    /// The length of the key's latest record in the file, in bytes.
    #[must_use]
    pub fn record_bytes(&self) -> u64 {
        self.record_bytes
    }
}

/// What a scan walks over: an open store, or the file of a store.
pub(crate) trait KeySource: Send + fmt::Debug {
    /// Takes the list of the first segment from `from` on.
    fn walk(&self, from: u64) -> Result<WalkedSegment>;

    /// Reads a key that a segment lists. None if it is to be skipped.
    fn read(&self, key: WalkedKey, filter: &KeyFilter) -> Result<Option<ListedRecord>>;

    /// Registers that this thread is about to call a progress callback.
    fn enter_callback(&self) -> Option<InCallback>;
}

/// The keys of an open store.
#[derive(Debug)]
struct StoreKeys {
    engine: Handle,
    /// The tail when the scan began.
    first_tail: u64,
}

impl KeySource for StoreKeys {
    fn walk(&self, from: u64) -> Result<WalkedSegment> {
        self.engine.walk(from, self.first_tail)
    }

    fn read(&self, key: WalkedKey, filter: &KeyFilter) -> Result<Option<ListedRecord>> {
        self.engine.listed_record(key.hash, key.at, Listing::Keys(filter))
    }

    fn enter_callback(&self) -> Option<InCallback> {
        Some(self.engine.enter_callback())
    }
}

type OnProgress<'a> = Box<dyn FnMut(&Progress) -> ControlFlow<()> + 'a>;

/// An iterator over the keys of a store. Made by [`Store::scan`](crate::Store::scan) and [`Reader::scan`](crate::Reader::scan).
///
/// The methods set conditions, and apply to all items that follow. A key must meet all of them.
///
/// A scan holds no lock between two items. Dropping it ends it.
#[must_use = "an iterator does nothing until it is used"]
pub struct Scan<'a> {
    source: Box<dyn KeySource>,
    filter: KeyFilter,
    on_progress: Option<OnProgress<'a>>,
    /// The sequence from which the next segment is taken.
    next: u64,
    /// The keys of the segment that were not read yet.
    keys: vec::IntoIter<WalkedKey>,
    /// What the callback is told once the keys of the segment are read.
    progress: Progress,
    state: State,
}

/// How far a scan is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The segment before `next` is finished, and the callback was called.
    Between,
    /// Within the segment before `next`, after which others follow.
    Within,
    /// Within the last segment.
    WithinLast,
    /// At the end.
    Finished,
    /// The callback stopped the scan.
    Stopped,
}

impl<'a> Scan<'a> {
    pub(crate) fn of(source: Box<dyn KeySource>) -> Scan<'a> {
        Scan {
            source,
            filter: KeyFilter::default(),
            on_progress: None,
            next: 0,
            keys: Vec::new().into_iter(),
            progress: Progress::default(),
            state: State::Between,
        }
    }

    /// Shows only keys in this scope.
    pub fn scope<B: AsRef<[u8]> + ?Sized>(mut self, scope: &B) -> Scan<'a> {
        self.filter.scope = Some(Some(scope.as_ref().into()));
        self
    }

    /// Shows only keys without a scope.
    pub fn without_scope(mut self) -> Scan<'a> {
        self.filter.scope = Some(None);
        self
    }

    /// Shows only keys in this status.
    pub fn status(mut self, status: Status) -> Scan<'a> {
        self.filter.status = Some(status);
        self
    }

    /// Shows only keys whose latest record was written before this time: in store time, in ms since the Unix epoch. Compute
    /// it from [`Stats::store_time_ms`](crate::Stats::store_time_ms).
    ///
    /// ```
    /// use std::time::Duration;
    /// use oncekey::{Fingerprint, ManualClock, Options};
    ///
    /// let clock = ManualClock::new(1_700_000_000_000);
    /// let store = Options::new().manual_clock(clock.clone()).open_in_memory()?;
    /// store.record("old", Fingerprint::NONE, b"")?;
    /// clock.advance(Duration::from_secs(3_600));
    /// store.record("new", Fingerprint::NONE, b"")?;
    /// let half_an_hour_ago = store.stats().store_time_ms - 1_800_000;
    /// assert_eq!(store.scan().changed_before_ms(half_an_hour_ago).count(), 1);
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    pub fn changed_before_ms(mut self, before_ms: u64) -> Scan<'a> {
        self.filter.changed_before_ms = Some(before_ms);
        self
    }

    /// Calls `on_progress` after each segment, from within [`next`](Iterator::next). The callback can stop the scan, which
    /// then ends as if there were no more keys: [`is_stopped`](Scan::is_stopped).
    ///
    /// A scan whose conditions few keys meet can be within one call of `next` for as long as reading the whole file takes.
    ///
    /// ```
    /// use std::ops::ControlFlow;
    /// use std::time::{Duration, Instant};
    /// use oncekey::Store;
    ///
    /// let store = Store::in_memory()?;
    /// let until = Instant::now() + Duration::from_secs(10);
    /// let mut scan = store.scan().scope("acme").on_progress(|progress| {
    ///     eprint!("\r{:3.0} %", 100.0 * progress.fraction());
    ///     if Instant::now() < until { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    /// });
    /// let keys = scan.by_ref().collect::<Result<Vec<_>, _>>()?;
    /// assert!(keys.is_empty() && !scan.is_stopped());
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    pub fn on_progress(mut self, on_progress: impl FnMut(&Progress) -> ControlFlow<()> + 'a) -> Scan<'a> {
        self.on_progress = Some(Box::new(on_progress));
        self
    }

    /// How far the scan is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// Whether the callback stopped the scan, so that keys may be missing.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.state == State::Stopped
    }

    /// Finishes the segment: calls the callback, and goes to the next state.
    fn finish_segment(&mut self) {
        let is_last = self.state == State::WithinLast;
        self.state = if is_last { State::Finished } else { State::Between };
        let Some(on_progress) = &mut self.on_progress else { return };
        let _in_callback = self.source.enter_callback();
        if on_progress(&self.progress).is_break() && !is_last {
            self.state = State::Stopped;
        }
    }

    /// Takes the keys of the next segment. An error is one item, and the scan goes on with the segment after that one,
    /// unless there is nothing to go on with.
    fn begin_segment(&mut self) -> Result<()> {
        let walked = self.source.walk(self.next).inspect_err(|_| self.state = State::Finished)?;
        let WalkedSegment { sequence, keys, is_last, segment_bytes, left_bytes } = walked;
        self.progress = Progress::new(self.progress.done_bytes + segment_bytes, left_bytes);
        self.next = sequence + 1;
        self.state = if is_last { State::WithinLast } else { State::Within };
        self.keys = keys?.into_iter();
        Ok(())
    }
}

impl Iterator for Scan<'_> {
    type Item = Result<ScannedKey>;

    fn next(&mut self) -> Option<Result<ScannedKey>> {
        loop {
            while let Some(key) = self.keys.next() {
                match self.source.read(key, &self.filter) {
                    Ok(Some(listed)) => return Some(Ok(ScannedKey::of(listed))),
                    Ok(None) => {}
                    Err(error) => {
                        if matches!(error, Error::Closed | Error::Forked) {
                            self.keys = Vec::new().into_iter();
                            self.state = State::Finished;
                        }
                        return Some(Err(error));
                    }
                }
            }
            match self.state {
                State::Finished | State::Stopped => return None,
                State::Within | State::WithinLast => self.finish_segment(),
                State::Between => {
                    if let Err(error) = self.begin_segment() {
                        return Some(Err(error));
                    }
                }
            }
        }
    }
}

impl std::iter::FusedIterator for Scan<'_> {}

impl fmt::Debug for Scan<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Scan")
            .field("filter", &self.filter)
            .field("progress", &self.progress)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}
