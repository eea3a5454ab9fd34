//! What is measured. Everywhere the same: everybody has a turn in each round, the floor first, so that whatever changes on
//! the machine meanwhile changes it for all; and everybody starts from a store of its own, opened for the turn.

pub mod buffered;
pub mod commit;
pub mod memory;
pub mod open;
pub mod reclaim;
pub mod replay;
pub mod scale;
