//! A file as its length and the runs in it that are not zero, so that a store of several segments is an input of a few
//! kilobytes and not of a few hundred.
//!
//! `u16` length in units of 512 bytes and `u16` bytes more; then runs: `u24` offset, `u16` length, and so many bytes. A run of
//! length 0 copies, byte after byte, what may overlap: `u24` from, `u16` length.

use crate::input::Input;

/// No file is made longer: 2 MiB.
pub const MAX_FILE_BYTES: usize = 2 << 20;

pub fn decode(mut input: Input<'_>) -> Vec<u8> {
    let length = usize::from(input.u16()) * 512 + usize::from(input.u16() % 512);
    let mut file = vec![0; length.min(MAX_FILE_BYTES)];
    let mut runs = 0;
    while !input.is_empty() && runs < 4_096 {
        runs += 1;
        let at = input.u24().min(file.len());
        let run = usize::from(input.u16());
        if run == 0 {
            let from = input.u24().min(file.len());
            let copied = usize::from(input.u16()).min(file.len() - at).min(file.len() - from);
            for n in 0..copied {
                file[at + n] = file[from + n];
            }
            continue;
        }
        let bytes = input.take(run);
        let fits = bytes.len().min(file.len() - at);
        file[at..at + fits].copy_from_slice(&bytes[..fits]);
    }
    file
}

/// Zeroes shorter than this are not worth a new run.
const GAP: usize = 12;
/// Equal bytes are worth a copy if there are more.
const EQUAL: usize = 32;

pub fn encode(file: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(&u16::try_from(file.len() / 512).unwrap().to_le_bytes());
    out.extend_from_slice(&u16::try_from(file.len() % 512).unwrap().to_le_bytes());
    let offset = |at: usize| -> [u8; 3] { u32::try_from(at).unwrap().to_le_bytes()[..3].try_into().unwrap() };
    let length = |bytes: usize| u16::try_from(bytes).unwrap().to_le_bytes();
    let equal = |at: usize| file[at..].iter().take(60_000).take_while(|byte| **byte == file[at]).count();
    let mut at = 0;
    while let Some(start) = file[at..].iter().position(|byte| *byte != 0).map(|found| at + found) {
        let mut end = start + 1;
        while end < file.len()
            && end - start < 60_000
            && equal(end) <= if file[end] == 0 { GAP } else { EQUAL }
        {
            end += 1;
        }
        out.extend_from_slice(&offset(start));
        out.extend_from_slice(&length(end - start));
        out.extend_from_slice(&file[start..end]);
        at = end;
        if end < file.len() && file[end] != 0 {
            // The first of the equal bytes, and then a copy that overlaps itself.
            let run = equal(end);
            out.extend_from_slice(&offset(end));
            out.extend_from_slice(&length(1));
            out.push(file[end]);
            out.extend_from_slice(&offset(end + 1));
            out.extend_from_slice(&length(0));
            out.extend_from_slice(&offset(end));
            out.extend_from_slice(&length(run - 1));
            at = end + run;
        }
    }
    out
}
