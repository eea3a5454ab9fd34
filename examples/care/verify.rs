//! Checks the whole file of a store that no process has open.

use oncekey::{Consequence, verify_with};
use serde_json::json;

use crate::Failure;
use crate::arguments::Arguments;
use crate::output::{Output, bar, print_fields};

pub(crate) fn run(arguments: &mut Arguments) -> Result<(), Failure> {
    let path = arguments.path()?;
    let is_json = arguments.has("--json");
    let found = verify_with(path, bar)?;
    print_fields(
        vec![
            ("opens", json!(found.opens)),
            ("segments", json!(found.segments)),
            ("frames", json!(found.frames)),
            ("records", json!(found.records)),
            ("keys", json!(found.keys)),
            ("faults", json!(found.faults.len())),
        ],
        is_json,
    );
    let mut faults = Output::new(&["offset", "bytes", "consequence", "key", "reason"], is_json);
    for fault in &found.faults {
        let key = fault.key.as_ref().map(|key| key.as_key().token());
        let consequence = format!("{:?}", fault.consequence);
        let row = [
            json!(fault.offset),
            json!(fault.length_bytes),
            json!(consequence),
            json!(key),
            json!(fault.reason),
        ];
        faults.row(row.into());
    }
    faults.finish();
    match found.faults.iter().all(|fault| fault.consequence == Consequence::Harmless) {
        true => Ok(()),
        false => Err("the file is damaged: see the page `damage` of the guide".into()),
    }
}
