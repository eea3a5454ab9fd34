//! One charge, with a provider that takes idempotency keys.
//!
//! The provider recognises the token, so sending a request again charges nothing. Therefore `rerun` is the right policy for
//! a call whose outcome is unknown. With `rerun` an operation takes one sync; by default it takes two.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;

use oncekey::{Error, Outcome, RunError, Store};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let store = Store::open(directory.path().join("payments.once"))?;
    let provider = Provider::default();

    let pay = |cents: u64| {
        let outcome = store
            .operation("order-1729")
            .scope("charge")
            .request(&("account 42", cents))
            .rerun()
            .run(|attempt| provider.charge(&attempt.token(), cents));
        match outcome {
            Ok(Outcome::Done(receipt)) => println!("  done: {receipt}"),
            Ok(Outcome::AlreadyDone(receipt)) => println!("  already done: {receipt}"),
            Err(RunError::InDoubt { error, .. }) => println!("  in doubt: {error}"),
            Err(RunError::Store(Error::Mismatch { .. })) => println!("  refused: not the same request"),
            Err(other) => println!("  {other}"),
        }
    };

    println!("The reply to the first call is lost:");
    pay(1_000);
    println!("A retry sends the same token:");
    pay(1_000);
    println!("Every later call gets the stored receipt, without the provider:");
    pay(1_000);
    println!("The same order with another amount:");
    pay(2_000);
    Ok(store.close()?)
}

/// A provider that remembers its receipts by token. The reply to a new charge is lost.
#[derive(Default)]
struct Provider(RefCell<HashMap<String, String>>);

impl Provider {
    fn charge(&self, token: &str, cents: u64) -> io::Result<String> {
        if let Some(receipt) = self.0.borrow().get(token) {
            println!("  provider: knows {token}, charges nothing");
            return Ok(receipt.clone());
        }
        println!("  provider: charges {cents} cents for {token}");
        self.0.borrow_mut().insert(token.to_owned(), format!("receipt for {cents} cents"));
        Err(io::ErrorKind::TimedOut.into())
    }
}
