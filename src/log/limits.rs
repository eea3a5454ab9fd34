//! The maximum sizes of a frame, a record and a result for a given segment size.

use super::commit::record_cost_bytes;
use crate::format::max_frame_bytes;
use crate::format::record::{ACKNOWLEDGEMENT_BYTES, MAX_BARE_RECORD_BYTES, RECORD_HEADER_BYTES};

/// The maximum number of bytes that a batch may take of a segment, including its footer entries.
pub(crate) fn batch_limit_bytes(segment_bytes: u64) -> u64 {
    max_frame_bytes(segment_bytes)
}

/// The maximum size of a result in segments of this size, with any key. A record with such a result still fits in a
/// frame when it has become unreadable and its bytes are carried along in another record.
pub(crate) fn largest_result_bytes(segment_bytes: u64) -> u64 {
    largest_carried_bytes(segment_bytes) - MAX_BARE_RECORD_BYTES - 8
}

/// The maximum length of a record whose bytes can be carried along in another record.
pub(crate) fn largest_carried_bytes(segment_bytes: u64) -> u64 {
    batch_limit_bytes(segment_bytes) - record_cost_bytes(RECORD_HEADER_BYTES as u64)
}

/// The maximum number of bytes that the acknowledgement of one message takes of a segment.
pub(crate) fn acknowledgement_cost_bytes() -> u64 {
    record_cost_bytes(ACKNOWLEDGEMENT_BYTES)
}
