//! What a begin gives: the right to perform one attempt, the right to resolve a doubt, or what is recorded.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::Codec;
use crate::completion::Completion;
use crate::engine::{Applied, Began, Engine, Finish, Grant, Handle, InClosure, Request, Terms};
use crate::error::{Error, Result};
use crate::format::record::Value;
use crate::key::{Fingerprint, Key, OwnedKey};
use crate::options::{check_renewal, own_retention};
use crate::record::Retention;
use crate::status::Version;
use crate::typed::{self, Encoded, Unfit};

/// How [`Store::begin`](crate::Store::begin) came out.
///
/// ```
/// use oncekey::{Begin, Fingerprint, Store};
///
/// let store = Store::in_memory()?;
/// match store.begin("charge:1", Fingerprint::NONE)? {
///     Begin::Acquired(mut lease) => {
///         // .. the act ..
///         lease.complete(b"receipt 17")?;
///     }
///     Begin::Completed(done) => println!("{:?}", done.result()),
///     Begin::InProgress { attempt } => println!("attempt {attempt} is at it"),
///     Begin::InDoubt(doubt) => println!("did attempt {} happen?", doubt.attempt()),
///     _ => unreachable!(),
/// }
/// # Ok::<(), oncekey::Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
#[must_use = "an acquired lease that is dropped leaves its operation in doubt"]
pub enum Begin {
    /// The act is the caller's to perform. The begin is as durable as was asked for.
    Acquired(Lease),
    /// An earlier attempt began and nobody knows whether the act happened. It is the caller's to find out; until it
    /// drops this, everybody else gets `InProgress`.
    InDoubt(Doubt),
    /// Somebody else in this process is at it.
    InProgress {
        /// Which attempt.
        attempt: u32,
    },
    /// It was done before.
    Completed(Completion),
}

impl Begin {
    pub(crate) fn new(engine: &Arc<Engine>, key: Key<'_>, terms: &Terms, began: Began) -> Begin {
        match began {
            Began::Acquired(grant) => Begin::Acquired(Lease::new(engine, key, terms, grant)),
            Began::InDoubt(grant) => Begin::InDoubt(Doubt::new(engine, key, terms, grant)),
            Began::InProgress { attempt, .. } => Begin::InProgress { attempt },
            Began::Completed(found) => Begin::Completed(Completion::new(key, found)),
        }
    }
}

/// A grant and all that is needed to end it. Dropping it ends the claim, in memory only.
struct Claimed {
    engine: Handle,
    key: OwnedKey,
    terms: Terms,
    grant: Grant,
    completed: Option<(Version, Fingerprint)>,
}

impl Claimed {
    fn new(engine: &Arc<Engine>, key: OwnedKey, terms: &Terms, grant: Grant) -> Claimed {
        Claimed { engine: Handle::new(Arc::clone(engine)), key, terms: *terms, grant, completed: None }
    }

    /// The record is in the open file, also where [`Error::Replaced`] says that its path leads elsewhere.
    fn complete(&mut self, value: Value<'_>) -> Result<Version> {
        self.engine.check_process()?;
        // A completion without a result is like no other.
        let digest = value.result.map_or(Fingerprint::NONE, |result| self.engine.fingerprint(result));
        let version = match self.completed {
            Some((version, first)) if digest == first => version,
            Some(_) => return Err(self.conflict()),
            None => {
                let version = self.finish(Finish::Completed(value))?;
                self.completed = Some((version, digest));
                version
            }
        };
        self.engine.check_in_place().map(|()| version)
    }

    fn complete_typed<T>(&mut self, encoded: std::result::Result<Encoded<T>, Unfit>) -> Result<Version> {
        let encoded = encoded.map_err(|unfit| unfit.into_error(self.key.as_key()))?;
        self.complete(encoded.value())
    }

    fn complete_value<T: Serialize + DeserializeOwned>(&mut self, result: &T) -> Result<Version> {
        let max_bytes = self.engine.settings().max_result_bytes;
        self.complete_typed(typed::encode_as(self.grant.typing, result, max_bytes))
    }

    fn complete_value_with<C: Codec, T>(&mut self, codec: &C, result: &T) -> Result<Version>
    where
        T: Serialize + DeserializeOwned,
    {
        let max_bytes = self.engine.settings().max_result_bytes;
        let encoded = typed::check_codec::<C>(self.grant.typing)
            .and_then(|()| typed::encode(codec, self.grant.typing, result, max_bytes));
        self.complete_typed(encoded)
    }

