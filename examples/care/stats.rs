//! Opens the store and shows its figures.

use serde_json::json;

use crate::Failure;
use crate::arguments::Arguments;
use crate::output::print_fields;

pub(crate) fn run(arguments: &mut Arguments) -> Result<(), Failure> {
    let store = arguments.open()?;
    let stats = store.stats();
    store.close()?;
    if arguments.has("--openmetrics") {
        print!("{}", stats.to_openmetrics());
        return Ok(());
    }
    print_fields(
        vec![
            ("keys", json!(stats.keys)),
            ("unfinished", json!(stats.unfinished)),
            ("in_doubt", json!(stats.in_doubt)),
            ("oldest_unfinished_age_ms", json!(stats.oldest_unfinished_age_ms())),
            ("file_bytes", json!(stats.file_bytes)),
            ("live_bytes", json!(stats.live_bytes())),
            ("dead_bytes", json!(stats.dead_bytes)),
            ("free_bytes", json!(stats.free_bytes)),
            ("segments", json!(stats.segments)),
            ("unreadable_records", json!(stats.unreadable_records)),
            ("index_bytes", json!(stats.index_bytes)),
            ("store_time_ms", json!(stats.store_time_ms)),
        ],
        arguments.has("--json"),
    );
    Ok(())
}
