//! Reclaiming: gives the space of dead records back, by retiring the oldest segment.
//!
//! Every live record of the segment is appended again, as a move under its key's flight that keeps its version, and the index
//! is pointed to the copy once that is written. Dead records leave the index. Then the log does not need the segment any more.
//! Threads that append pay for it: each visits some records of the oldest segment behind its own. One thread at a time
//! reclaims; the others only add to what is owed.
//!
//! A record that cannot be read is carried along as it is: it must not keep its segment from being retired, and its key must
//! not be forgotten. Only if the footer is damaged as well is it unknown whose record it was. Then reclaiming stops, and says
//! so by an event and in the statistics.
//!
//! `count` counts what is dead, exactly; `moves` moves one record; `retire` walks over segments; `compact` does so at once,
//! for `Store::compact` and for a caller that finds the store full.

// Each module uses only those above it.
mod count;
mod moves;
mod retire;
mod compact;

pub use compact::Compaction;
pub(super) use retire::Reclaim;
