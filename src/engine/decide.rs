//! Decides what a call does to a key: pure functions from a [`View`] to a [`Decision`].
//!
//! They are called with the key's flight (the per-key lock) held, so that a decision is never based on a state that
//! another thread is about to replace. They do no I/O, never wait and emit no events; `change` carries out their
//! decisions. The state machine, [`transition`], defines which changes of status are allowed.

use super::records::Found;
use super::terms::{Expected, Finish, Next, Request, Terms};
use super::view::View;
use crate::flights::Claim;
use crate::format::record::{Kind, Value};
use crate::key::Fingerprint;
use crate::log::commit::Until;
use crate::log::reservations::ReservationClass;
use crate::planted::{Bug, planted};
use crate::record::Liveness;
use crate::status::{Event, Refused, Status, Version, transition};

/// What a call does next.
#[derive(Debug)]
pub(super) enum Decision<'a> {
    /// The call writes this record.
    Write(Draft<'a>),
    /// The store may have forgotten an operation of this key. The call writes this record of an attempt that is in doubt, and
    /// decides anew.
    NoteDoubt(Draft<'a>),
    /// The key already has the state that the call would set, so nothing is written.
    Nothing,
    /// The operation is completed already. The call leaves it as it is.
    Completed,
    /// Another caller is running an attempt, or resolving the doubt about one. The call waits, or returns.
    InProgress,
    /// The operation is in doubt, and the call does not resolve doubts.
    InDoubt,
    /// The operation is in doubt, and the call is given the doubt. Takes no space: a full store must still let a caller
    /// find out what happened.
    GiveDoubt,
    /// The key is in use for a different request.
    Mismatch,
    /// The call's attempt has ended, or another attempt took over the operation.
    Fenced,
    /// The state is not the one that the call expects.
    Differs,
    /// The key has the expected state, but that cannot change to the next one.
    Conflict,
    /// Steps of the operation keep it from being ended in this way.
    HasSteps,
    /// The key's last record cannot be read, and the call depends on its content.
    Unreadable,
}

/// What a change does to the claim on its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClaimChange {
    /// The claim, if there is one, stays as it is.
    Keep,
    /// The record begins an attempt, with a lease that has this deadline.
    Lease { deadline_ms: u64 },
    /// The claim ends, because the state that it belonged to is replaced.
    End,
}

/// A record that a call has decided to write. Its version and its times are set when it is written.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    pub(super) kind: Kind,
    pub(super) fingerprint: Fingerprint,
    pub(super) attempt: u32,
    pub(super) value: Value<'a>,
    /// The version of the operation's first record. None if this record is the first.
    pub(super) origin: Option<Version>,
    pub(super) claim: ClaimChange,
    /// How durable the record must be before the call returns.
    pub(super) until: Until,
    /// The class of the space reservation for the record.
    pub(super) class: ReservationClass,
}

impl<'a> Draft<'a> {
    /// Makes a draft that continues the operation in the view, or starts a new one.
    fn new(kind: Kind, view: &View, class: ReservationClass, terms: &Terms) -> Draft<'a> {
        // Only a begun record is continued. Otherwise the key is absent, and at most the count of its released attempts
        // is left.
        let last = view.found.as_ref().filter(|found| found.liveness == Liveness::Begun);
        Draft {
            kind,
            fingerprint: Fingerprint::NONE,
            attempt: view.attempt(),
            value: Value::NONE,
            origin: last.map(|found| found.origin),
            claim: ClaimChange::Keep,
            until: terms.durability.until(),
            class,
        }
    }
}

/// Drafts the record that begins the key's next attempt, with a lease.
fn next_attempt<'a>(view: &View, fingerprint: Fingerprint, terms: &Terms) -> Draft<'a> {
    let deadline_ms = terms.lease_ms.map_or(u64::MAX, |lease_ms| view.now_ms.saturating_add(lease_ms));
    // To go on with a job whose steps have begun is not to begin something new.
    let class = if view.steps.hold() { ReservationClass::Finish } else { ReservationClass::Begin };
    let draft = Draft::new(Kind::Begun, view, class, terms);
    Draft {
        fingerprint,
        attempt: view.attempt().saturating_add(1),
        value: Value::begun(terms.typing),
        claim: ClaimChange::Lease { deadline_ms },
        until: if terms.begin_unsynced { Until::Written } else { draft.until },
        ..draft
    }
}

