//! Copies a store into a new file. A service that has its store open calls `Store::backup` itself.

use serde_json::json;

use crate::Failure;
use crate::arguments::Arguments;
use crate::output::{bar, print_fields};

pub(crate) fn run(arguments: &mut Arguments) -> Result<(), Failure> {
    let store = arguments.open()?;
    let to = arguments.word("the path of the copy")?;
    let copy = store.backup_with(to, bar)?;
    store.close()?;
    print_fields(
        vec![
            ("path", json!(copy.path.display().to_string())),
            ("bytes", json!(copy.bytes)),
            ("taken_at_ms", json!(copy.taken_at_ms)),
        ],
        arguments.has("--json"),
    );
    Ok(())
}
