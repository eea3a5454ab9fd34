//! Reads the footer entries of a full segment or, if the footer is damaged, derives them from the records.

use std::io;

use super::reader::Reader;
use super::scan::{self, Chain};
use super::writer::FullSegment;
use crate::error::{Error, Result};
use crate::format::footer::FooterEntry;
use crate::format::frame::FrameHeader;
use crate::format::header::Parameters;
use crate::format::{FIRST_FRAME_OFFSET, max_frame_bytes};
use crate::hash::KeyHasher;
use crate::storage::Storage;

/// Returns the footer entries of the segment with this sequence.
///
/// Returns [`Error::Corrupt`] if the footer is damaged and not all of the records can be read.
pub(super) fn read_entries(
    storage: &dyn Storage,
    reader: &Reader,
    parameters: &Parameters,
    hasher: &KeyHasher,
    (sequence, segment): (u64, &FullSegment),
) -> Result<Vec<FooterEntry>> {
    let slot_offset = reader.slot_offset(segment.slot);
    let io = |error: io::Error| reader.io("read a segment to retire it", error);
    let footer = scan::read_footer_entries(storage, slot_offset, sequence, parameters).map_err(io)?;
    if let Ok((_, entries)) = footer {
        return Ok(entries);
    }
    let bytes = scan::read_slot(storage, slot_offset, parameters.segment_bytes).map_err(io)?;
    let first = sequence * parameters.segment_bytes + FIRST_FRAME_OFFSET;
    let chain = first_chain(&bytes, first, parameters);
    let scan = scan::scan(&bytes, sequence, chain, parameters, hasher);
    if scan.end != segment.end {
        let offset = slot_offset + (scan.end % parameters.segment_bytes);
        return Err(Error::corrupt(reader.path(), offset, scan.stop.reason()));
    }
    Ok(scan.entries.iter().collect())
}

/// The checksum chain that the first frame of the segment continues, as stated in that frame itself. That the chain is
/// right need not be checked here, because `read_entries` compares the end of the scan with the known end of the
/// segment.
fn first_chain(slot: &[u8], first: u64, parameters: &Parameters) -> Chain {
    let at = usize::try_from(FIRST_FRAME_OFFSET).unwrap_or(usize::MAX);
    let header = FrameHeader::decode(
        slot.get(at..).unwrap_or_default(),
        first,
        max_frame_bytes(parameters.segment_bytes),
        parameters.seed(),
    );
    Chain { checksum: header.map_or(0, |header| header.stamp.previous_checksum) }
}
