//! Options for the outbox, for a process that takes over a file, and for copies.

use std::time::Duration;

use super::Options;
#[cfg(doc)]
use crate::error::Error;

impl Options {
    /// Sets how many bytes the messages that are not acknowledged may take in the file. Default: no limit.
    ///
    /// If the publisher stops, the messages of the operations that complete meanwhile accumulate. Once they take this much, a
    /// call that would begin an operation with [`emits`](crate::Operation::emits) is [`Error::Full`]. Everything else goes
    /// on: operations that have begun complete with their messages, which may exceed the limit by what they
    /// [reserved](crate::Operation::emits), and other operations begin.
    ///
    /// ```
    /// use oncekey::{Error, Options, RunError};
    ///
    /// let store = Options::new().max_outbox(100).open_in_memory()?;
    /// let ship = |order: &str| {
    ///     store.operation(order).emits(4_096).run(|attempt| {
    ///         attempt.emit("shipped", &order.to_owned())?;
    ///         Ok::<_, oncekey::Error>(())
    ///     })
    /// };
    /// ship("order-1")?;
    /// assert!(matches!(ship("order-2"), Err(RunError::Store(Error::Full { .. }))));
    /// store.outbox().next("shipped")?.expect("a message").ack()?;
    /// ship("order-2")?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn max_outbox(mut self, bytes: u64) -> Options {
        self.max_outbox_bytes = Some(bytes);
        self
    }

    /// Sets how long opening the store waits for another process that has the file open. Default: zero, so that opening it
    /// is [`Error::Locked`].
    ///
    /// For a new process that takes over from one that is shutting down. If the path leads to a different file by the time
    /// that the other process lets go, that file is opened. A file that is open in this process is `Locked` at once. Several
    /// processes that wait get the file in no particular order.
    ///
    /// ```
    /// use std::time::Duration;
    /// use oncekey::{Error, Options};
    ///
    /// # let directory = tempfile::tempdir()?;
    /// # let path = directory.path().join("payments.once");
    /// let options = Options::new().lock_wait(Duration::from_secs(10));
    /// let store = options.open(&path)?; // waits for the process of the last deploy to end
    /// assert!(matches!(options.open(&path), Err(Error::Locked { .. })), "open in this process");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn lock_wait(mut self, wait: Duration) -> Options {
        self.lock_wait = wait;
        self
    }

    /// States that the copy that is opened lacks nothing: nothing has been begun, recorded or ended in the original since the
    /// copy was taken. Without this or [`may_have_forgotten`](Options::may_have_forgotten), opening a copy for the first time is
    /// [`Error::Copy`].
    ///
    /// If it is not true, a side effect that the copy has forgotten runs again. It has an effect once, as `may_have_forgotten`.
    pub fn nothing_was_lost(self) -> Options {
        self.may_have_forgotten(Duration::ZERO)
    }

    /// States that the copy that is opened may have forgotten operations: those that were begun or ended in the original after
    /// the copy was taken. For `window` from this opening on, in store time, every key that the store does not know as in
    /// progress, in doubt or completed is in doubt, also if it was released or has expired. Choose the longest time after which
    /// a retry of a forgotten operation can still come; `Duration::MAX` means for ever. See [the
    /// guide](crate::guide::backup_and_restore).
    ///
    /// This is written to the file when the store is opened, before any call can use it. It has an effect on a
    /// [backup](crate::Store::backup) or a [repaired](crate::repair()) file that was never opened, and on no other file: a
    /// program can leave it in.
    ///
    /// ```
    /// use oncekey::{Error, Fingerprint, Options, Status, Store};
    /// use std::time::Duration;
    ///
    /// let directory = tempfile::tempdir()?;
    /// let store = Store::open(directory.path().join("payments.once"))?;
    /// let path = directory.path().join("restored.once");
    /// store.backup(&path)?;
    /// store.record("charge:1", Fingerprint::NONE, b"receipt")?; // the backup does not know it
    /// assert!(matches!(Store::open(&path), Err(Error::Copy { .. })));
    ///
    /// let restored = Options::new().may_have_forgotten(Duration::from_secs(24 * 3600)).open(&path)?;
    /// assert_eq!(restored.get("charge:1")?.status(), Status::InDoubt);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn may_have_forgotten(mut self, window: Duration) -> Options {
        self.forgotten = Some(window);
        self
    }
}
