//! Performs the acts on steps of an operation, and compares their answers with the oracle.

use oncekey::simulation::steps::{self, BegunStep, StepLease};
use oncekey::{Begin, Error, Status};

use super::act::Act;
use super::oracle::{Known, KnownStep, Model, StepStatus};
use super::{World, name, result};

/// The number of steps of an operation. An act states a step by a number, modulo this.
pub const STEPS: u16 = 4;

/// Returns the name of the step that an act with this number is about.
pub fn step_name(number: u16) -> String {
    // The first one has the name of a key, for which it must never answer.
    if number.is_multiple_of(STEPS) { name(0) } else { format!("step-{}", number % STEPS) }
}

/// Returns the result of a step.
fn step_result(number: u16, nonce: usize) -> Vec<u8> {
    result(u8::try_from(number % STEPS).unwrap() + 100, number, nonce)
}

impl World {
    pub fn perform_step(&mut self, act: Act, key: u8, next: Model) -> Result<(), Error> {
        match act {
            Act::BeginJob(_, size) => self.begin_job(act, key, size, next),
            Act::Step(_, number) | Act::LeaveStep(_, number) | Act::ReleaseStep(_, number) => {
                self.run_step(act, key, number, next)
            }
            Act::LateStep(_, number) => self.end_late(act, key, number, next),
            Act::GiveUp(_, number) => self.give_up(act, key, number, next),
            _ => Ok(()),
        }
    }

    /// Begins an operation with an input. Any other state than absent is left to [`Act::Begin`].
    fn begin_job(&mut self, act: Act, key: u8, size: u16, mut next: Model) -> Result<(), Error> {
        if next.get(&key).is_some_and(|known| known.status != Status::Absent) {
            return self.perform(Act::Begin(key));
        }
        let nonce = self.oracle.history.len();
        let input = result(key, size, nonce);
        let attempts = next.get(&key).map_or(vec![0], |known| known.attempts.clone());
        let attempts = attempts.iter().map(|count| count + 1).chain([1]).collect();
        next.insert(key, Known { input: Some(input.clone()), ..Known::begun(attempts) });
        self.oracle.in_flight = Some(next.clone());
        match steps::begin_with_input(self.store(), &name(key), &input) {
            Ok(Begin::Acquired(lease)) => {
                let known = next.get_mut(&key).unwrap();
                assert!(known.attempts.contains(&lease.attempt()), "{act:?}: {lease:?}");
                (known.version, known.attempts) = (Some(lease.version()), vec![lease.attempt()]);
                self.oracle.highest = self.checked_new(lease.version());
                self.leases.insert(key, lease);
                self.visited.remove(&key);
                self.acknowledge_step(next);
                Ok(())
            }
            Ok(other) => panic!("{act:?}: {other:?}"),
            Err(error) => self.failed(act, error),
        }
    }

    fn acknowledge_step(&mut self, next: Model) {
        let durable = !self.buffered;
        self.acknowledge(next, durable);
    }