    fn release(&mut self) -> Result<()> {
        self.check_not_completed()?;
        self.finish(Finish::Released)?;
        self.engine.check_in_place()
    }

    fn check_not_completed(&self) -> Result<()> {
        self.engine.check_process()?;
        if self.completed.is_some() { Err(self.conflict()) } else { Ok(()) }
    }

    fn retain(&mut self, retention: Duration) -> Result<()> {
        self.check_not_completed()?;
        let terms = &mut self.terms;
        terms.retention = own_retention(retention, self.engine.settings())?;
        // Of another attempt after a doubt.
        terms.lease_ms = terms.lease_ms.map(|lease_ms| lease_ms.min(terms.retention.key_ms));
        Ok(())
    }

    fn renew(&self, lease: Duration) -> Result<()> {
        self.engine.check_process()?;
        let lease_ms = check_renewal(lease, self.terms.retention)?;
        self.engine.renew(self.key.as_key(), self.grant.version, lease_ms)
    }

    fn conflict(&self) -> Error {
        Error::Conflict { key: self.key.clone() }
    }

    fn enter_closure(&self) -> InClosure {
        self.engine.enter_closure(self.key.as_key(), self.grant.claim)
    }

    fn finish(&mut self, finish: Finish<'_>) -> Result<Version> {
        let Grant { version, reservation, .. } = &mut self.grant;
        self.engine.finish(self.key.as_key(), *version, finish, &self.terms, reservation)
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        if self.engine.has_forked() {
            // Neither the claim nor the room that it has is this process's to give up.
            self.grant.reservation.take().spend();
            return;
        }
        self.engine.abandon(self.key.as_key(), self.grant.claim);
    }
}

/// The right to perform one attempt.
///
/// It ends in one of three ways. [`complete`](Lease::complete) records the result. [`release`](Lease::release) says
/// that the act certainly did not happen. Anything else, be it a drop, a panic or the end of the process, leaves the
/// operation **in doubt**, because then nobody knows.
///
/// The lease is known by its [`version`](Lease::version), not by its key: when somebody else took the operation over
/// meanwhile, ending it is [`Error::Fenced`]. It can be sent to another thread. It keeps the store's file locked.
///
/// ```
/// use oncekey::{Begin, Error, Fingerprint, Status, Store};
///
/// let store = Store::in_memory()?;
/// let Begin::Acquired(lease) = store.begin("ship:7", Fingerprint::NONE)? else { unreachable!() };
/// assert_eq!(store.get("ship:7")?.status(), Status::InProgress);
/// drop(lease);
/// assert_eq!(store.get("ship:7")?.status(), Status::InDoubt);
/// # Ok::<(), Error>(())
/// ```
#[must_use = "a lease that is dropped leaves its operation in doubt"]
pub struct Lease {
    claimed: Claimed,
}

impl Lease {
    pub(crate) fn new(engine: &Arc<Engine>, key: Key<'_>, terms: &Terms, grant: Grant) -> Lease {
        Lease { claimed: Claimed::new(engine, key.to_owned(), terms, grant) }
    }

    /// The closure that performs the attempt is about to be called, in this thread.
    pub(crate) fn enter_closure(&self) -> InClosure {
        self.claimed.enter_closure()
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> Key<'_> {
        self.claimed.key.as_key()
    }