/// Drafts the record of an attempt that the store may have forgotten, so that there is something to be in doubt about. Its
/// number is 0, because no attempt is known.
fn forgotten_attempt<'a>(view: &View, fingerprint: Fingerprint, terms: &Terms) -> Draft<'a> {
    let draft = Draft::new(Kind::Begun, view, ReservationClass::Begin, terms);
    Draft { fingerprint, attempt: 0, value: Value::begun(terms.typing), ..draft }
}

/// The kind of a record that makes a key absent. While the store may have forgotten operations, only a release says that there
/// is nothing to find out about the key.
fn forgetting(view: &View) -> Kind {
    if view.in_window { Kind::Released } else { Kind::Forgotten }
}

/// Whether the key is present and in use for a different request.
fn is_mismatch(view: &View, request: Request) -> bool {
    view.status != Status::Absent && view.found.as_ref().is_some_and(|found| !request.is(found.fingerprint))
}

/// Whether the call may only go on with an operation, and the key's last record is not of that one. An operation that was
/// forgotten must not run again because a caller still has what it was about.
pub(super) fn is_for_another(request: Request, found: Option<&Found>) -> bool {
    let is_there = |found: &&Found| !matches!(found.liveness, Liveness::Gone | Liveness::Released);
    let only = request.only.filter(|_| !planted(Bug::ForgottenJobResumed));
    only.is_some_and(|origin| found.filter(is_there).is_none_or(|found| found.origin != origin))
}

/// Whether the attempt of `version` is the key's last one and has not ended.
fn is_unfinished_attempt(found: Option<&Found>, version: Version) -> bool {
    found.is_some_and(|found| found.liveness == Liveness::Begun && found.version == version)
}

/// Decides a begin: an attempt begins or, if the operation is in doubt and `takes_doubt`, the caller is given the
/// doubt.
pub(super) fn begin<'a>(view: &View, request: Request, terms: &Terms, takes_doubt: bool) -> Decision<'a> {
    if is_for_another(request, view.found.as_ref()) {
        return Decision::Fenced;
    }
    if is_mismatch(view, request) {
        return Decision::Mismatch;
    }
    if view.is_forgotten {
        return Decision::NoteDoubt(forgotten_attempt(view, request.fingerprint, terms));
    }
    match transition(view.status, Event::Begin) {
        Err(Refused::Completed) => return Decision::Completed,
        Err(_) => return Decision::InProgress,
        Ok(_) => {}
    }
    // While one caller is finding out what happened, all others see an attempt in progress.
    if matches!(view.status, Status::InDoubt | Status::Stopped)
        && matches!(view.claim, Some(Claim::Doubt { .. }))
    {
        return Decision::InProgress;
    }
    if view.status == Status::Stopped
        && let Some(found) = &view.found
    {
        return Decision::Write(next_attempt(view, found.fingerprint, terms));
    }
    if view.status == Status::InDoubt {
        if !takes_doubt {
            return Decision::InDoubt;
        }
        if !planted(Bug::DoubtNeedsReservation) {
            return Decision::GiveDoubt;
        }
    }
    Decision::Write(next_attempt(view, request.fingerprint, terms))
}

/// Decides the begin of another attempt, which resolves the doubt about the attempt of `version`: its side effect did
/// not happen, or may happen again. Needs as much space as a begin; without it the operation stays in doubt.
pub(super) fn begin_again<'a>(view: &View, version: Version, terms: &Terms) -> Decision<'a> {
    match view.found.as_ref().filter(|found| is_unfinished_attempt(Some(found), version)) {
        Some(found) => Decision::Write(next_attempt(view, found.fingerprint, terms)),
        None => Decision::Fenced,
    }
}

/// Whether a step keeps the operation from being released, because it happened or may have happened.
fn is_held_by_step(view: &View) -> bool {
    view.steps.hold() && !planted(Bug::ReleasedOverStep)
}

/// Whether a step keeps the operation from being completed, because it is in progress or in doubt.
fn is_held_by_open_step(view: &View) -> bool {
    view.steps.open > 0 && !planted(Bug::CompletedOverDoubtfulStep)
}

