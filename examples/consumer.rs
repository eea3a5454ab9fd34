//! A consumer of a queue that delivers at least once, with one sync for each poll.
//!
//! Under `Durability::Buffered` a record is written but not synced. A crash of the process loses no record, but a power loss
//! can. The consumer acknowledges a poll only after `sync`, so every message whose record is lost is delivered again. Its
//! side effect then also runs again, so it must be idempotent: the mail server ignores a token that it has seen.

use std::{error, io};

use oncekey::{Durability, Options, Outcome};

fn main() -> Result<(), Box<dyn error::Error>> {
    let directory = tempfile::tempdir()?;
    let store = Options::new().durability(Durability::Buffered).open(directory.path().join("mails.once"))?;
    for poll in POLLS {
        let before = store.stats().syncs;
        for (id, address) in *poll {
            let outcome = store
                .operation(*id)
                .scope("welcome-mail")
                .request(address)
                .rerun()
                .run(|attempt| send_mail(&attempt.token(), address))?;
            match outcome {
                Outcome::Done(receipt) => println!("{id}: {receipt}"),
                Outcome::AlreadyDone(receipt) => println!("{id}: delivered again; earlier: {receipt}"),
            }
        }
        store.sync()?;
        // Here a consumer acknowledges the poll, and the queue forgets it.
        println!("poll done: {} messages, syncs: {}", poll.len(), store.stats().syncs - before);
    }
    Ok(store.close()?)
}

/// The messages that the queue delivers, with an id and a body. The queue never got the acknowledgement of the first poll.
const POLLS: &[&[(&str, &str)]] = &[
    &[("m1", "ada@example.com"), ("m2", "grace@example.com"), ("m3", "edsger@example.com")],
    &[("m1", "ada@example.com"), ("m2", "grace@example.com"), ("m3", "edsger@example.com")],
    &[("m4", "barbara@example.com")],
];

fn send_mail(token: &str, address: &str) -> io::Result<String> {
    Ok(format!("mail to {address}, token {token}"))
}
