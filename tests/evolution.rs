//! Checks the table in the guide that shows what happens to a recorded result, and to the fingerprint of a request, when a
//! type changes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]
#![allow(dead_code, reason = "some fields and variants are only serialised")]

use std::fmt::Write as _;

use oncekey::{Bincode, Codec, Error, Json, Outcome, RunError, Store};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

const PAGE: &str = include_str!("../src/guide/evolving_types.md");

/// Returns what a program with the type `After` gets for a result that was recorded as a `Before`.
fn result<C: Codec + Copy, Before, After>(codec: C, before: Before, after: &After) -> &'static str
where
    Before: Serialize + DeserializeOwned,
    After: Serialize + DeserializeOwned + PartialEq,
{
    let store = Store::in_memory().unwrap();
    store.operation("k").codec(codec).run(|_| Ok::<_, String>(before)).map_err(|_| ()).unwrap();
    match store
        .operation("k")
        .codec(codec)
        .run(|_| -> Result<After, String> { panic!("the side effect ran again") })
    {
        Ok(Outcome::AlreadyDone(replayed)) if replayed == *after => "replayed",
        Ok(_) => panic!("replayed as a different value"),
        Err(RunError::Store(Error::Decode { .. })) => "`Error::Decode`",
        Err(error) => panic!("{error}"),
    }
}

/// Returns what a program with the changed type gets for a request that was made with the former type.
fn request(before: &impl Serialize, after: &impl Serialize) -> &'static str {
    let store = Store::in_memory().unwrap();
    store.operation("k").request(before).run(|_| Ok::<_, String>(1)).unwrap();
    match store.operation("k").request(after).run(|_| Ok::<_, String>(2)) {
        Ok(Outcome::AlreadyDone(1)) => "the same",
        Err(RunError::Store(Error::Mismatch { .. })) => "`Error::Mismatch`",
        other => panic!("{other:?}"),
    }
}

/// Makes the row of the table for a change.
fn row<Before, After>(change: &str, before: fn() -> Before, after: fn() -> After) -> String
where
    Before: Serialize + DeserializeOwned,
    After: Serialize + DeserializeOwned + PartialEq,
{
    let bincode = result(Bincode, before(), &after());
    let json = result(Json, before(), &after());
    let request = request(&before(), &after());
    format!("| {change} | {bincode} | {json} | {request} |\n")
}

mod before {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    pub(super) struct Receipt {
        pub(super) id: u32,
        pub(super) cents: u32,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    pub(super) enum Answer {
        Charged { id: u32 },
        Refused,
    }
}

/// Defines the types after a change. Most keep their names, so each is in its own module.
macro_rules! after {
    ($($name:ident { $($item:tt)* })*) => {
        $(mod $name {
            use super::*;
            #[derive(Debug, PartialEq, Serialize, Deserialize)]
            $($item)*
        })*
    };
}

after! {
    added { pub(super) struct Receipt { pub(super) id: u32, pub(super) cents: u32, pub(super) note: Option<String> } }
    added_with_default {
        pub(super) struct Receipt {
            pub(super) id: u32,
            pub(super) cents: u32,
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub(super) note: Option<String>,
        }
    }
    added_required {
        pub(super) struct Receipt { pub(super) id: u32, pub(super) cents: u32, pub(super) fee: u32 }
    }
    removed { pub(super) struct Receipt { pub(super) id: u32 } }
    renamed { pub(super) struct Receipt { pub(super) id: u32, pub(super) amount: u32 } }
    renamed_with_attribute {
        pub(super) struct Receipt { pub(super) id: u32, #[serde(rename = "cents")] pub(super) amount: u32 }
    }
    reordered { pub(super) struct Receipt { pub(super) cents: u32, pub(super) id: u32 } }
    widened { pub(super) struct Receipt { pub(super) id: u32, pub(super) cents: u64 } }
    made_optional { pub(super) struct Receipt { pub(super) id: u32, pub(super) cents: Option<u32> } }
    type_renamed { pub(super) struct Confirmation { pub(super) id: u32, pub(super) cents: u32 } }
    variant_added { pub(super) enum Answer { Charged { id: u32 }, Refused, Pending } }
    variant_inserted { pub(super) enum Answer { Pending, Charged { id: u32 }, Refused } }
    variant_renamed { pub(super) enum Answer { Accepted { id: u32 }, Refused } }
}

fn table() -> String {
    let receipt = || before::Receipt { id: 17, cents: 1_000 };
    let charged = || before::Answer::Charged { id: 17 };
    let mut table = String::from(
        "| change | recorded result, `Bincode` | recorded result, `Json` | request |\n|---|---|---|---|\n",
    );
    let rows = [
        row("optional field added, with `default` and `skip_serializing_if`", receipt, || {
            added_with_default::Receipt { id: 17, cents: 1_000, note: None }
        }),
        row("optional field added, without attributes", receipt, || added::Receipt {
            id: 17,
            cents: 1_000,
            note: None,
        }),
        row("field added", receipt, || added_required::Receipt { id: 17, cents: 1_000, fee: 0 }),
        row("field removed", receipt, || removed::Receipt { id: 17 }),
        row("field renamed", receipt, || renamed::Receipt { id: 17, amount: 1_000 }),
        row("field renamed, with `rename` to its former name", receipt, || renamed_with_attribute::Receipt {
            id: 17,
            amount: 1_000,
        }),
        row("fields reordered", receipt, || reordered::Receipt { cents: 1_000, id: 17 }),
        row("integer widened, `u32` to `u64`", receipt, || widened::Receipt { id: 17, cents: 1_000 }),
        row("field made optional", receipt, || made_optional::Receipt { id: 17, cents: Some(1_000) }),
        row("struct renamed", receipt, || type_renamed::Confirmation { id: 17, cents: 1_000 }),
        row("variant added at the end", charged, || variant_added::Answer::Charged { id: 17 }),
        row("variant inserted or moved", charged, || variant_inserted::Answer::Charged { id: 17 }),
        row("variant renamed", charged, || variant_renamed::Answer::Accepted { id: 17 }),
    ];
    for row in rows {
        let _ = write!(table, "{row}");
    }
    table
}

#[test]
fn the_table_of_type_changes_in_the_guide_is_right() {
    let table = table();
    assert!(PAGE.contains(&table), "the table in src/guide/evolving_types.md must be:\n{table}");
}
