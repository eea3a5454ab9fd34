//! Ends an operation in doubt. The store must not be open in another process.

use oncekey::{Begin, Status};
use serde_json::json;

use crate::Failure;
use crate::arguments::Arguments;
use crate::output::print_fields;

pub(crate) fn run(arguments: &mut Arguments) -> Result<(), Failure> {
    let ends = ["--absent", "--without-result"].map(|flag| arguments.has(flag));
    let result = arguments.value("--completed").map(str::to_owned);
    if ends.into_iter().chain([result.is_some()]).filter(|is_given| *is_given).count() != 1 {
        return Err("say one of --absent, --completed RESULT and --without-result".into());
    }
    let store = arguments.open()?;
    let key = arguments.key()?;
    let state = store.get(&key)?;
    if state.status() != Status::InDoubt {
        return Err(format!("{} is {}, and not in doubt", key.as_key(), state.status()).into());
    }
    // The request need not be known again: the state has its fingerprint.
    let Begin::InDoubt(mut doubt) = store.begin(&key, state.fingerprint())? else {
        return Err(format!("{} was changed meanwhile", key.as_key()).into());
    };
    match result {
        Some(result) => drop(doubt.complete(result.as_bytes())?),
        None if arguments.has("--without-result") => drop(doubt.complete_without_result()?),
        None => doubt.release()?,
    }
    let status = store.get(&key)?.status().to_string();
    store.close()?;
    print_fields(
        vec![("key", json!(key.as_key().to_string())), ("status", json!(status))],
        arguments.has("--json"),
    );
    Ok(())
}
