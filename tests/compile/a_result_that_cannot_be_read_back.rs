//! The result implements `Serialize` but not `Deserialize`.
use oncekey::Store;

#[derive(serde::Serialize)]
struct Receipt {
    id: u64,
}

fn main() {
    let store = Store::in_memory().unwrap();
    let _ = store.operation("charge:1").run(|_| Ok::<_, String>(Receipt { id: 17 }));
}