/// Decides the end of the attempt of `version`.
pub(super) fn finish<'a>(view: &View, version: Version, finish: Finish<'a>, terms: &Terms) -> Decision<'a> {
    let (event, kind, value) = match finish {
        Finish::Completed(value) | Finish::FoundApplied(value) => (Event::Complete, Kind::Completed, value),
        Finish::Released => (Event::Release, Kind::Released, Value::NONE),
    };
    let may_end =
        is_unfinished_attempt(view.found.as_ref(), version) && transition(view.status, event).is_ok();
    let Some(found) = view.found.as_ref().filter(|_| may_end) else { return Decision::Fenced };
    let is_held = match finish {
        Finish::Completed(_) => is_held_by_open_step(view),
        Finish::FoundApplied(_) => false,
        Finish::Released => is_held_by_step(view),
    };
    if is_held {
        return Decision::HasSteps;
    }
    let draft = Draft::new(kind, view, ReservationClass::Finish, terms);
    Decision::Write(Draft { fingerprint: found.fingerprint, value, claim: ClaimChange::End, ..draft })
}

/// Decides how to record the result of an attempt in doubt, given by its version and number, whose side effect turned
/// out to have happened. The result completes that attempt or, if the operation is no longer in doubt and the key is
/// absent, is recorded as if without an attempt.
pub(super) fn applied<'a>(
    view: &View,
    (version, attempt): (Version, u32),
    request: Request,
    value: Value<'a>,
    terms: &Terms,
) -> Decision<'a> {
    let is_still_in_doubt = is_unfinished_attempt(view.found.as_ref(), version);
    let event = if is_still_in_doubt { Event::Complete } else { Event::Record };
    match transition(view.status, event) {
        Ok(_) => {}
        Err(Refused::Completed) => return Decision::Completed,
        Err(_) if planted(Bug::AppliedOverwritesAnother) => {}
        Err(_) if view.found.as_ref().is_some_and(|found| !request.is(found.fingerprint)) => {
            return Decision::Mismatch;
        }
        Err(_) => return Decision::Fenced,
    }
    let stored = view.found.as_ref().filter(|_| is_still_in_doubt).map(|found| found.fingerprint);
    let draft = Draft::new(Kind::Completed, view, ReservationClass::Finish, terms);
    Decision::Write(Draft {
        fingerprint: stored.unwrap_or(request.fingerprint),
        attempt: view.attempt().max(attempt),
        value,
        claim: ClaimChange::End,
        ..draft
    })
}

/// Decides how to record an operation as completed without an attempt.
pub(super) fn record<'a>(view: &View, request: Request, value: Value<'a>, terms: &Terms) -> Decision<'a> {
    if is_mismatch(view, request) {
        return Decision::Mismatch;
    }
    match transition(view.status, Event::Record) {
        Ok(_) => {
            let draft = Draft::new(Kind::Completed, view, ReservationClass::Begin, terms);
            let attempt = view.attempt().saturating_add(1);
            // An attempt that never ran may have left its claim.
            let claim = if view.claim.is_some() { ClaimChange::End } else { ClaimChange::Keep };
            Decision::Write(Draft { fingerprint: request.fingerprint, attempt, value, claim, ..draft })
        }
        Err(Refused::Completed) => Decision::Completed,
        Err(Refused::InDoubt) => Decision::InDoubt,
        Err(_) => Decision::InProgress,
    }
}

/// Decides a forget: the store discards everything it has recorded for the key.
pub(super) fn forget<'a>(view: &View, terms: &Terms) -> Decision<'a> {
    match transition(view.status, Event::Forget) {
        Ok(_) => {
            let draft = Draft::new(forgetting(view), view, ReservationClass::Forget, terms);
            Decision::Write(Draft { claim: ClaimChange::End, ..draft })
        }
        Err(Refused::InProgress) => Decision::InProgress,
        Err(_) if hides_unstarted(view) => Decision::Write(Draft {
            claim: ClaimChange::End,
            ..Draft::new(Kind::Forgotten, view, ReservationClass::Forget, terms)
        }),
        Err(_) => Decision::Nothing,
    }
}

