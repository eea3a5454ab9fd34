//! Forgets every key of a scope.

use serde_json::json;

use crate::Failure;
use crate::arguments::Arguments;
use crate::output::{bar, print_fields};

pub(crate) fn run(arguments: &mut Arguments) -> Result<(), Failure> {
    let scope = arguments.scope()?.ok_or("say --scope SCOPE")?;
    let store = arguments.open()?;
    let done = store.forget_scope_with(&scope, bar)?;
    store.close()?;
    print_fields(
        vec![("forgotten", json!(done.forgotten)), ("unreadable", json!(done.unreadable))],
        arguments.has("--json"),
    );
    Ok(())
}
