//! The files that stores of this process have open, so that a process does not wait for itself to close one.

use std::time::Duration;

// Not from `crate::sync`: the lock is held for a few instructions only, and shuttle need not explore that.
use parking_lot::{Mutex, MutexGuard};

use super::FileIdentity;

/// The files that are locked, with the process that locked each. A forked child inherits the entries of its parent, which
/// are not its own.
static OPENED: Mutex<Vec<(u32, FileIdentity)>> = Mutex::new(Vec::new());

/// How long to wait for the lock. A forked child may have inherited it locked, by a thread that it does not have.
const MAX_WAIT: Duration = Duration::from_millis(100);

fn opened() -> Option<MutexGuard<'static, Vec<(u32, FileIdentity)>>> {
    OPENED.try_lock_for(MAX_WAIT)
}

/// Notes that this process has locked the file.
pub(super) fn add(file: FileIdentity) {
    if let Some(mut opened) = opened() {
        opened.push((std::process::id(), file));
    }
}

/// Notes that this process has unlocked the file.
pub(super) fn remove(file: FileIdentity) {
    if let Some(mut opened) = opened() {
        let own = (std::process::id(), file);
        if let Some(at) = opened.iter().position(|other| *other == own) {
            opened.swap_remove(at);
        }
    }
}

/// Whether this process has the file locked.
pub(super) fn is_open(file: FileIdentity) -> bool {
    opened().is_some_and(|opened| opened.contains(&(std::process::id(), file)))
}