/// Whether the key is absent only because its attempt never runs, which is not written yet. A call that answers "absent" to
/// a caller who relies on it must write that first, or a crash would leave the operation in doubt.
fn hides_unstarted(view: &View) -> bool {
    matches!(view.claim, Some(Claim::Unstarted { .. }))
}

/// Decides a compare-and-set: the key's state becomes `next` if it matches `expected`.
pub(super) fn compare_and_set<'a>(
    view: &View,
    expected: Expected,
    next: Next<'a>,
    value: Value<'a>,
    terms: &Terms,
) -> Decision<'a> {
    let (status, found) = (view.status, view.found.as_ref());
    let matches = match expected {
        Expected::Absent => status == Status::Absent,
        Expected::Present { status: wanted, version } => {
            let last = found.map(|found| found.version);
            let lost = view.unreadable.as_ref().map(|lost| lost.version);
            status == wanted && last.or(lost) == Some(version)
        }
    };
    if view.unreadable.is_some() && !(matches && next == Next::Absent) {
        return Decision::Unreadable;
    }
    if !matches {
        return Decision::Differs;
    }
    let is_unfinished = matches!(status, Status::InProgress | Status::InDoubt | Status::Stopped);
    let unfinished = found.filter(|_| is_unfinished);
    if let (Some(fingerprint), Some(found)) = (next.fingerprint(), unfinished)
        && fingerprint != found.fingerprint
    {
        return Decision::Mismatch;
    }
    let Ok(change) = record_kind(status, &next) else { return Decision::Conflict };
    // The key is absent, as expected, and is to be absent: that needs no record.
    let Some(kind) = change.or(hides_unstarted(view).then_some(Kind::Forgotten)) else {
        return Decision::Nothing;
    };
    let is_held = match kind {
        Kind::Released => is_held_by_step(view),
        Kind::Completed => is_held_by_open_step(view),
        _ => false,
    };
    if is_held {
        return Decision::HasSteps;
    }
    let kind = if kind == Kind::Forgotten { forgetting(view) } else { kind };
    let class = match next {
        Next::Absent | Next::Completed { .. } if is_unfinished => ReservationClass::Finish,
        Next::Absent => ReservationClass::Forget,
        Next::Completed { .. } | Next::InDoubt { .. } => ReservationClass::Begin,
    };
    let kept = unfinished.map(|found| found.fingerprint);
    let draft = Draft::new(kind, view, class, terms);
    Decision::Write(Draft {
        fingerprint: next.fingerprint().or(kept).unwrap_or(Fingerprint::NONE),
        attempt: view.attempt().saturating_add(u32::from(status == Status::Absent)),
        value,
        // The holder of a lease is fenced from now on, because the version differs. Waiters read the state again.
        claim: ClaimChange::End,
        until: if kind == Kind::Begun && terms.begin_unsynced { Until::Written } else { draft.until },
        ..draft
    })
}

