//! Encodes a file as its length and its runs of bytes that are not zero. A store of several segments is then an input of a few
//! kilobytes instead of a few hundred.
//!
//! The encoding: `u16` length in units of 512 bytes, `u16` further bytes, and runs. A run is `u24` offset, `u16` length, and
//! as many bytes. A run of length 0 is a copy within the file: `u24` source, `u16` length. Source and destination may
//! overlap, because the copy goes byte by byte.

use crate::input::Input;

/// The longest file that is decoded.
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

/// A new run takes about as many bytes as this many zeroes.
const GAP: usize = 12;
/// More equal bytes than this are encoded as a copy.
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
            // A run of the first of the equal bytes, and a copy that overlaps itself.
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
