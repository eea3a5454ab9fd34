//! The closure of `reconcile` returns the bare result, where a finding is required.
use oncekey::Store;

fn main() {
    let store = Store::in_memory().unwrap();
    let _ = store.operation("charge:1").reconcile(|_| 17_u64).run(|_| Ok::<u64, String>(17));
}
