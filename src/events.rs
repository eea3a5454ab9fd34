//! What the store tells `tracing`, if the feature is on. Keys are told, requests and results never.

#![cfg_attr(
    not(feature = "tracing"),
    allow(unused_variables, reason = "without the feature nothing is told")
)]

use std::io;
use std::path::Path;

use crate::clock::ClockJump;
use crate::error::Error;
#[cfg(feature = "tracing")]
use crate::error::Shown;
use crate::key::Key;

/// Where all events of this crate come from.
#[cfg(feature = "tracing")]
const TARGET: &str = "oncekey";

/// The key's own bytes, escaped where they are not printable; the scope is a field of its own.
#[cfg(feature = "tracing")]
fn name_of(key: Key<'_>) -> impl tracing::Value {
    tracing::field::display(key.name().escape_ascii())
}

#[cfg(feature = "tracing")]
fn scope_of(key: Key<'_>) -> Option<impl tracing::Value> {
    key.scope_name().map(|scope| tracing::field::display(scope.escape_ascii()))
}

pub(crate) fn replayed(key: Key<'_>) {
    #[cfg(feature = "tracing")]
    tracing::debug!(target: TARGET, key = name_of(key), scope = scope_of(key), "replayed: done before, its result is given again");
}

pub(crate) fn mismatched(key: Key<'_>) {
    #[cfg(feature = "tracing")]
    tracing::warn!(target: TARGET, key = name_of(key), scope = scope_of(key), "mismatch: the key was used before with another request");
}

pub(crate) fn in_doubt(key: Key<'_>, attempt: u32) {
    #[cfg(feature = "tracing")]
    tracing::warn!(target: TARGET, key = name_of(key), scope = scope_of(key), attempt, "in doubt: an attempt began and nobody knows whether it happened");
}

pub(crate) fn opened(path: &Path, keys: usize, was_closed: bool) {
    #[cfg(feature = "tracing")]
    tracing::info!(target: TARGET, path = %Shown(path), keys, was_closed, "opened");
}

pub(crate) fn copies_on_write(path: &Path) {
    #[cfg(feature = "tracing")]
    tracing::warn!(
        target: TARGET,
        path = %Shown(path),
        "copy on write: the file system may write changed bytes elsewhere, so completions may find the disk full"
    );
}

pub(crate) fn reclaimed(path: &Path, sequence: u64, record_bytes: u64, moved_bytes: u64) {
    #[cfg(feature = "tracing")]
    tracing::debug!(target: TARGET, path = %Shown(path), sequence, record_bytes, moved_bytes, "reclaimed a segment");
}

pub(crate) fn unreadable(path: &Path, offset: u64) {
    #[cfg(feature = "tracing")]
    tracing::error!(target: TARGET, path = %Shown(path), offset, "unreadable: the record here is not what was written");
}

pub(crate) fn reclaiming_stopped(path: &Path, error: &Error) {
    #[cfg(feature = "tracing")]
    tracing::error!(target: TARGET, path = %Shown(path), %error, "reclaiming stopped: the oldest segment cannot be given up");
}

pub(crate) fn poisoned(path: &Path, error: &io::Error) {
    #[cfg(feature = "tracing")]
    tracing::error!(target: TARGET, path = %Shown(path), %error, "poisoned: nothing is written any more");
}

pub(crate) fn replaced(path: &Path) {
    #[cfg(feature = "tracing")]
    tracing::error!(target: TARGET, path = %Shown(path), "replaced: the path leads to another file than the open one, or to none");
}

pub(crate) fn clock_jumped(path: &Path, wall_ms: u64, last_wall_ms: u64, jump: ClockJump) {
    #[cfg(feature = "tracing")]
    tracing::warn!(
        target: TARGET, path = %Shown(path), wall_ms, last_wall_ms, accepted = ?jump, "the wall clock jumped; accepted"
    );
}
