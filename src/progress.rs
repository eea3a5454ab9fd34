//! [`Progress`]: how far a long call has come, for a progress bar and for a way to stop.

/// How far a long call has come, as its progress callback gets it.
///
/// A long call passes this to its callback after each segment of work. The callback returns
/// [`ControlFlow::Continue`](std::ops::ControlFlow::Continue), or [`ControlFlow::Break`](std::ops::ControlFlow::Break) to
/// stop the call there. It runs on the thread of the call, which holds no lock of the store meanwhile, so the callback may
/// take its time and may use the store. [`Store::close`](crate::Store::close) in it is
/// [`Error::InCallback`](crate::Error::InCallback).
///
/// ```
/// use std::ops::ControlFlow;
/// use oncekey::Store;
///
/// let store = Store::in_memory()?;
/// let mut bars = Vec::new();
/// store.compact_with(|progress| {
///     bars.push(format!("{:3.0} %", 100.0 * progress.fraction()));
///     ControlFlow::Continue(())
/// })?;
/// assert_eq!(bars.last().map(String::as_str), Some("100 %"));
/// # Ok::<(), oncekey::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Progress {
    /// The number of bytes of the file that the call has worked through.
    pub done_bytes: u64,
    /// The number of bytes that the call works through in total: an estimate, which can change while the call runs, because
    /// other threads write meanwhile. Never less than `done_bytes`, and equal to it at the end.
    pub total_bytes: u64,
}

impl Progress {
    /// Makes a progress with an estimate of what is left.
    pub(crate) fn new(done_bytes: u64, left_bytes: u64) -> Progress {
        Progress { done_bytes, total_bytes: done_bytes.saturating_add(left_bytes) }
    }

    /// The part that is done: from 0 to 1, and 1 at the end.
    #[must_use]
    pub fn fraction(&self) -> f64 {
        if self.total_bytes == 0 { 1.0 } else { self.done_bytes as f64 / self.total_bytes as f64 }
    }

    /// Whether nothing is left to do.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.done_bytes == self.total_bytes
    }
}