    /// Which attempt this is, from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.claimed.grant.attempt
    }

    /// The version of the begin: the fencing token to hand to the outside world.
    #[must_use]
    pub fn version(&self) -> Version {
        self.claimed.grant.version
    }

    /// Gives the lease a new deadline, `lease` from now, whatever it had before: later or earlier. `Duration::MAX` is
    /// never. For a holder that works longer than it was expected to.
    ///
    /// After its deadline a lease can still be renewed, as long as no other caller has taken the operation over; at any
    /// time exactly one of the two happens. It is counted in store time and kept in memory only, so it costs no write,
    /// works on a store whose disk failed, and does not outlive the process. It waits while another thread is changing
    /// the same key.
    ///
    /// ```
    /// use oncekey::{Begin, Error, ManualClock, Options, Status};
    /// use std::time::Duration;
    ///
    /// let clock = ManualClock::new(1_700_000_000_000);
    /// let store = Options::new().manual_clock(clock.clone()).open_in_memory()?;
    /// let minute = Duration::from_secs(60);
    /// let Begin::Acquired(lease) = store.operation("export:7").lease(minute).begin()? else { unreachable!() };
    /// clock.advance(minute / 2);
    /// lease.renew(minute)?;
    /// clock.advance(minute / 2);
    /// assert_eq!(store.get("export:7")?.status(), Status::InProgress);
    /// clock.advance(minute / 2);
    /// assert_eq!(store.get("export:7")?.status(), Status::InDoubt, "others may take over");
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// - [`Error::Fenced`]: another caller took the operation over, or it has ended. The lease cannot be renewed any more.
    ///   If nothing was recorded since, the operation can still be [completed](Lease::complete).
    /// - [`Error::Option`]: `lease` is less than a millisecond, or longer than the retention. The deadline has not changed.
    /// - [`Error::Closed`], [`Error::Forked`].
    pub fn renew(&self, lease: Duration) -> Result<()> {
        self.claimed.renew(lease)
    }

    /// Whether the operation is still this lease's: no other caller took it over, and it has not ended. True also after
    /// the deadline, until another caller takes over.
    ///
    /// The answer may be out of date when it arrives: what must not happen twice needs the outside world to check the
    /// [`version`](Lease::version). It costs no more than a look into memory, and spares an act that was taken over
    /// its remaining work.
    ///
    /// ```
    /// use oncekey::{Begin, Fingerprint, Store};
    ///
    /// let store = Store::in_memory()?;
    /// let Begin::Acquired(mut lease) = store.begin("ship:7", Fingerprint::NONE)? else { unreachable!() };
    /// assert!(lease.is_current());
    /// lease.complete(b"parcel 99")?;
    /// assert!(!lease.is_current());
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.claimed.engine.is_current(self.key(), self.version())
    }

    /// How long the operation is to be remembered once this lease has completed it, and its result with it; for a
    /// retention that follows from the result. It takes the place of what the operation or the store was given;
    /// `Duration::MAX` is for ever. [`Options::result_retention`](crate::Options::result_retention) holds all the same.
    ///
    /// Nothing is written until the lease is [completed](Lease::complete).
    ///
    /// ```
    /// use oncekey::{Begin, Fingerprint, ManualClock, Options};
    /// use std::time::Duration;
    ///
    /// let clock = ManualClock::new(1_700_000_000_000);
    /// let store = Options::new().manual_clock(clock.clone()).open_in_memory()?;
    /// let Begin::Acquired(mut lease) = store.begin("quote:7", Fingerprint::NONE)? else { unreachable!() };
    /// let valid_for = Duration::from_secs(900); // as the supplier's answer says
    /// lease.retain(valid_for)?;
    /// lease.complete(b"1,000 cents")?;
    /// clock.advance(valid_for);
    /// assert!(store.get("quote:7")?.is_absent());
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// - [`Error::Conflict`]: the lease was completed already.
    /// - [`Error::Option`]: less than a millisecond. The retention has not changed.
    /// - [`Error::Forked`].
    pub fn retain(&mut self, retention: Duration) -> Result<()> {
        self.claimed.retain(retention)
    }

    /// Records that the act happened, and its result, in one record. Returns the record's version when that is as
    /// durable as was asked for.
    ///
    /// Room for the record was set aside by the begin: it is never [`Error::Full`]. Completing once more with the
    /// same bytes is fine and does nothing.
    ///
    /// # Errors
    ///
    /// - [`Error::TooLarge`]: over `Options::max_result`; the lease is still usable.
    /// - [`Error::Fenced`]: somebody else took over. The result is still the caller's, and is not recorded.
    /// - [`Error::Conflict`]: this lease was already completed with other bytes; the first ones stand.
    /// - [`Error::Poisoned`]: the disk failed, now or before. Whether the result was recorded shows when the store is
    ///   opened again.
    /// - [`Error::Io`], [`Error::Corrupt`]: what the file says of the key cannot be read. Nothing was recorded, and the
    ///   lease is still usable.
    /// - [`Error::VersionsExhausted`]: nothing was recorded.
    pub fn complete(&mut self, result: &[u8]) -> Result<Version> {
        self.claimed.complete(Value::bytes(result))
    }

    /// [`complete`](Lease::complete) with a typed result, encoded by the codec of the operation
    /// ([`Operation::codec`](crate::Operation::codec)) or the default one, so that a retry of
    /// [`Operation::run`](crate::Operation::run) and [`Completion::decode`] give it.
    ///
    /// ```
    /// use oncekey::{Begin, Store};
    ///
    /// let store = Store::in_memory()?;
    /// let Begin::Acquired(mut lease) = store.operation("ship:7").request(&7).begin()? else { unreachable!() };
    /// lease.complete_value(&"parcel 99".to_owned())?;
    /// let Begin::Completed(done) = store.operation("ship:7").request(&7).begin()? else { unreachable!() };
    /// assert_eq!(done.decode::<String>()?, "parcel 99");
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`complete`](Lease::complete). [`Error::Encode`]: the result cannot be encoded, or would come back as another value,
    /// or the operation's codec is not of this crate; the lease is still usable.
    pub fn complete_value<T: Serialize + DeserializeOwned>(&mut self, result: &T) -> Result<Version> {
        self.claimed.complete_value(result)
    }

    /// [`complete_value`](Lease::complete_value) with a codec of the program's own, which must be that of the operation
    /// ([`Operation::codec`](crate::Operation::codec)), if it has one.
    ///
    /// # Errors
    ///
    /// As [`complete_value`](Lease::complete_value); [`Error::Encode`] also if it is another codec.
    pub fn complete_value_with<C: Codec, T>(&mut self, codec: &C, result: &T) -> Result<Version>
    where
        T: Serialize + DeserializeOwned,
    {
        self.claimed.complete_value_with(codec, result)
    }

    /// Records that the side effect happened, without its result: for one that cannot be recorded. Every retry is
    /// [`Error::ResultNotKept`], and the side effect is not run again.
    ///
    /// # Errors
    ///
    /// As [`complete`](Lease::complete).
    pub fn complete_without_result(&mut self) -> Result<Version> {
        self.claimed.complete(Value::not_kept(self.claimed.grant.typing))
    }

    pub(crate) fn complete_as(&mut self, value: Value<'_>) -> Result<Version> {
        self.claimed.complete(value)
    }

    pub(crate) fn retention(&self) -> Retention {
        self.claimed.terms.retention
    }

    pub(crate) fn set_retention(&mut self, retention: Retention) {
        self.claimed.terms.retention = retention;
    }

    /// Records that the act certainly did not happen: the key is absent again. The count of attempts is remembered for
    /// a while (see [`KeyState::attempt`](crate::KeyState::attempt)), and costs nothing that lasts.
    ///
    /// # Errors
    ///
    /// [`Error::Conflict`] if the lease was completed; the rest as [`complete`](Lease::complete). Unless it is
    /// [`Error::Fenced`] or [`Error::Conflict`], the operation is then in doubt.
    pub fn release(mut self) -> Result<()> {
        self.claimed.release()
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Lease")
            .field("key", &self.claimed.key)
            .field("attempt", &self.attempt())
            .field("version", &self.version())
            .finish_non_exhaustive()
    }
}