    fn run_step(&mut self, act: Act, key: u8, number: u16, mut next: Model) -> Result<(), Error> {
        let Some(lease) = self.leases.get(&key) else { return Ok(()) };
        let step = number % STEPS;
        let before = next[&key].steps.get(&step).cloned();
        let is_visited = self.visited.get(&key).is_some_and(|visited| visited.contains(&step));
        let nonce = self.oracle.history.len();
        let begun = KnownStep { status: StepStatus::InDoubt, given_up: false, begin: nonce };
        let is_new = before.as_ref().is_none_or(|before| before.status == StepStatus::Released);
        if is_new {
            next.get_mut(&key).unwrap().steps.insert(step, begun.clone());
            self.oracle.in_flight = Some(next.clone());
        }
        let mut held: StepLease = match (steps::begin_step(lease, &step_name(step)), before) {
            (Err(Error::StepReused { .. }), Some(_)) if is_visited && !is_new => return Ok(()),
            (Ok(BegunStep::Completed(done)), Some(before)) if !is_visited => {
                assert_eq!(
                    StepStatus::Completed(done),
                    before.status,
                    "{act:?}: replayed a different result"
                );
                self.visited.entry(key).or_default().insert(step);
                return Ok(());
            }
            (Ok(BegunStep::InDoubt(mut doubt)), Some(before)) if !is_visited => {
                assert_eq!(before.status, StepStatus::InDoubt, "{act:?}");
                self.visited.entry(key).or_default().insert(step);
                next.get_mut(&key).unwrap().steps.insert(step, begun.clone());
                self.oracle.in_flight = Some(next.clone());
                match doubt.begin_again() {
                    Ok(()) => doubt,
                    Err(error) => return self.failed(act, error),
                }
            }
            (Ok(BegunStep::Acquired(held)), before) => {
                assert!(is_new, "{act:?}: begun over {before:?}");
                self.visited.entry(key).or_default().insert(step);
                held
            }
            (Ok(other), before) => panic!("{act:?}: {other:?} but the oracle has {before:?}"),
            (Err(error), _) => return self.failed(act, error),
        };
        self.acknowledge_step(next.clone());
        let steps = &mut next.get_mut(&key).unwrap().steps;
        let bytes = step_result(number, nonce);
        match act {
            Act::Step(..) => {
                let done = KnownStep { status: StepStatus::Completed(bytes.clone()), ..begun };
                steps.insert(step, done);
            }
            Act::ReleaseStep(..) => {
                steps.insert(step, KnownStep { status: StepStatus::Released, ..begun });
            }
            _ => {
                self.late.insert((key, step), (held, begun.begin));
                return Ok(());
            }
        }
        self.oracle.in_flight = Some(next.clone());
        let ended = if let Act::Step(..) = act { held.complete(&bytes) } else { held.release() };
        match ended {
            Ok(()) => {
                self.acknowledge_step(next);
                Ok(())
            }
            Err(error) => self.failed(act, error),
        }
    }

    /// Completes a step whose handle an earlier act left, perhaps after its attempt was taken over.
    fn end_late(&mut self, act: Act, key: u8, number: u16, mut next: Model) -> Result<(), Error> {
        let step = number % STEPS;
        let Some((mut held, begin)) = self.late.remove(&(key, step)) else { return Ok(()) };
        let known = next.get_mut(&key).and_then(|known| known.steps.get_mut(&step));
        let is_last =
            known.as_ref().is_some_and(|step| step.begin == begin && step.status == StepStatus::InDoubt);
        let bytes = step_result(number, self.oracle.history.len());
        if let Some(known) = known.filter(|_| is_last) {
            known.status = StepStatus::Completed(bytes.clone());
            self.oracle.in_flight = Some(next.clone());
        }
        match held.complete(&bytes) {
            Ok(()) => {
                assert!(is_last, "{act:?}: a late result of an earlier attempt was kept");
                self.acknowledge_step(next);
                Ok(())
            }
            Err(Error::Fenced { .. }) if !is_last => Ok(()),
            Err(error) => self.failed(act, error),
        }
    }

    fn give_up(&mut self, act: Act, key: u8, number: u16, mut next: Model) -> Result<(), Error> {
        let step = number % STEPS;
        let Some(lease) = self.leases.get(&key) else { return Ok(()) };
        let known = next.get_mut(&key).and_then(|known| known.steps.get_mut(&step));
        let is_open = known.as_ref().is_some_and(|step| step.status == StepStatus::InDoubt);
        if let Some(known) = known.filter(|_| is_open) {
            known.given_up = true;
            self.oracle.in_flight = Some(next.clone());
        }
        match steps::give_up(lease, &step_name(step)) {
            Ok(given_up) => {
                assert_eq!(given_up, is_open, "{act:?}");
                if given_up {
                    // It is not synced.
                    self.acknowledge(next, false);
                }
                Ok(())
            }
            Err(error) => self.failed(act, error),
        }
    }
}
