//! The operation under test, as a program that uses oncekey would write it. Each charge is announced by a message, which is
//! committed with its receipt.

use std::io;
use std::time::Duration;

use oncekey::{Attempt, Outcome, RunError, Store};

use crate::wire::{Order, Receipt};

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
