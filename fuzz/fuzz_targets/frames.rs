//! Runs every decoder on arbitrary bytes, as they are or with matching checksums. A decoded value must lie within the input,
//! and encoding and decoding it again must give the same value.
#![no_main]

use libfuzzer_sys::fuzz_target;
use oncekey::simulation::probe;
use oncekey_fuzz::allocated::{Counting, peak};
use oncekey_fuzz::input::Input;
use oncekey_fuzz::{SEGMENT_BYTES, seal};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const FILE_ID: &[u8; 16] = b"oncekey-fuzz-id!";

fn sector(bytes: &[u8], seed: Option<u32>) -> [u8; 512] {
    let mut sector = [0; 512];
    let length = bytes.len().min(512);
    sector[..length].copy_from_slice(&bytes[..length]);
    if let Some(seed) = seed {
        let mut hasher = crc32fast::Hasher::new_with_initial(seed);
        hasher.update(&sector[12..]);
        sector[8..12].copy_from_slice(&hasher.finalize().to_le_bytes());
    }
    sector
}

fn check_record(parts: &probe::RecordParts, from: u64, length: usize) {
    assert!(parts.position >= from && parts.position + parts.length_bytes <= from + length as u64);
    let known = parts.kind & 0x80 == 0;
    let keys = match parts.kind {
        // A record that contains an unreadable one has no key, and neither has an acknowledgement.
        5 | 19 | 33 | 34 => 0..=0,
        // A completed step without a name is the input of its operation.
        17 => 0..=1_024,
        _ => 1..=1_024,
    };
    assert!(!known || keys.contains(&parts.key.len()));
    assert!(parts.result.as_ref().map_or(0, Vec::len) as u64 <= parts.length_bytes);
    if known {
        assert_eq!(parts.encoded.len() as u64, parts.length_bytes);
        let again = probe::record(&parts.encoded, parts.position, FILE_ID)
            .expect("an encoded record cannot be decoded");
        assert_eq!(&again, parts);
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let (mode, position) = (input.u8(), input.u64());
    let sealed = mode & 0x80 != 0;
    let seed = seal::seed_of(FILE_ID);
    let mut bytes = input.0.to_vec();
    let length = bytes.len();
    let decode = || match mode % 6 {
        0 => {
            // A valid position is at most sequence x segment size, so adding a length to it does not overflow.
            let position = position >> 1;
            if sealed {
                seal::record(&mut bytes, position, seed);
            }
            if let Ok(parts) = probe::record(&bytes, position, FILE_ID) {
                check_record(&parts, position, length);
            }
        }
        1 => {
            let position = position >> 1;
            let segment = SEGMENT_BYTES as u64;
            if sealed {
                seal::frame(&mut bytes, Some(position), None, seed);
            }
            if let Ok((frame, records)) = probe::frame(&bytes, position, segment, FILE_ID) {
                assert!(frame <= length && frame as u64 <= segment / 4);
                assert!(
                    !records.is_empty() || frame == 80,
                    "a frame of {frame} bytes without records is no opening frame"
                );
                let mut at = position + if records.is_empty() { 80 } else { 56 };
                for parts in &records {
                    assert_eq!(parts.position, at, "records do not lie end to end");
                    at += parts.length_bytes;
                    check_record(parts, position, frame);
                }
                assert_eq!(at, position + frame as u64);
            }
        }
        2 => {
            let sequence = position >> 20;
            if sealed {
                seal::footer(&mut bytes, seed);
            }
            if let Ok(entries) = probe::footer(&bytes, sequence, FILE_ID) {
                assert!(entries.len() * 48 + 64 <= length);
            }
        }
        3 => {
            let sector = sector(&bytes, sealed.then_some(0));
            if let Ok(again) = probe::store_header(&sector) {
                assert_eq!(probe::store_header(&again), Ok(again));
            }
        }
        4 => {
            let sector = sector(&bytes, sealed.then_some(0));
            if let Ok(again) = probe::segment_header(&sector) {
                assert_eq!(probe::segment_header(&again), Ok(again));
            }
        }
        _ => {
            let sector = sector(&bytes, sealed.then_some(seed));
            let (sequence, segment) = (position >> 20, SEGMENT_BYTES as u64);
            if let Some(again) = probe::close_mark(&sector, sequence, segment, FILE_ID) {
                assert_eq!(probe::close_mark(&again, sequence, segment, FILE_ID), Some(again));
            }
        }
    };
    let ((), taken) = peak(decode);
    assert!(taken <= (64 << 10) + 16 * length, "{taken} bytes of memory for {length} bytes of input");
});
