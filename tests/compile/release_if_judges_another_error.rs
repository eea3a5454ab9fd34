//! `release_if` takes a different error type from the one that the closure returns.
use oncekey::Store;

fn main() {
    let store = Store::in_memory().unwrap();
    let _ = store
        .operation("charge:1")
        .release_if(|error: &std::io::Error| error.kind() == std::io::ErrorKind::ConnectionRefused)
        .run(|_| Err::<u64, String>("refused".to_owned()));
}
