//! A consumer of a queue that delivers at least once. It polls 500 messages at a time, pays one sync before their side effects
//! and one after, and then commits its offset. Killed at any moment, it ships nothing twice and loses nothing.
//!
//! Without an argument it runs on a queue of its own. With a directory, it consumes the file `messages` in it.

mod queue;
mod warehouse;

use std::error::Error as StdError;
use std::path::Path;

use oncekey::{Answer, Error, Lease, Store};

use queue::{Message, Queue};
use warehouse::Warehouse;

/// Handles messages until the queue is empty.
fn consume(store: &Store, queue: &mut Queue, warehouse: &mut Warehouse) -> Result<(), Box<dyn StdError>> {
    loop {
        let (messages, offset) = queue.poll(500)?;
        if messages.is_empty() {
            return Ok(());
        }
        let before = store.stats().syncs;
        let mut leases = begin(store, &messages, warehouse)?; // one sync
        for lease in &leases {
            warehouse.ship(&lease.key().token())?; // the side effect
        }
        let mut ends = store.batch();
        for lease in &mut leases {
            ends.complete(lease, b"")?;
        }
        for answer in ends.commit()? {
            answer?; // one sync
        }
        println!(
            "{} messages: {} shipped, {} syncs",
            messages.len(),
            leases.len(),
            store.stats().syncs - before
        );
        queue.commit(offset)?;
    }
}

/// Begins the messages that are still to be shipped. Those in doubt were begun by a process that died: the warehouse knows
/// which of them it shipped.
fn begin(store: &Store, messages: &[Message], warehouse: &Warehouse) -> Result<Vec<Lease>, Error> {
    let mut begins = store.batch();
    for message in messages {
        begins.begin(store.operation(&message.id).scope("orders").request(&message.body).max_result(0))?;
    }
    let (mut leases, mut doubts) = (Vec::new(), Vec::new());
    for (message, answer) in messages.iter().zip(begins.commit()?) {
        match answer {
            Ok(Answer::Acquired(lease)) => leases.push(lease),
            Ok(Answer::InDoubt(doubt)) => doubts.push(doubt),
            Ok(_) => {} // delivered before, or twice in this poll
            Err(error @ Error::Mismatch { .. }) => eprintln!("{}: rejected: {error}", message.id),
            Err(error) => return Err(error),
        }
    }
    let mut found_out = store.batch();
    for doubt in &mut doubts {
        match warehouse.has_shipped(&doubt.key().token()) {
            true => found_out.complete(doubt, b"")?,
            false => found_out.begin_again(doubt)?,
        }
    }
    for answer in found_out.commit()? {
        if let Answer::Acquired(lease) = answer? {
            leases.push(lease);
        }
    }
    Ok(leases)
}

fn main() -> Result<(), Box<dyn StdError>> {
    let run = |directory: &Path| {
        let store = Store::open(directory.join("orders.once"))?;
        consume(&store, &mut Queue::open(directory)?, &mut Warehouse::open(directory)?)?;
        Ok::<(), Box<dyn StdError>>(store.close()?)
    };
    if let Some(directory) = std::env::args_os().nth(1) {
        return run(Path::new(&directory));
    }
    let directory = tempfile::tempdir()?;
    queue::write(directory.path(), 1_200)?;
    run(directory.path())?;
    println!("The queue loses the offset and delivers everything again:");
    std::fs::remove_file(directory.path().join("offset"))?;
    run(directory.path())
}
