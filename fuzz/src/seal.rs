//! Recomputes the checksums of a damaged file, as the author of a malicious file would. No file may cause a panic, even if all
//! its checksums match. This module is written from the specification in `src/format/format.md` and shares no code with the
//! store, so that each checks the other.

use crate::FIRST_FRAME;

const SECTOR: usize = 512;
const FRAME_HEADER: usize = 56;
const OPENING_FRAME: usize = 80;
const RECORD_HEADER: usize = 80;
const TRAILER: usize = 64;
const ENTRY: usize = 48;

/// The checksums and fields that are recomputed.
#[derive(Debug, Clone, Copy)]
pub struct Seals {
    /// The checksums of headers, marks and footers.
    pub blocks: bool,
    /// The checksums of records and frames.
    pub frames: bool,
    /// The references of frames, marks, footers and headers to the previous frame, and the positions of frames.
    pub chain: bool,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    bytes[at..at + field.len()].copy_from_slice(field);
}

fn checksum(seed: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(bytes);
    hasher.finalize()
}

/// Returns the seed of the checksums that depend on the file id.
pub fn seed_of(file_id: &[u8]) -> u32 {
    crc32fast::hash(file_id)
}

/// Recomputes the checksum of a header or mark.
fn seal_sector(sector: &mut [u8], seed: u32) {
    let sum = checksum(seed, &sector[12..SECTOR]);
    put(sector, 8, &sum.to_le_bytes());
}

