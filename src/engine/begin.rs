//! Begins attempts.

use std::sync::Arc;

use super::assembly::Engine;
use super::call::{Call, PathRule};
use super::change::{Answer, ChangeOutcome, Grant, Written, check_result};
use super::decide;
use super::records::{Found, HashedKey, Want};
use super::terms::{Request, Terms};
use crate::error::{Error, Result};
use crate::format::record::{Value, encoded_bytes, max_encoded_bytes};
use crate::key::Key;
use crate::log::batch_limit_bytes;
use crate::log::commit::record_cost_bytes;
use crate::status::{Status, Version};
use crate::sync::Patience;

/// The outcome of a begin.
#[derive(Debug)]
pub(crate) enum Began {
    /// An attempt began, and this caller has its lease.
    Acquired(Grant),
    /// The operation is in doubt, and this caller is to resolve the doubt.
    InDoubt(Grant),
    /// Another caller is running this attempt, or resolving the doubt about it.
    InProgress { attempt: u32 },
    /// The operation is completed, with this result.
    Completed(Found),
}

impl Began {
    fn without_flight(answer: Answer) -> Began {
        match answer {
            Answer::Completed(found) => Began::Completed(found),
            Answer::InProgress { attempt } => Began::InProgress { attempt },
        }
    }
}

impl Written {
    /// Converts a written begin record into the grant for the caller that began the attempt.
    fn into_grant(self, hash: u128, terms: &Terms) -> Grant {
        let Written { version, attempt, lease, rest, .. } = self;
        let Some(claim) = lease else { unreachable!("a begin record begins a lease") };
        Grant { hash, version, attempt, claim, typing: terms.typing, reservation: rest }
    }
}

impl Engine {
    /// Begins an attempt, or returns the state that prevents it. A doubt is given to this caller if `takes_doubt`, and
    /// is an error otherwise.
    pub(crate) fn begin(
        self: &Arc<Self>,
        key: Key<'_>,
        request: Request,
        terms: &Terms,
        takes_doubt: bool,
    ) -> Result<Began> {
        self.begin_with(key, request, terms, takes_doubt, None)
    }

    /// Begins an attempt like [`Engine::begin`]. If it is the operation's first one, `input` is stored in the same frame.
    pub(crate) fn begin_with(
        self: &Arc<Self>,
        key: Key<'_>,
        request: Request,
        terms: &Terms,
        takes_doubt: bool,
        input: Option<Value<'_>>,
    ) -> Result<Began> {
        let _events = crate::events::hold_back();
        let hashed = self.admit(key)?;
        if let Some(input) = &input {
            self.check_input(key, input)?;
        }
        loop {
            let now_ms = self.clock.now_ms();
            self.path_check.look_if_due(now_ms)?;
            // Most calls of a program that retries are for completed operations. They are answered without entering the flight,
            // also after a wait: callers that waited for the same attempt do not queue up for the flight then. Calls that do not
            // wait for an attempt in progress are answered in the same way.
            let seen = self.viewer.look(hashed, now_ms, Want::Result)?;
            let is_answered = seen.status == Status::Completed
                || terms.patience == Patience::None && seen.attempt_at_work().is_some();
            if let Some(origin) = request.only
                && decide::is_for_another(request, seen.found.as_ref())
            {
                return Err(self.fenced(key, origin));
            }
            if is_answered {
                return self.answer_without_flight(key, request, terms, seen).map(Began::without_flight);
            }
            let seen = seen.found.as_ref();
            let call = Call { seen, input, ..Call::beginning(hashed, request, terms) };
            let decide = |view: &_| Ok(decide::begin(view, request, terms, takes_doubt));
            return match self.change(&call, None, decide)? {
                ChangeOutcome::Waited => continue,
                ChangeOutcome::Written(written) => {
                    Ok(Began::Acquired(written.into_grant(hashed.hash, terms)))
                }
                ChangeOutcome::Doubt(grant) => Ok(Began::InDoubt(grant)),
                ChangeOutcome::InProgress { attempt } => Ok(Began::InProgress { attempt }),
                ChangeOutcome::Completed(found) => Ok(Began::Completed(found)),
                ChangeOutcome::Fenced => Err(self.fenced(key, request.only.unwrap_or(Version::from_u64(0)))),
                _ => self.look_and_answer(hashed, request, terms).map(Began::without_flight),
            };
        }
    }

    /// Refuses an input that is too large, alone or together with the begin record in whose frame it is stored.
    fn check_input(&self, key: Key<'_>, input: &Value<'_>) -> Result<()> {
        // The limit of the store: that of the operation is for its result, for which its begin reserves space.
        check_result(key, input, &self.settings.terms)?;
        let used_bytes = record_cost_bytes(max_encoded_bytes(key, 0));
        let limit_bytes = batch_limit_bytes(self.log().segment_bytes()).saturating_sub(used_bytes);
        if record_cost_bytes(encoded_bytes(Key::new(b""), input)) <= limit_bytes {
            return Ok(());
        }
        let limit_bytes = usize::try_from(limit_bytes).unwrap_or(usize::MAX);
        Err(Error::TooLarge { key: key.to_owned(), length_bytes: input.result_bytes(), limit_bytes })
    }

