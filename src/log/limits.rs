//! How much of a segment one frame, one record and one result may take.

use super::commit::record_cost_bytes;
use crate::format::max_frame_bytes;
use crate::format::record::{MAX_BARE_RECORD_BYTES, RECORD_HEADER_BYTES};

/// The most that a batch may take of a segment, footer entries included.
pub(crate) fn batch_limit_bytes(segment_bytes: u64) -> u64 {
    max_frame_bytes(segment_bytes)
}

/// The largest result that a frame in segments of this size can hold, whatever the key, and also if its record is carried
/// along in another one because it cannot be read any more.
pub(crate) fn largest_result_bytes(segment_bytes: u64) -> u64 {
    largest_carried_bytes(segment_bytes) - MAX_BARE_RECORD_BYTES - 8
}

/// The longest record that can be carried along in another one.
pub(crate) fn largest_carried_bytes(segment_bytes: u64) -> u64 {
    batch_limit_bytes(segment_bytes) - record_cost_bytes(RECORD_HEADER_BYTES as u64)
}
