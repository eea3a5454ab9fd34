//! The argument of `codec` is not a codec.
use oncekey::Store;

struct Text;

fn main() {
    let store = Store::in_memory().unwrap();
    let _ = store.operation("charge:1").codec(Text).run(|_| Ok::<u64, String>(17));
}
