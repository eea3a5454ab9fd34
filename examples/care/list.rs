//! Lists keys, beside the process that has the store open.

use oncekey::{Error, Key, Reader, Status};
use serde_json::{Value, json};

use crate::Failure;
use crate::arguments::Arguments;
use crate::output::{Output, bar};

fn shown(bytes: &[u8]) -> Value {
    Value::String(bytes.escape_ascii().to_string())
}

fn scope_of(key: Key<'_>) -> Value {
    key.scope_name().map_or(Value::Null, shown)
}

pub(crate) fn run(arguments: &mut Arguments) -> Result<(), Failure> {
    let path = arguments.path()?;
    let reader = retried(|| Reader::open(&path))?;
    let is_json = arguments.has("--json");
    if arguments.has("--unfinished") {
        const COLUMNS: &[&str] = &["scope", "key", "status", "attempt", "version", "since_ms", "note"];
        let mut output = Output::new(COLUMNS, is_json);
        let scope = arguments.scope()?;
        for operation in reader.unfinished() {
            let operation = operation?;
            let key = operation.key();
            if scope.is_some() && key.scope_name() != scope.as_deref() {
                continue;
            }
            output.row(vec![
                scope_of(key),
                shown(key.name()),
                json!(operation.status().to_string()),
                json!(operation.attempt()),
                json!(operation.version().to_string()),
                json!(operation.since_ms()),
                json!(operation.note()),
            ]);
        }
        output.finish();
        return Ok(());
    }
    let mut scan = reader.scan().on_progress(bar);
    if let Some(scope) = arguments.scope()? {
        scan = scan.scope(&scope);
    }
    if let Some(status) = arguments.value("--status") {
        scan = scan.status(status_named(status)?);
    }
    const COLUMNS: &[&str] =
        &["scope", "key", "status", "attempt", "version", "changed_at_ms", "expires_at_ms", "result_bytes"];
    let mut output = Output::new(COLUMNS, is_json);
    let mut unreadable = 0;
    for key in scan {
        let key = match key {
            Ok(key) => key,
            Err(error @ Error::Corrupt { .. }) => {
                eprintln!("care: {error}");
                unreadable += 1;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        output.row(vec![
            scope_of(key.key()),
            shown(key.key().name()),
            json!(key.status().to_string()),
            json!(key.attempt()),
            json!(key.version().to_string()),
            json!(key.changed_at_ms()),
            json!(key.expires_at_ms()),
            json!(key.result_bytes()),
        ]);
    }
    output.finish();
    if unreadable > 0 { Err(format!("{unreadable} keys could not be read").into()) } else { Ok(()) }
}

fn status_named(name: &str) -> Result<Status, Failure> {
    let named = [Status::InDoubt, Status::Completed, Status::Begun];
    let found = named.into_iter().find(|status| status.to_string() == name);
    found.ok_or_else(|| format!("{name}: a status is \"in doubt\", \"completed\" or \"begun\"").into())
}

/// Repeats a call while the other process is faster.
fn retried<T>(mut call: impl FnMut() -> oncekey::Result<T>) -> oncekey::Result<T> {
    let mut outcome = call();
    for _ in 0..10 {
        if !matches!(outcome, Err(Error::Busy { .. })) {
            break;
        }
        outcome = call();
    }
    outcome
}
