//! The error type of the closure cannot be inferred.
use oncekey::Store;

fn main() {
    let store = Store::in_memory().unwrap();
    let _ = store.operation("charge:1").run(|_| Ok(17_u64));
}
