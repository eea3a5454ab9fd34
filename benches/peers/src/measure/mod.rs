//! The measures, one module each. All of them work in rounds. In each round every store has one turn, and the floor comes
//! first, so that a change of the machine's speed affects the floor and all stores alike. Each turn opens a separate store.

pub mod buffered;
pub mod commit;
pub mod conditions;
pub mod memory;
pub mod open;
pub mod reclaim;
pub mod replay;
pub mod scale;
