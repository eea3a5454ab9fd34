//! Nothing says what the closure's error type is.
use oncekey::Store;

fn main() {
    let store = Store::in_memory().unwrap();
    let _ = store.operation("charge:1").run(|_| Ok(17_u64));
}
