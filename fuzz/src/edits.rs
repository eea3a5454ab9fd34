//! Realistic damage to a file: by a failing disk, an incomplete copy, or a write to a wrong offset.
//!
//! An edit changes a single byte; fills, scrambles or copies a range; or truncates the file. It never writes bytes that the
//! fuzzer chose. With those, the fuzzer could restore the checksums, and CRC-32 does not protect against an attacker. Offsets
//! reach every byte, and are often near the parts that matter: headers, marks, frames and footers.

use crate::input::Input;
use crate::{FIRST_FRAME, HEADER_BYTES, SEGMENT_BYTES};

/// The maximum number of edits in one input.
pub const MAX_EDITS: usize = 12;

/// Decodes an offset in the file: an arbitrary one, or one near a header, mark, frame or footer of a slot.
fn offset(input: &mut Input<'_>, length: usize) -> usize {
    let how = input.u8();
    let detail = usize::from(input.u16());
    let slot = HEADER_BYTES + usize::from(how >> 3) % slots(length) * SEGMENT_BYTES;
    let at = match how & 7 {
        0 => slot,
        1 => slot + 512,
        2 => slot + 1_024,
        3 => slot + FIRST_FRAME,
        // 4 is near the footer's trailer, and 5 in the footer entries before it.
        4 => (slot + SEGMENT_BYTES).saturating_sub(64),
        5 => return (slot + SEGMENT_BYTES).saturating_sub(detail % 4_096 + 1).min(length),
        6 => return (detail * 64).min(length),
        _ => return (slot + detail).min(length),
    };
    (at + detail % 128).min(length)
}

/// Returns the number of slots in a file of this length; at least 1.
fn slots(length: usize) -> usize {
    (length.saturating_sub(HEADER_BYTES) / SEGMENT_BYTES).max(1)
}

/// Decodes edits from `input` and applies them.
pub fn apply(bytes: &mut Vec<u8>, input: &mut Input<'_>) {
    for _ in 0..MAX_EDITS {
        if input.is_empty() {
            return;
        }
        let kind = input.u8() % 8;
        let at = offset(input, bytes.len());
        let end = bytes.len();
        let run = |length: usize| at..(at + length).min(end);
        match kind {
            // A change of one byte, three times as likely as any other edit.
            0..=2 => {
                let mask = input.u8();
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= mask;
                }
            }
            3 => {
                let length = usize::from(input.u16());
                bytes[run(length)].fill(0);
            }
            4 => {
                let (length, with) = (usize::from(input.u16()), input.u8());
                bytes[run(length)].fill(with);
            }
            5 => {
                let (length, mut state) = (usize::from(input.u16()), u64::from(input.u8()) + 1);
                for byte in &mut bytes[run(length)] {
                    // The step is not linear, so the fuzzer cannot choose a seed that restores a checksum.
                    state =
                        state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    *byte ^= ((state >> 33).wrapping_mul(state >> 47) >> 8) as u8;
                }
            }
            6 => {
                // A write to a wrong offset, aligned to sectors if the length is even.
                let from = offset(input, bytes.len());
                let length = usize::from(input.u16());
                let (at, from) =
                    if length % 2 == 0 { (at / 512 * 512, from / 512 * 512) } else { (at, from) };
                let length = length.min(bytes.len() - at).min(bytes.len() - from);
                bytes.copy_within(from..from + length, at);
            }
            _ => {
                // A truncation. In three of four cases the file is then extended with zeroes.
                let half_segments = usize::from(input.u8() % 4);
                bytes.truncate(at);
                bytes.resize(bytes.len() + half_segments * SEGMENT_BYTES / 2, 0);
            }
        }
    }
}