/// The right to resolve a doubt: an earlier attempt began and nobody knows whether its act happened.
///
/// Find out, from somebody who knows for certain, and say so. Dropped, it leaves everything as it was.
///
/// Having one takes no room in the file. Ending it does, and may use room that is kept for it when nothing new can be
/// begun any more: see [`complete`](Doubt::complete).
///
/// ```
/// use oncekey::{Begin, Fingerprint, Store};
///
/// let store = Store::in_memory()?;
/// drop(store.begin("ship:7", Fingerprint::NONE)?); // as a crash would
/// let Begin::InDoubt(mut doubt) = store.begin("ship:7", Fingerprint::NONE)? else { unreachable!() };
/// // The carrier has it.
/// doubt.complete(b"parcel 99")?;
/// assert_eq!(store.get("ship:7")?.result(), Some(&b"parcel 99"[..]));
/// # Ok::<(), oncekey::Error>(())
/// ```
#[must_use = "dropped, the doubt stays"]
pub struct Doubt {
    claimed: Claimed,
}

impl Doubt {
    pub(crate) fn new(engine: &Arc<Engine>, key: Key<'_>, terms: &Terms, grant: Grant) -> Doubt {
        Doubt { claimed: Claimed::new(engine, key.to_owned(), terms, grant) }
    }

    /// The closure that looks into the attempt is about to be called, in this thread.
    pub(crate) fn enter_closure(&self) -> InClosure {
        self.claimed.enter_closure()
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> Key<'_> {
        self.claimed.key.as_key()
    }