/// The kind of the record that takes a key from `status` to `next`. None if no record is needed.
fn record_kind(status: Status, next: &Next<'_>) -> Result<Option<Kind>, Refused> {
    match (next, status) {
        (Next::Absent, Status::Absent) => Ok(None),
        (Next::Absent, Status::Completed) => transition(status, Event::Forget).map(|_| Some(Kind::Forgotten)),
        (Next::Absent, _) => transition(status, Event::Release).map(|_| Some(Kind::Released)),
        (Next::InDoubt { .. }, Status::Absent) => {
            let begun = transition(status, Event::Begin)?;
            transition(begun, Event::Doubt).map(|_| Some(Kind::Begun))
        }
        (Next::InDoubt { .. }, _) => transition(status, Event::Doubt).map(|_| Some(Kind::Begun)),
        (Next::Completed { .. }, Status::Absent) => {
            transition(status, Event::Record).map(|_| Some(Kind::Completed))
        }
        (Next::Completed { .. }, _) => transition(status, Event::Complete).map(|_| Some(Kind::Completed)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::records::Found;
    use crate::format::record::Kind;
    use crate::index::Address;
    use crate::log::reader::RecordLocation;
    use crate::record::{RecordSize, Retention};
    use crate::step_set::StepCounts;
    use crate::sync::Patience;

    const OURS: Fingerprint = Fingerprint::from_bytes([1; 16]);
    const OTHER: Fingerprint = Fingerprint::from_bytes([2; 16]);
    const VERSION: Version = Version::from_u64(7);

    fn terms() -> Terms {
        Terms {
            durability: crate::Durability::Sync,
            begin_unsynced: false,
            retention: Retention { key_ms: 10, result_ms: 10 },
            lease_ms: Some(100),
            typing: None,
            patience: Patience::None,
            max_result_bytes: 1 << 10,
            emits_bytes: 0,
        }
    }

    /// The view of a key whose last record is of attempt 3 and has the given liveness.
    fn view(liveness: Liveness, status: Status) -> View {
        let kind = Kind::Begun;
        let size = RecordSize { kind, length_bytes: 8, key_expires_ms: 0, result_expires_ms: 0 };
        let found = Found {
            address: Address::new(8).unwrap(),
            place: RecordLocation { position: 8, length_bytes: 8 },
            size,
            liveness,
            version: VERSION,
            origin: Version::from_u64(5),
            fingerprint: OURS,
            attempt: 3,
            time_ms: 0,
            key_expires_ms: 0,
            result_expires_ms: 0,
            not_kept: false,
            typing: None,
            result: None,
        };
        let found = (liveness != Liveness::Gone).then_some(found);
        let steps = StepCounts::default();
        let (is_forgotten, in_window) = (false, false);
        View {
            found,
            entry: None,
            unreadable: None,
            claim: None,
            status,
            steps,
            is_forgotten,
            in_window,
            now_ms: 1_000,
        }
    }

    /// Prints a decision in short form: for a record, its kind, its attempt and the class of its reservation.
    fn short(decision: Decision<'_>) -> String {
        match decision {
            Decision::Write(draft) => format!("{:?} {} {:?}", draft.kind, draft.attempt, draft.class),
            other => format!("{other:?}"),
        }
    }

    /// Each row is a call, with the decision for each state of a key in the order of `states`.
    #[test]
    fn every_call_decides_as_in_the_table() {
        let value = Value::bytes(b"r");
        let (request, terms) = (Request::from(OURS), terms());
        let states = [
            ("absent", view(Liveness::Gone, Status::Absent)),
            ("released", view(Liveness::Released, Status::Absent)),
            ("in progress", view(Liveness::Begun, Status::InProgress)),
            ("in doubt", view(Liveness::Begun, Status::InDoubt)),
            ("completed", view(Liveness::Completed, Status::Completed)),
        ];
        type Call<'a> = (&'static str, Box<dyn Fn(&View) -> Decision<'a> + 'a>, [&'static str; 5]);
        let present = |status, next| {
            move |view: &View| {
                compare_and_set(view, Expected::Present { status, version: VERSION }, next, value, &terms)
            }
        };
        let completed = Next::Completed { fingerprint: OURS, result: b"r" };
        let calls: [Call<'_>; 11] = [
            (
                "begin",
                Box::new(|view| begin(view, request, &terms, true)),
                ["Begun 1 Begin", "Begun 4 Begin", "InProgress", "GiveDoubt", "Completed"],
            ),
            (
                "begin, leaving doubts alone",
                Box::new(|view| begin(view, request, &terms, false)),
                ["Begun 1 Begin", "Begun 4 Begin", "InProgress", "InDoubt", "Completed"],
            ),
            (
                "begin again",
                Box::new(|view| begin_again(view, VERSION, &terms)),
                ["Fenced", "Fenced", "Begun 4 Begin", "Begun 4 Begin", "Fenced"],
            ),
            (
                "complete",
                Box::new(|view| finish(view, VERSION, Finish::Completed(value), &terms)),
                ["Fenced", "Fenced", "Completed 3 Finish", "Completed 3 Finish", "Fenced"],
            ),
            (
                "release",
                Box::new(|view| finish(view, VERSION, Finish::Released, &terms)),
                ["Fenced", "Fenced", "Released 3 Finish", "Released 3 Finish", "Fenced"],
            ),
            (
                "applied",
                Box::new(|view| applied(view, (VERSION, 3), request, value, &terms)),
                [
                    "Completed 3 Finish",
                    "Completed 3 Finish",
                    "Completed 3 Finish",
                    "Completed 3 Finish",
                    "Completed",
                ],
            ),
            (
                "applied, of an earlier attempt",
                Box::new(|view| applied(view, (Version::from_u64(6), 2), request, value, &terms)),
                ["Completed 2 Finish", "Completed 3 Finish", "Fenced", "Fenced", "Completed"],
            ),
            (
                "record",
                Box::new(|view| record(view, request, value, &terms)),
                ["Completed 1 Begin", "Completed 4 Begin", "InProgress", "InDoubt", "Completed"],
            ),
            (
                "forget",
                Box::new(|view| forget(view, &terms)),
                ["Nothing", "Nothing", "InProgress", "Forgotten 3 Forget", "Forgotten 3 Forget"],
            ),
            (
                "set in doubt to completed",
                Box::new(present(Status::InDoubt, completed)),
                ["Differs", "Differs", "Differs", "Completed 3 Finish", "Differs"],
            ),
            (
                "set absent to absent",
                Box::new(|view| compare_and_set(view, Expected::Absent, Next::Absent, value, &terms)),
                ["Nothing", "Nothing", "Differs", "Differs", "Differs"],
            ),
        ];
        for (call, decide, expected) in calls {
            for ((state, view), expected) in states.iter().zip(expected) {
                assert_eq!(short(decide(view)), expected, "{call}: {state}");
            }
        }
    }

    #[test]
    fn a_different_request_mismatches_only_while_the_key_is_present() {
        let (request, terms) = (Request::from(OTHER), terms());
        for (liveness, status, is_mismatch) in [
            (Liveness::Released, Status::Absent, false),
            (Liveness::Begun, Status::InProgress, true),
            (Liveness::Begun, Status::InDoubt, true),
            (Liveness::Completed, Status::Completed, true),
        ] {
            let view = view(liveness, status);
            let decisions =
                [begin(&view, request, &terms, true), record(&view, request, Value::NONE, &terms)];
            for decision in decisions {
                assert_eq!(matches!(decision, Decision::Mismatch), is_mismatch, "{status:?}: {decision:?}");
            }
        }
        let accepted = Request { or: Some(OURS), ..request };
        let view = view(Liveness::Completed, Status::Completed);
        assert!(matches!(begin(&view, accepted, &terms, true), Decision::Completed));
    }

    #[test]
    fn a_doubt_being_resolved_counts_as_in_progress() {
        let claim = Some(Claim::Doubt { version: VERSION, attempt: 3, number: 1 });
        let view = View { claim, ..view(Liveness::Begun, Status::InDoubt) };
        assert!(matches!(begin(&view, Request::from(OURS), &terms(), true), Decision::InProgress));
    }

    #[test]
    fn a_next_attempt_keeps_the_origin_and_gets_a_lease() {
        let of = |view: &View| match begin_again(view, VERSION, &terms()) {
            Decision::Write(draft) => (draft.origin, draft.claim, draft.fingerprint),
            other => panic!("{other:?}"),
        };
        let (origin, claim, fingerprint) = of(&view(Liveness::Begun, Status::InDoubt));
        assert_eq!(origin, Some(Version::from_u64(5)));
        assert_eq!(claim, ClaimChange::Lease { deadline_ms: 1_100 });
        assert_eq!(fingerprint, OURS);
        let Decision::Write(first) = begin(
            &view(Liveness::Released, Status::Absent),
            Request::from(OTHER),
            &Terms { begin_unsynced: true, lease_ms: None, ..terms() },
            true,
        ) else {
            panic!("a begin on a released key did not write a record")
        };
        assert_eq!((first.origin, first.until), (None, Until::Written));
        assert_eq!(first.claim, ClaimChange::Lease { deadline_ms: u64::MAX });
    }

    /// The draft of a decision to write, in short form: its request, its result, what becomes of the claim, and how durable it
    /// must be.
    fn draft(decision: Decision<'_>) -> (Fingerprint, Option<Vec<u8>>, ClaimChange, Until) {
        match decision {
            Decision::Write(draft) => {
                (draft.fingerprint, draft.value.result.map(<[u8]>::to_vec), draft.claim, draft.until)
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_result_that_turned_out_to_be_applied_keeps_the_request_of_the_doubt() {
        let (terms, value) = (terms(), Value::bytes(b"r"));
        let applied =
            |view: &View, request| applied(view, (VERSION, 3), Request::from(request), value, &terms);
        let result = Some(b"r".to_vec());
        let in_doubt = view(Liveness::Begun, Status::InDoubt);
        let expected = (OURS, result.clone(), ClaimChange::End, Until::Synced);
        assert_eq!(draft(applied(&in_doubt, OTHER)), expected, "the stored request");
        let absent = view(Liveness::Gone, Status::Absent);
        let expected = (OTHER, result, ClaimChange::End, Until::Synced);
        assert_eq!(draft(applied(&absent, OTHER)), expected, "the request of the call");
        // Another caller has begun the key for another request meanwhile.
        let taken = View { found: in_doubt.found.clone(), ..view(Liveness::Begun, Status::InProgress) };
        let earlier = (Version::from_u64(6), 2);
        let decide = |request| super::applied(&taken, earlier, Request::from(request), value, &terms);
        assert!(matches!(decide(OTHER), Decision::Mismatch));
        assert!(matches!(decide(OURS), Decision::Fenced));
    }

    #[test]
    fn a_record_and_a_forget_end_the_claim_of_an_attempt_that_never_ran() {
        let terms = terms();
        let unstarted = Some(Claim::Unstarted { version: VERSION });
        let absent = || view(Liveness::Released, Status::Absent);
        let record = |view: &View| draft(record(view, Request::from(OURS), Value::bytes(b"r"), &terms));
        let expected = |claim| (OURS, Some(b"r".to_vec()), claim, Until::Synced);
        assert_eq!(record(&absent()), expected(ClaimChange::Keep));
        assert_eq!(record(&View { claim: unstarted, ..absent() }), expected(ClaimChange::End));
        // The release of that attempt is not written yet, so "absent" has to be.
        let forgotten = forget(&View { claim: unstarted, ..absent() }, &terms);
        assert_eq!(draft(forgotten).2, ClaimChange::End);
        assert_eq!(draft(forget(&view(Liveness::Begun, Status::InDoubt), &terms)).2, ClaimChange::End);
        let unset = View { claim: unstarted, ..absent() };
        let unset = compare_and_set(&unset, Expected::Absent, Next::Absent, Value::NONE, &terms);
        assert!(matches!(unset, Decision::Write(Draft { kind: Kind::Forgotten, .. })), "{unset:?}");
    }

    #[test]
    fn a_compare_and_set_writes_what_it_is_given_and_keeps_the_request_of_what_it_ends() {
        let (unsynced, value) = (Terms { begin_unsynced: true, ..terms() }, Value::bytes(b"r"));
        let set = |view: &View, expected, next| {
            let Decision::Write(draft) = compare_and_set(view, expected, next, value, &unsynced) else {
                panic!("{next:?} is not written")
            };
            assert_eq!((draft.claim, draft.value.result), (ClaimChange::End, Some(&b"r"[..])));
            (draft.kind, draft.fingerprint, draft.attempt, draft.until)
        };
        let in_doubt = view(Liveness::Begun, Status::InDoubt);
        let present = Expected::Present { status: Status::InDoubt, version: VERSION };
        let completed = Next::Completed { fingerprint: OURS, result: b"r" };
        assert_eq!(set(&in_doubt, present, completed), (Kind::Completed, OURS, 3, Until::Synced));
        assert_eq!(set(&in_doubt, present, Next::Absent), (Kind::Released, OURS, 3, Until::Synced));
        let other = Next::Completed { fingerprint: OTHER, result: b"r" };
        let decision = compare_and_set(&in_doubt, present, other, value, &unsynced);
        assert!(matches!(decision, Decision::Mismatch), "{decision:?}");
        let absent = view(Liveness::Released, Status::Absent);
        assert_eq!(set(&absent, Expected::Absent, other), (Kind::Completed, OTHER, 4, Until::Synced));
        // Only what begins an operation may be left unsynced.
        let begun = Next::InDoubt { fingerprint: OTHER };
        assert_eq!(set(&absent, Expected::Absent, begun), (Kind::Begun, OTHER, 4, Until::Written));
        let set = compare_and_set(&absent, Expected::Absent, begun, value, &terms());
        assert_eq!(draft(set).3, Until::Synced);
    }
}
