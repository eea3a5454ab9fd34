//! The operations under test, as a program that uses oncekey would write them: a single charge, which is announced by a message
//! that is committed with its receipt, and a job of several charges.

use std::io;
use std::time::Duration;

use oncekey::{Attempt, Error, Outcome, RunError, Store};

use crate::wire::{Order, PARTS, Receipt};

/// The topic of the messages that announce charges.
pub(crate) const TOPIC: &str = "charged";

/// Charges an order once, and gives every retry the receipt of that one charge.
///
/// `find` looks up a charge, if this caller can. Without `find`, an attempt in doubt is an error, and a later caller has to
/// reconcile it.
pub(crate) fn charge_once(
    store: &Store,
    order: &Order,
    wait: Duration,
    find: Option<impl FnOnce(&Attempt) -> io::Result<Option<Receipt>>>,
    charge: impl FnOnce(&Attempt) -> io::Result<Receipt>,
) -> Result<Outcome<Receipt>, RunError<Receipt, io::Error>> {
    // Only a refused connection means that nothing was charged.
    let not_sent = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    let key = order.key();
    let operation = store
        .operation(&key)
        .request(order)
        .wait(wait)
        .release_if(not_sent)
        .emits(1 << 10)
        .on_complete(|receipt: &Receipt, outbox| outbox.emit(TOPIC, receipt));
    match find {
        Some(find) => operation.reconcile(find).run(charge),
        None => operation.run(charge),
    }
}

/// Charges an order in parts, each of which is a step, and gives every retry the receipt of the last one.
///
/// `find` looks up the charge of a part, if this caller can.
pub(crate) fn charge_in_parts(
    store: &Store,
    order: &Order,
    wait: Duration,
    find: Option<&impl Fn(&Attempt, u32) -> io::Result<Option<Receipt>>>,
    charge: impl Fn(&Attempt, u32) -> io::Result<Receipt>,
) -> Result<Outcome<Receipt>, RunError<Receipt, io::Error>> {
    let not_sent = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    let key = order.key();
    let job = store
        .operation(&key)
        .request(order)
        .wait(wait)
        .rerun()
        .emits(1 << 10)
        .on_complete(|receipt: &Receipt, outbox| outbox.emit(TOPIC, receipt));
    job.run(|job| {
        let mut receipt = None;
        for part in 1..=PARTS {
            let step = job.step(format!("part:{part}")).request(&part).release_if(not_sent);
            let charged = match find {
                Some(find) => {
                    step.reconcile(|attempt| find(attempt, part)).run(|attempt| charge(attempt, part))
                }
                None => step.run(|attempt| charge(attempt, part)),
            };
            receipt = Some(charged.map_err(error_of_step)?);
        }
        receipt.ok_or_else(|| io::Error::other("no parts"))
    })
}

/// The error of the job for that of a step. A step that stays in doubt is no mistake: a later call reconciles it.
fn error_of_step(error: RunError<Receipt, io::Error>) -> io::Error {
    match error {
        RunError::Store(Error::InDoubt { .. }) => io::ErrorKind::TimedOut.into(),
        RunError::Released(error) | RunError::InDoubt { error, .. } => error,
        error => io::Error::other(error.to_string()),
    }
}
