//! Reclaiming: frees the space of dead records by retiring the oldest segment.
//!
//! Every live record of that segment is *moved*: while its key's flight (the per-key lock) is held, it is appended
//! again with the same version, and once the copy is written the index is pointed to it. Dead records are removed from
//! the index. After that the log no longer needs the segment.
//!
//! Threads that append do this work. After its own record, each visits several records of the oldest segment, in
//! proportion to what it appended. One thread at a time reclaims; the others only add to the number of bytes that are
//! owed.
//!
//! A record that cannot be read must not keep its segment from being retired, and its key must not be forgotten. So its
//! bytes are carried along, unchanged, inside a new record. If the footer is damaged as well, it is unknown which key
//! the record belongs to. Then reclaiming stops, emits an event, and shows in the statistics that it has stopped.
//!
//! | module | what it does |
//! |---|---|
//! | `count` | counts exactly how many bytes are dead |
//! | `moves` | moves one record |
//! | `retire` | visits the records of the oldest segments, a piece at a time |
//! | `compact` | reclaims at once, for `Store::compact` and for a caller that finds the store full |

// Each module uses only those above it.
mod count;
mod moves;
mod retire;
mod compact;

pub use compact::Compaction;
pub(super) use compact::OnProgress;
pub(super) use retire::Reclaim;