    /// The attempt whose outcome nobody knows.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.claimed.grant.attempt
    }

    /// The version of that attempt's begin.
    #[must_use]
    pub fn version(&self) -> Version {
        self.claimed.grant.version
    }

    /// How long the operation is to be remembered once this doubt, or the attempt that it begins again, has completed it:
    /// as [`Lease::retain`].
    ///
    /// # Errors
    ///
    /// As [`Lease::retain`].
    pub fn retain(&mut self, retention: Duration) -> Result<()> {
        self.claimed.retain(retention)
    }

    /// Records that the act happened, with this result. Returns the record's version when that is as durable as was
    /// asked for. Completing once more with the same bytes is fine and does nothing.
    ///
    /// # Errors
    ///
    /// As [`Lease::complete`], and the doubt is still usable where the lease would be. Beside these:
    ///
    /// - [`Error::Fenced`] also when the one who performed the attempt completed it meanwhile.
    /// - [`Error::Full`]: not even the room that is kept for ending doubts is left. Nothing was recorded; the doubt is
    ///   still usable and can be completed when there is room.
    pub fn complete(&mut self, result: &[u8]) -> Result<Version> {
        self.claimed.complete(Value::bytes(result))
    }

    /// [`complete`](Doubt::complete) with a typed result, encoded by the codec that the attempt's record names, or the default
    /// one: what an operator's tool calls with what it found out.
    ///
    /// ```
    /// use oncekey::{Begin, Fingerprint, Outcome, Store};
    ///
    /// let store = Store::in_memory()?;
    /// let lost = store.operation("charge:1").run(|_| Err::<u64, _>("timed out"));
    /// assert!(lost.is_err());
    /// let Begin::InDoubt(mut doubt) = store.begin("charge:1", Fingerprint::NONE)? else { unreachable!() };
    /// doubt.resolve(&17_u64)?;
    /// let retried = store.operation("charge:1").run(|_| Ok::<u64, String>(18));
    /// assert!(matches!(retried, Ok(Outcome::AlreadyDone(17))));
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`complete`](Doubt::complete). [`Error::Encode`]: the result cannot be encoded, or would come back as another value,
    /// or the codec is not of this crate; the doubt is still usable.
    pub fn resolve<T: Serialize + DeserializeOwned>(&mut self, result: &T) -> Result<Version> {
        self.claimed.complete_value(result)
    }

    /// [`resolve`](Doubt::resolve) with a codec of the program's own.
    ///
    /// # Errors
    ///
    /// As [`resolve`](Doubt::resolve).
    pub fn resolve_with<C: Codec, T>(&mut self, codec: &C, result: &T) -> Result<Version>
    where
        T: Serialize + DeserializeOwned,
    {
        self.claimed.complete_value_with(codec, result)
    }

    /// Records that the side effect happened, without its result: see [`Lease::complete_without_result`].
    ///
    /// # Errors
    ///
    /// As [`complete`](Doubt::complete).
    pub fn complete_without_result(&mut self) -> Result<Version> {
        self.claimed.complete(Value::not_kept(self.claimed.grant.typing))
    }

    /// Records that the act certainly did not happen, and shall not be tried now: the key is absent again.
    ///
    /// # Errors
    ///
    /// [`Error::Conflict`] if this doubt was completed; the rest as [`complete`](Doubt::complete), [`Error::Full`]
    /// included. Unless it is [`Error::Fenced`] or [`Error::Conflict`] the doubt stays, for the next one who asks.
    pub fn release(mut self) -> Result<()> {
        self.claimed.release()
    }

    /// Begins the next attempt, because the act certainly did not happen, or may happen again.
    ///
    /// # Errors
    ///
    /// - [`Error::Fenced`]: the one who performed the attempt finished it meanwhile, or somebody else ended it.
    /// - [`Error::Conflict`]: this doubt was completed.
    /// - [`Error::Full`]: another attempt needs the room of a [`begin`](crate::Store::begin). The doubt stays, for the
    ///   next one who asks.
    /// - [`Error::Poisoned`], [`Error::Corrupt`], [`Error::Io`]: the disk.
    pub fn begin_again(self) -> Result<Lease> {
        self.claimed.check_not_completed()?;
        let Claimed { engine, key, terms, grant, .. } = &self.claimed;
        let terms = &Terms { typing: grant.typing.or(terms.typing), ..*terms };
        let grant = engine.begin_again(key.as_key(), grant.version, terms)?;
        Ok(Lease { claimed: Claimed::new(engine, key.clone(), terms, grant) })
    }

    /// Records the result as the end of this doubt, or as seen and done if the key is absent by now.
    pub(crate) fn record_applied(&self, request: Request, value: Value<'_>) -> Result<Applied> {
        let Claimed { engine, key, terms, grant, .. } = &self.claimed;
        engine.record_applied(key.as_key(), grant, request, value, terms)
    }
}

impl fmt::Debug for Doubt {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Doubt")
            .field("key", &self.claimed.key)
            .field("attempt", &self.attempt())
            .field("version", &self.version())
            .finish_non_exhaustive()
    }
}
