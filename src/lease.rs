//! The right to run one attempt: what a begin returns to the caller that must run the side effect.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::Codec;
use crate::engine::{Engine, Grant, HashedKey, InClosure, Terms};
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::format::record::Value;
use crate::held_grant::HeldGrant;
use crate::key::Key;
use crate::messages::Messages;
use crate::record::Retention;
use crate::status::Version;

/// The right to run one attempt at an operation.
///
/// A lease ends in one of three ways:
///
/// - [`complete`](Lease::complete) records the result: every later begin of the key returns it.
/// - [`release`](Lease::release) records that the side effect certainly did not happen: the key is absent again.
/// - Anything else (a drop, a panic, the end of the process) leaves the operation **in doubt**, because the side effect may
///   have happened and the store cannot know.
///
/// The store recognizes a lease by its [`version`](Lease::version). If another caller took over the operation after the
/// deadline and began the next attempt, ending this lease is [`Error::Fenced`]. A lease can be sent to another thread.
/// While it is alive, [`Store::close`](crate::Store::close) is refused and the file stays locked.
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
    held: HeldGrant,
}

impl Lease {
    pub(crate) fn new(engine: &Arc<Engine>, key: Key<'_>, terms: &Terms, grant: Grant) -> Lease {
        Lease { held: HeldGrant::new(engine, key, terms, grant) }
    }

    pub(crate) fn held(&mut self) -> &mut HeldGrant {
        &mut self.held
    }