    /// Begins another attempt to resolve the doubt about the attempt of `version`, because its side effect did not
    /// happen, or may happen again. Needs as much space as a begin; without it the operation stays in doubt.
    pub(crate) fn begin_again(&self, key: HashedKey<'_>, version: Version, terms: &Terms) -> Result<Grant> {
        let _events = crate::events::hold_back();
        let call = Call::new(self.admit_again(key)?, terms, PathRule::BeginsOperation);
        match self.change(&call, None, |view| Ok(decide::begin_again(view, version, terms)))? {
            ChangeOutcome::Written(written) => Ok(written.into_grant(key.hash, terms)),
            _ => Err(self.fenced(key.key, version)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Finish;
    use crate::flights::Claim;
    use crate::format::record::{Kind, Record, Value};
    use crate::key::Fingerprint;
    use crate::log::commit::Until;
    use crate::log::reservations::ReservationClass;
    use crate::{ManualClock, Options};
    use std::time::Duration;

    #[test]
    fn space_stays_reserved_until_its_record_is_written() {
        let engine = Arc::new(Options::new().open_nowhere().unwrap());
        let key = Key::new("k");
        let record = Record {
            kind: Kind::Forgotten,
            key,
            version: Version::from_u64(1),
            origin: Version::from_u64(1),
            fingerprint: Fingerprint::NONE,
            attempt: 1,
            time_ms: 1,
            key_expires_ms: 2,
            result_expires_ms: 2,
            value: Value::NONE,
        };
        let reservation = engine.log().reserve(1_000, ReservationClass::Begin).unwrap().unwrap();
        let new = engine.log().encode(&record, 1);
        let ticket = engine.log().append(std::iter::once(&new), reservation, Until::Synced).unwrap();
        assert_eq!(
            engine.log().reserved_bytes(),
            1_000,
            "the space must stay reserved while the record is in the gathering batch"
        );
        engine.log().wait(&ticket).unwrap();
        assert_eq!(engine.log().reserved_bytes(), 0);
    }

    #[test]
    fn a_lease_runs_from_when_it_is_given() {
        let clock = ManualClock::new(1_700_000_000_000);
        let engine = Arc::new(Options::new().manual_clock(clock.clone()).open_nowhere().unwrap());
        let key = Key::new("k");
        let hash = engine.log().hasher().key(key);
        let terms = Terms { lease_ms: Some(100), ..engine.settings().terms };
        let other = engine.flights.enter(hash);
        let began = std::thread::scope(|scope| {
            let beginning =
                scope.spawn(|| engine.begin(key, Fingerprint::NONE.into(), &terms, true).unwrap());
            while engine.flights.waiting(hash) == 0 {
                std::thread::yield_now();
            }
            clock.advance(Duration::from_millis(150));
            drop(other);
            beginning.join().unwrap()
        });
        let Began::Acquired(grant) = began else { panic!("{began:?}") };
        let Claim::Lease { deadline_ms, .. } = grant.claim else { panic!("{:?}", grant.claim) };
        assert_eq!(deadline_ms, 1_700_000_000_250);
        let second = engine.begin(key, Fingerprint::NONE.into(), &terms, true).unwrap();
        assert!(matches!(second, Began::InProgress { .. }), "{second:?}");
    }

    #[test]
    fn an_attempt_hashes_its_key_once_and_not_its_result() {
        use crate::hash::tests::HASHES;
        use crate::{Begin, Store};

        let store = Store::in_memory().unwrap();
        let Begin::Acquired(mut lease) = store.begin("k", Fingerprint::NONE).unwrap() else { panic!() };
        lease.renew(Duration::from_secs(60)).unwrap();
        assert!(lease.is_current());
        lease.complete(&[7; 1_000]).unwrap();
        lease.complete(&[7; 1_000]).unwrap();
        drop(lease);
        assert_eq!(HASHES.get(), 1, "begin, renew, complete, complete, drop");

        drop(store.begin("doubtful", Fingerprint::NONE).unwrap());
        let Begin::InDoubt(doubt) = store.begin("doubtful", Fingerprint::NONE).unwrap() else { panic!() };
        HASHES.set(0);
        doubt.begin_again().unwrap().release().unwrap();
        assert_eq!(HASHES.get(), 0, "the doubt has the hash");
    }

    #[test]
    fn a_begin_reads_the_last_record_once() {
        use crate::log::reader::tests::RECORDS_READ;

        let engine = Arc::new(Options::new().open_nowhere().unwrap());
        let terms = engine.settings().terms;
        let key = Key::new("k");
        let reads_of_begin = |expected: Status| {
            RECORDS_READ.set(0);
            let began = engine.begin(key, Fingerprint::NONE.into(), &terms, true).unwrap();
            let reads = RECORDS_READ.get();
            assert_eq!(engine.get(key, Patience::None).unwrap().0, expected);
            (began, reads)
        };
        let (Began::Acquired(mut first), 0) = reads_of_begin(Status::InProgress) else { panic!() };
        engine
            .finish(first.of(key), first.version, (Finish::Released, &[]), &terms, &mut first.reservation)
            .unwrap();
        let (Began::Acquired(second), 1) = reads_of_begin(Status::InProgress) else { panic!() };
        assert_eq!(second.attempt, 2, "the attempts of the released record must be counted");
        let (Began::InProgress { attempt: 2 }, 1) = reads_of_begin(Status::InProgress) else { panic!() };
        engine.abandon(second.of(key), second.claim);
        let (Began::InDoubt(mut doubt), 1) = reads_of_begin(Status::InDoubt) else { panic!() };
        let finish = Finish::Completed(Value::bytes(b"r"));
        engine.finish(doubt.of(key), doubt.version, (finish, &[]), &terms, &mut doubt.reservation).unwrap();
        let (Began::Completed(found), 1) = reads_of_begin(Status::Completed) else { panic!() };
        assert_eq!(found.result.as_deref(), Some(&b"r"[..]));
    }

    fn began_in_doubt(engine: &Arc<Engine>, key: Key<'_>) -> Grant {
        let terms = engine.settings().terms;
        let first = engine.begin(key, Fingerprint::NONE.into(), &terms, true).unwrap();
        let Began::Acquired(grant) = first else { panic!("{first:?}") };
        engine.abandon(grant.of(key), grant.claim);
        let second = engine.begin(key, Fingerprint::NONE.into(), &terms, true).unwrap();
        let Began::InDoubt(grant) = second else { panic!("{second:?}") };
        grant
    }

    #[test]
    fn a_begin_that_waits_for_a_doubt_gets_its_result() {
        let engine = Arc::new(Options::new().open_nowhere().unwrap());
        let key = Key::new("k");
        let hash = engine.log().hasher().key(key);
        let mut doubt = began_in_doubt(&engine, key);
        let terms = Terms { patience: Patience::Endless, ..engine.settings().terms };
        let began = std::thread::scope(|scope| {
            let beginning =
                scope.spawn(|| engine.begin(key, Fingerprint::NONE.into(), &terms, true).unwrap());
            while engine.flights.waiting(hash) == 0 && !beginning.is_finished() {
                std::thread::yield_now();
            }
            let finish = Finish::Completed(Value::bytes(b"r"));
            engine
                .finish(doubt.of(key), doubt.version, (finish, &[]), &terms, &mut doubt.reservation)
                .unwrap();
            beginning.join().unwrap()
        });
        let Began::Completed(found) = began else { panic!("{began:?}") };
        assert_eq!(found.attempt, 1);
    }

    /// The first lease is never dropped, so only its deadline ends it, and no thread wakes the second caller.
    #[test]
    fn a_waiting_begin_takes_over_at_the_deadline() {
        let engine = Arc::new(Options::new().open_nowhere().unwrap());
        let terms = Terms { lease_ms: Some(50), patience: Patience::Endless, ..engine.settings().terms };
        let first = engine.begin(Key::new("k"), Fingerprint::NONE.into(), &terms, true).unwrap();
        assert!(matches!(first, Began::Acquired(_)), "{first:?}");
        let second = engine.begin(Key::new("k"), Fingerprint::NONE.into(), &terms, true).unwrap();
        assert!(matches!(second, Began::InDoubt(Grant { attempt: 1, .. })), "{second:?}");
    }

    /// This thread holds the flight, so a call that waited for the flight would wait for ever.
    #[test]
    fn completed_and_running_operations_are_answered_without_the_flight() {
        let engine = Arc::new(Options::new().open_nowhere().unwrap());
        let terms = engine.settings().terms;
        let done = Key::new("done");
        engine.record(done, Fingerprint::NONE.into(), Value::bytes(b"r"), &[], &terms).unwrap().unwrap();
        let flight = engine.flights.enter(engine.log().hasher().key(done));
        let patient = Terms { patience: Patience::Endless, ..terms };
        let began = engine.begin(done, Fingerprint::NONE.into(), &patient, true).unwrap();
        assert!(matches!(began, Began::Completed(_)), "{began:?}");
        drop(flight);

        let running = Key::new("running");
        let began = engine.begin(running, Fingerprint::NONE.into(), &terms, true).unwrap();
        assert!(matches!(began, Began::Acquired(_)), "{began:?}");
        let flight = engine.flights.enter(engine.log().hasher().key(running));
        let impatient = Terms { patience: Patience::None, ..terms };
        let began = engine.begin(running, Fingerprint::NONE.into(), &impatient, true).unwrap();
        assert!(matches!(began, Began::InProgress { attempt: 1 }), "{began:?}");
        drop(flight);
    }
}
