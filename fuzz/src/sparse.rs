//! Encodes a file as its length and the runs of bytes that are not zero. A store of several segments then fits into an input of
//! a few kilobytes instead of a few hundred.
//!
//! The encoding consists of the file's length (`u16` units of 512 bytes and `u16` further bytes), and of runs. A run consists of
//! its offset (`u24`), its length (`u16`), and its bytes. A run of length 0 is a copy within the file, and continues with the
//! source (`u24`) and the length (`u16`) of the copy. Source and destination can overlap, because bytes are copied one by one.

use crate::input::Input;

/// The maximum length of a decoded file.
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

/// The maximum number of zeroes within a run. A new run would not take less space than these zeroes.
const MAX_ZEROES: usize = 12;
/// The maximum number of equal bytes within a run. More are encoded as a copy.
const MAX_EQUAL: usize = 32;

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
            && equal(end) <= if file[end] == 0 { MAX_ZEROES } else { MAX_EQUAL }
        {
            end += 1;
        }
        out.extend_from_slice(&offset(start));
        out.extend_from_slice(&length(end - start));
        out.extend_from_slice(&file[start..end]);
        at = end;
        if end < file.len() && file[end] != 0 {
            // Encode the first of the equal bytes as a run, and the others as a copy that overlaps its source.
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