/// Recomputes the checksum of the record at the start of `bytes`. Returns the length of the record, or `None` if
/// the length field is impossible.
pub fn record(bytes: &mut [u8], position: u64, seed: u32) -> Option<usize> {
    if bytes.len() < RECORD_HEADER {
        return None;
    }
    let length = u32_at(bytes, 4) as usize;
    if length < RECORD_HEADER || length > bytes.len() || length % 8 != 0 {
        return None;
    }
    let position_hash = (position.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u32;
    let sum = checksum(seed, &bytes[4..length]) ^ position_hash;
    put(bytes, 0, &sum.to_le_bytes());
    Some(length)
}

/// Recomputes the checksums of the frame at the start of `bytes` and of its records. Also sets the frame's position and the
/// checksum of the previous frame, if they are given. Returns the length and the checksum of the frame, or `None` if the length
/// field is impossible.
pub fn frame(
    bytes: &mut [u8],
    position: Option<u64>,
    previous: Option<u32>,
    seed: u32,
) -> Option<(usize, u32)> {
    if bytes.len() < FRAME_HEADER {
        return None;
    }
    let length = u32_at(bytes, 4) as usize;
    if length < FRAME_HEADER || length > bytes.len() || length % 8 != 0 {
        return None;
    }
    if let Some(position) = position {
        put(bytes, 8, &position.to_le_bytes());
    }
    if let Some(previous) = previous {
        put(bytes, 24, &previous.to_le_bytes());
    }
    let position = u64_at(bytes, 8);
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    let (mut at, mut count) = (FRAME_HEADER, 0_u32);
    while at < length {
        let Some(record) = record(&mut bytes[at..length], position.wrapping_add(at as u64), seed) else {
            break;
        };
        hasher.update(&bytes[at..at + 4]);
        count += 1;
        at += record;
    }
    // A frame without records is an opening frame, which marks the start of a session.
    let sum = match count == 0 && length == OPENING_FRAME {
        true => checksum(seed, &bytes[FRAME_HEADER..OPENING_FRAME]),
        false => hasher.finalize(),
    };
    put(bytes, 28, &sum.to_le_bytes());
    put(bytes, 36, &count.to_le_bytes());
    let sum = checksum(seed, &bytes[4..FRAME_HEADER]);
    put(bytes, 0, &sum.to_le_bytes());
    Some((length, sum))
}

/// Recomputes the checksum of the footer at the end of `slot`, if it has one.
pub fn footer(slot: &mut [u8], seed: u32) {
    let Some(trailer_at) = slot.len().checked_sub(TRAILER) else { return };
    if !slot[trailer_at..].starts_with(b"ONCEFOOT") {
        return;
    }
    let entries = u32_at(slot, trailer_at + 12) as usize;
    let Some(from) = entries.checked_mul(ENTRY).and_then(|bytes| trailer_at.checked_sub(bytes)) else {
        return;
    };
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(&slot[trailer_at + 12..]);
    hasher.update(&slot[from..trailer_at]);
    put(slot, trailer_at + 8, &hasher.finalize().to_le_bytes());
}

/// The end position of a segment's last frame, and the checksum of that frame.
#[derive(Debug, Clone, Copy)]
struct End {
    position: u64,
    checksum: u32,
}

/// Recomputes the checksums of a whole file.
pub fn file(bytes: &mut [u8], seals: Seals) {
    if bytes.len() < crate::HEADER_BYTES {
        return;
    }
    let (head, slots) = bytes.split_at_mut(crate::HEADER_BYTES);
    if seals.blocks && head[..SECTOR].iter().any(|byte| *byte != 0) {
        seal_sector(&mut head[..SECTOR], 0);
    }
    let segment = u32_at(head, 28) as usize;
    if !segment.is_power_of_two() || segment < crate::SEGMENT_BYTES {
        return;
    }
    let seed = seed_of(&head[32..48]);
    // Visit the oldest segment first, because each segment refers to the end of the segment before it.
    let mut order: Vec<(u64, usize)> = slots
        .chunks(segment)
        .enumerate()
        .filter(|(_, slot)| slot.len() >= SECTOR && slot.starts_with(b"ONCESEGM"))
        .map(|(at, slot)| (u64_at(slot, 72), at))
        .collect();
    order.sort_unstable();
    let mut before: Option<(u64, End)> = None;
    for (sequence, at) in order {
        let slot_end = ((at + 1) * segment).min(slots.len());
        let slot = &mut slots[at * segment..slot_end];
        let continues = before.filter(|(earlier, _)| earlier.wrapping_add(1) == sequence);
        if seals.chain
            && let Some((_, end)) = continues
        {
            put(slot, 88, &end.position.to_le_bytes());
            put(slot, 96, &end.checksum.to_le_bytes());
        }
        if seals.blocks {
            seal_sector(&mut slot[..SECTOR], 0);
        }
        if slot.len() < segment {
            continue;
        }
        let base = sequence.wrapping_mul(segment as u64);
        let mut end = End { position: base + FIRST_FRAME as u64, checksum: u32_at(slot, 96) };
        let mut within = FIRST_FRAME;
        while seals.frames && within < segment - TRAILER {
            let position = base.wrapping_add(within as u64);
            let rest = &mut slot[within..segment - TRAILER];
            if rest.iter().take(FRAME_HEADER).all(|byte| *byte == 0) {
                break;
            }
            let made =
                frame(rest, seals.chain.then_some(position), seals.chain.then_some(end.checksum), seed);
            let Some((length, sum)) = made else { break };
            within += length;
            end = End { position: base.wrapping_add(within as u64), checksum: sum };
        }
        let trailer = segment - TRAILER;
        if seals.chain && seals.frames {
            if slot[trailer..].starts_with(b"ONCEFOOT") {
                put(slot, trailer + 32, &end.position.to_le_bytes());
                put(slot, trailer + 48, &end.checksum.to_le_bytes());
            }
            for mark in [512, 1_024] {
                if slot[mark..].starts_with(b"ONCEMARK") {
                    put(slot, mark + 12, &end.checksum.to_le_bytes());
                }
            }
        }
        if seals.blocks {
            footer(slot, seed);
            for mark in [512, 1_024] {
                if slot[mark..].starts_with(b"ONCEMARK") {
                    seal_sector(&mut slot[mark..mark + SECTOR], seed);
                }
            }
        }
        before = Some((sequence, end));
    }
}
