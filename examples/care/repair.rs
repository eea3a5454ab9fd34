//! Saves what a damaged file still holds into a new file.

use oncekey::repair_with;
use serde_json::json;

use crate::Failure;
use crate::arguments::Arguments;
use crate::output::{bar, print_fields};

pub(crate) fn run(arguments: &mut Arguments) -> Result<(), Failure> {
    let from = arguments.path()?;
    let to = arguments.word("the path of the new file")?;
    let saved = repair_with(from, to, bar)?;
    let in_doubt: Vec<String> = saved.keys_in_doubt.iter().map(|key| key.as_key().token()).collect();
    print_fields(
        vec![
            ("saved_keys", json!(saved.saved_keys)),
            ("unreadable_keys", json!(saved.unreadable_keys)),
            ("keys_in_doubt", json!(in_doubt)),
            ("faults", json!(saved.faults.len())),
            ("is_copy", json!(saved.is_copy)),
        ],
        arguments.has("--json"),
    );
    Ok(())
}
