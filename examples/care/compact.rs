//! Frees dead space and shortens the file.

use serde_json::json;

use crate::Failure;
use crate::arguments::Arguments;
use crate::output::{bar, print_fields};

pub(crate) fn run(arguments: &mut Arguments) -> Result<(), Failure> {
    let store = arguments.open()?;
    let done = store.compact_with(bar)?;
    store.close()?;
    print_fields(
        vec![
            ("expired_keys", json!(done.expired_keys)),
            ("moved_bytes", json!(done.moved_bytes)),
            ("freed_bytes", json!(done.freed_bytes)),
        ],
        arguments.has("--json"),
    );
    Ok(())
}
