//! Operations that emit messages, and two publishers that pass them on to a journal, in one process. Killed at any moment and
//! run again, every message of every completed operation is in the journal, in the order of its topic, and none of an
//! operation that was not completed. A message may be there twice, with the same token.
//!
//! Without an argument it runs in a directory of its own. With a directory, it goes on with what is in it.

mod journal;

use std::error::Error as StdError;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use oncekey::{Error, Outbox, RunError, Store};

use journal::Journal;

type AnyError = Box<dyn StdError + Send + Sync>;

const TOPICS: [&str; 2] = ["charged", "mail"];

/// Charges every order once. Every tenth card is declined, so that its operation emits nothing.
fn charge_all(store: &Store, orders: usize) -> Result<(), AnyError> {
    for order in 0..orders {
        let charged = store
            .operation(format!("order-{order}"))
            .scope("charge")
            .emits(2_048)
            .rerun()
            .release_if(|error: &String| error == "declined")
            .on_complete(|receipt: &String, outbox| outbox.emit_bytes("mail", receipt.as_bytes()))
            .run(|attempt| {
                if order % 10 == 9 {
                    return Err("declined".to_owned());
                }
                // .. charge the card, with the attempt's token ..
                let emitted = attempt.emit_bytes("charged", format!("{} cents", 100 * order).as_bytes());
                emitted.map_err(|error| error.to_string())?;
                Ok(format!("receipt of order {order}"))
            });
        match charged {
            Ok(_) | Err(RunError::Released(_)) => {}
            Err(error) => return Err(error.into_boxed()),
        }
    }
    Ok(())
}

/// Publishes messages until there will be no more. Several threads may do this.
fn publish(outbox: &Outbox, journal: &Journal, is_over: &AtomicBool) -> Result<(), AnyError> {
    loop {
        // Read before the topics: a message that comes later is not missed.
        let was_over = is_over.load(Ordering::SeqCst);
        let mut found_any = false;
        for topic in TOPICS {
            while let Some(deliveries) = outbox.next_many(topic, 100)? {
                found_any = true;
                for message in deliveries.messages() {
                    journal.append(topic, message)?;
                }
                deliveries.ack()?;
            }
        }
        if was_over && !found_any {
            return Ok(());
        }
        if !found_any {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn run(directory: &Path, orders: usize) -> Result<(), AnyError> {
    let store = Store::open(directory.join("orders.once"))?;
    let journal = Journal::open(directory)?;
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let publishers: Vec<_> = (0..2)
            .map(|_| {
                let (outbox, journal, is_over) = (store.outbox(), &journal, &is_over);
                scope.spawn(move || publish(&outbox, journal, is_over))
            })
            .collect();
        let charged = charge_all(&store, orders);
        is_over.store(true, Ordering::SeqCst);
        let published = publishers.into_iter().map(|publisher| match publisher.join() {
            Ok(published) => published,
            Err(_) => Err("a publisher panicked".into()),
        });
        published.collect::<Result<Vec<()>, AnyError>>().and(charged)
    })?;
    assert_eq!(store.stats().messages, 0, "everything is published");
    store.close().map_err(Error::into)
}

fn main() -> Result<(), AnyError> {
    let mut arguments = std::env::args_os().skip(1);
    if let Some(directory) = arguments.next() {
        let orders = arguments.next().and_then(|orders| orders.to_str()?.parse().ok()).unwrap_or(1_000);
        return run(Path::new(&directory), orders);
    }
    let directory = tempfile::tempdir()?;
    run(directory.path(), 100)?;
    let journal = std::fs::read_to_string(directory.path().join("journal"))?;
    println!("{} messages of 90 orders; 10 cards were declined", journal.lines().count());
    println!("Everything is run again:");
    run(directory.path(), 100)?;
    let journal = std::fs::read_to_string(directory.path().join("journal"))?;
    println!("still {} messages", journal.lines().count());
    Ok(())
}