    /// The engine of the store that gave the lease.
    #[cfg(feature = "__simulation")]
    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.held.engine
    }

    /// Releases the attempt, because no caller has got this lease.
    pub(crate) fn release_unstarted(mut self) {
        self.held.release_unstarted();
    }

    /// Marks this thread as inside the closure that runs the attempt.
    pub(crate) fn enter_closure(&self) -> InClosure {
        self.held.enter_closure()
    }

    /// The key of the operation.
    #[must_use]
    pub fn key(&self) -> Key<'_> {
        self.held.key.as_key()
    }

    /// The number of this attempt at the operation, counted from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.held.grant.attempt
    }

    /// The version of the begin: the fencing token to pass to the outside world. Later attempts have higher versions.
    #[must_use]
    pub fn version(&self) -> Version {
        self.held.grant.version
    }

    /// Moves the deadline of the lease to `lease` from now, earlier or later than it was. `Duration::MAX` means no deadline.
    /// For a holder that takes longer than it expected to.
    ///
    /// A lease can be renewed after its deadline too, as long as no other caller has taken over the operation. If a
    /// renewal and a takeover race, exactly one of them succeeds.
    ///
    /// The deadline is in store time and kept in memory only. So a renewal writes nothing, works on a store whose disk
    /// failed, and does not outlive the process. It blocks while another thread is changing the same key.
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
    /// assert_eq!(store.get("export:7")?.status(), Status::InDoubt, "others can take over now");
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// - [`Error::Fenced`]: another caller took over the operation, or the operation has ended. The lease cannot be
    ///   renewed any more. If nothing has been recorded since, the operation can still be [completed](Lease::complete).
    /// - [`Error::Option`]: `lease` is shorter than a millisecond, or longer than the retention. The deadline is unchanged.
    /// - [`Error::Closed`], [`Error::Forked`].
    pub fn renew(&self, lease: Duration) -> Result<()> {
        self.held.renew(lease)
    }

    /// Whether this lease still owns the operation: no other caller has taken over the operation, and it has not ended.
    /// Also true after the deadline, until another caller takes over.
    ///
    /// The answer can be out of date as soon as it is returned. So it can save useless work after a takeover, but it
    /// does not prevent a second side effect. For that, the outside world must compare the [`version`](Lease::version).
    /// The call only reads memory.
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
        self.held.engine.is_current(self.held.hashed_key(), self.version())
    }

    /// Sets how long the operation, and its result with it, is remembered after this lease has completed it. For a
    /// retention that depends on the result.
    ///
    /// It replaces the retention of the operation or the store. `Duration::MAX` means for ever. The result is kept no longer
    /// than [`Options::result_retention`](crate::Options::result_retention), if the store was opened with one. Nothing is
    /// written until the lease is [completed](Lease::complete).
    ///
    /// ```
    /// use oncekey::{Begin, Fingerprint, ManualClock, Options};
    /// use std::time::Duration;
    ///
    /// let clock = ManualClock::new(1_700_000_000_000);
    /// let store = Options::new().manual_clock(clock.clone()).open_in_memory()?;
    /// let Begin::Acquired(mut lease) = store.begin("quote:7", Fingerprint::NONE)? else { unreachable!() };
    /// let valid_for = Duration::from_secs(900); // from the supplier's answer
    /// lease.retain(valid_for)?;
    /// lease.complete(b"1,000 cents")?;
    /// clock.advance(valid_for);
    /// assert!(store.get("quote:7")?.is_absent());
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// - [`Error::Conflict`]: the lease was completed before.
    /// - [`Error::Option`]: the retention is shorter than a millisecond. The former retention still applies.
    /// - [`Error::Forked`].
    pub fn retain(&mut self, retention: Duration) -> Result<()> {
        self.held.retain(retention)
    }

    /// Adds a message that is committed with the completion of this lease: see [`Messages::emit`]. It is committed by
    /// [`complete`](Lease::complete) and the other calls that complete, also in a batch, and by no release.
    ///
    /// All messages of an attempt together may take what [`Operation::emits`](crate::Operation::emits) allowed, which is
    /// nothing by default.
    ///
    /// ```
    /// use oncekey::{Begin, Store};
    ///
    /// let store = Store::in_memory()?;
    /// let Begin::Acquired(mut lease) = store.operation("ship:7").emits(1_024).begin()? else { unreachable!() };
    /// lease.emit_bytes("shipped", b"order 7")?;
    /// lease.complete(b"parcel 99")?;
    /// assert_eq!(store.stats().messages, 1);
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`Messages::emit`]. The lease is still usable.
    pub fn emit<T: Serialize + DeserializeOwned>(&mut self, topic: &str, message: &T) -> Result<()> {
        self.held.messages.emit(topic, message)
    }

    /// Adds a message as bytes: see [`emit`](Lease::emit).
    ///
    /// # Errors
    ///
    /// Those of [`Messages::emit_bytes`].
    pub fn emit_bytes(&mut self, topic: &str, payload: &[u8]) -> Result<()> {
        self.held.messages.emit_bytes(topic, payload)
    }

    /// Records in one record that the side effect happened, and its result. Returns the record's version once the
    /// record is as durable as was asked for ([`Durability`](crate::Durability)).
    ///
    /// The begin reserved the space for this record in the file, so a full disk does not fail it. Completing once more with
    /// the same bytes returns the same version and writes nothing: it compares them with the record.
    ///
    /// # Errors
    ///
    /// - [`Error::TooLarge`]: the result is larger than [`Options::max_result`](crate::Options::max_result). The lease is
    ///   still usable.
    /// - [`Error::Fenced`]: another attempt began, or another caller ended the operation. The result was not recorded. Or
    ///   this lease was completed before, and the key has been forgotten, replaced, or dropped after its retention since.
    /// - [`Error::Conflict`]: this lease was completed before with other bytes. The first result stands.
    /// - [`Error::HasSteps`]: a step of the operation is in progress or in doubt. Nothing was recorded, and the lease is still
    ///   usable.
    /// - [`Error::ResultExpired`]: this lease was completed before, and the store no longer has the result to compare with.
    /// - [`Error::Poisoned`]: the disk failed, now or before. Opening the store again shows whether the result was
    ///   recorded.
    /// - [`Error::Io`], [`Error::Corrupt`]: the key's record cannot be read. Nothing was recorded, and the lease is still
    ///   usable.
    /// - [`Error::VersionsExhausted`]: nothing was recorded.
    /// - [`Error::Replaced`]: the result was recorded, in the open file, to which the path no longer leads.
    /// - [`Error::Forked`].
    pub fn complete(&mut self, result: &[u8]) -> Result<Version> {
        self.held.complete(Value::bytes(result))
    }

    /// Records a typed result, as [`complete`](Lease::complete) does for bytes. The codec is that of the operation
    /// ([`Operation::codec`](crate::Operation::codec)) or the default one, so that a retry of
    /// [`Operation::run`](crate::Operation::run) and [`Completion::decode`](crate::Completion::decode) return the value.
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
    /// Those of [`complete`](Lease::complete), and [`Error::Encode`]: the result cannot be encoded, its bytes would
    /// decode to a different value, or the operation's codec is not one of this crate's. The lease is still usable.
    pub fn complete_value<T: Serialize + DeserializeOwned>(&mut self, result: &T) -> Result<Version> {
        self.held.complete_value(result)
    }

    /// Records a typed result that is encoded with `codec`. A lease that was begun by an [`Operation`](crate::Operation) has
    /// a [codec](crate::Operation::codec), which must be the same one.
    ///
    /// # Errors
    ///
    /// Those of [`complete_value`](Lease::complete_value). A different codec is [`Error::Encode`].
    pub fn complete_value_with<C: Codec, T>(&mut self, codec: &C, result: &T) -> Result<Version>
    where
        T: Serialize + DeserializeOwned,
    {
        self.held.complete_value_with(codec, result)
    }

    /// Records that the side effect happened, without its result. For a result that cannot be recorded.
    ///
    /// Every retry gets [`Error::ResultNotKept`], and the side effect does not run again.
    ///
    /// # Errors
    ///
    /// Those of [`complete`](Lease::complete).
    pub fn complete_without_result(&mut self) -> Result<Version> {
        self.held.complete_without_result()
    }

    /// Gives the attempt up and leaves the operation in doubt, like a drop of the lease, and notes why. An operator finds the
    /// note in the list of [unfinished](crate::Store::unfinished) operations.
    ///
    /// The note is cut to 512 bytes. It is not synced, so a crash may lose it, and it is skipped if there is no space for it
    /// or the attempt has ended. [`Options::notes`](crate::Options::notes) does not apply: the caller chooses this text.
    ///
    /// ```
    /// use oncekey::{Begin, Fingerprint, Store};
    ///
    /// let store = Store::in_memory()?;
    /// let Begin::Acquired(lease) = store.begin("charge:1", Fingerprint::NONE)? else { unreachable!() };
    /// lease.leave_in_doubt("the gateway timed out");
    /// let unfinished = store.unfinished()?.next().expect("it is in doubt")?;
    /// assert_eq!(unfinished.note(), Some("the gateway timed out"));
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    pub fn leave_in_doubt(mut self, note: &str) {
        self.held.note(note);
    }

    pub(crate) fn set_messages(&mut self, messages: Messages) {
        self.held.messages = messages;
    }

    /// A collection for the messages of this attempt.
    pub(crate) fn new_messages(&self) -> Messages {
        self.held.new_messages()
    }

    pub(crate) fn complete_as(&mut self, value: Value<'_>) -> Result<Version> {
        self.held.complete(value)
    }

    pub(crate) fn hashed_key(&self) -> HashedKey<'_> {
        self.held.hashed_key()
    }

    pub(crate) fn terms(&self) -> &Terms {
        &self.held.terms
    }

    pub(crate) fn set_retention(&mut self, retention: Retention) {
        self.held.terms.retention = retention;
    }

    /// Records that the side effect certainly did not happen: the key is absent again, and the next begin starts over. The
    /// number of attempts is remembered for a while (see [`KeyState::attempt`](crate::KeyState::attempt)).
    ///
    /// # Errors
    ///
    /// - [`Error::Conflict`]: the lease was completed before, and the completion stands.
    /// - [`Error::HasSteps`]: a step of the operation has happened or may have happened. Nothing was recorded.
    /// - [`Error::Fenced`]: another attempt began, or another caller ended the operation. Nothing was recorded.
    /// - [`Error::Replaced`]: the release was recorded, in the open file, to which the path no longer leads.
    /// - The other errors of [`complete`](Lease::complete). The operation is then in doubt, because the lease is gone.
    pub fn release(mut self) -> Result<()> {
        self.held.release()
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Lease")
            .field("key", &self.held.key)
            .field("attempt", &self.attempt())
            .field("version", &self.version())
            .finish_non_exhaustive()
    }
}
