//! The rules of one call that changes a key. Data only.

use super::records::{Found, HashedKey, Want};
use super::terms::{NewMessage, Request, Terms};
use crate::format::record::Value;
use crate::sync::Patience;

/// How a call behaves if the store's path leads to a different file from the open one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PathRule {
    /// The call begins an operation. It is refused before its record is written, and also afterwards if the write triggered a
    /// path check that failed.
    BeginsOperation,
    /// The call removes or replaces what is known. It is refused before its record is written, and not afterwards.
    RemovesState,
    /// The call ends an operation that has begun. It is never refused here: the handle that made the call checks the path once
    /// the record is written, and returns the error then.
    EndsAttempt,
}

/// The rules of one call that changes a key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) key: HashedKey<'a>,
    /// The request, of a call that may answer with a completed operation.
    pub(super) request: Option<Request>,
    pub(super) terms: &'a Terms,
    pub(super) want: Want,
    /// The key's last record as the caller has just read it. It is not read again if it is still the last one.
    pub(super) seen: Option<&'a Found>,
    pub(super) path_rule: PathRule,
    /// How long the call waits while another thread is changing the key.
    pub(super) flight_patience: Patience,
    /// How long the call waits for another caller's claim to end.
    pub(super) claim_patience: Patience,
    /// Whether the call accepts a key whose last record cannot be read.
    pub(super) accepts_unreadable: bool,
    /// The input of the operation, which is stored with its first begin.
    pub(super) input: Option<Value<'a>>,
    /// Whether the call compares the key's state with an expected one. The state is then made durable before the decision: the
    /// caller acts on the comparison, so a loss of power must not undo the state.
    pub(super) compares: bool,
    /// The messages that are written with a completion.
    pub(super) messages: &'a [NewMessage],
}

impl<'a> Call<'a> {
    /// A call that waits without limit while another thread is changing the key, but does not wait for claims.
    pub(super) fn new(key: HashedKey<'a>, terms: &'a Terms, path_rule: PathRule) -> Call<'a> {
        Call {
            key,
            request: None,
            terms,
            want: Want::State,
            seen: None,
            path_rule,
            flight_patience: Patience::Endless,
            claim_patience: Patience::None,
            accepts_unreadable: false,
            input: None,
            compares: false,
            messages: &[],
        }
    }

    /// A call that begins or records an operation. It waits as long as its terms say.
    pub(super) fn beginning(key: HashedKey<'a>, request: Request, terms: &'a Terms) -> Call<'a> {
        Call {
            request: Some(request),
            want: Want::Result,
            flight_patience: terms.patience,
            claim_patience: terms.patience,
            ..Call::new(key, terms, PathRule::BeginsOperation)
        }
    }
}
