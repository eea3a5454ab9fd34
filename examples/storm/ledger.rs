//! The outside world: a file to which every charge appends an entry. It takes no idempotency keys.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::wire::Receipt;

/// The length of every entry. It divides the size of a page, so a kill during a write leaves an entry whole or absent.
const ENTRY_BYTES: usize = 64;

/// A charge that has happened.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Charge {
    pub(crate) intent: u32,
    pub(crate) version: u64,
    pub(crate) nonce: u64,
}

impl Charge {
    /// Returns the receipt of this charge, which is the same when the charge is made and when it is looked up later.
    pub(crate) fn receipt(&self) -> Receipt {
        let words = "paid in full and with thanks ".repeat((self.nonce % 8) as usize);
        Receipt { version: self.version, nonce: self.nonce, words }
    }

    fn to_entry(self) -> String {
        format!("{:21} {:20} {:20}\n", self.intent, self.version, self.nonce)
    }

    fn from_entry(entry: &[u8]) -> Option<Charge> {
        let mut numbers = std::str::from_utf8(entry).ok()?.split_ascii_whitespace();
        let intent = numbers.next()?.parse().ok()?;
        let version = numbers.next()?.parse().ok()?;
        Some(Charge { intent, version, nonce: numbers.next()?.parse().ok()? })
    }
}

pub(crate) struct Ledger {
    appending: File,
    reading: Mutex<LedgerReader>,
}

/// The part of the ledger that has been read so far.
struct LedgerReader {
    file: File,
    /// The bytes after the last whole entry.
    rest: Vec<u8>,
    charges: Charges,
}

#[derive(Default)]
pub(crate) struct Charges {
    /// The first charge of each intent.
    pub(crate) first: HashMap<u32, Charge>,
    /// All further charges, each of which is a duplicate.
    pub(crate) duplicates: Vec<Charge>,
}

impl Ledger {
    pub(crate) fn open(directory: &Path) -> io::Result<Ledger> {
        let path = directory.join("ledger");
        let appending = OpenOptions::new().create(true).append(true).open(&path)?;
        // Remove an incomplete last entry, in case there is one. It was never acknowledged.
        let length = appending.metadata()?.len();
        appending.set_len(length - length % ENTRY_BYTES as u64)?;
        let file = File::open(&path)?;
        let mut reading = LedgerReader { file, rest: Vec::new(), charges: Charges::default() };
        reading.read_on()?;
        Ok(Ledger { appending, reading: Mutex::new(reading) })
    }

    /// Appends a charge: the side effect.
    pub(crate) fn append(&self, charge: Charge) -> io::Result<()> {
        // This is one system call. The file is open for appending, so the operating system writes at its current end.
        (&self.appending).write_all(charge.to_entry().as_bytes())
    }

    /// Returns the charge of this intent, made by this process or an earlier one.
    ///
    /// The result is authoritative: the file is read to its end, and the store lets only one caller at a time reconcile
    /// or run an operation, so no other thread is charging this intent.
    pub(crate) fn find(&self, intent: u32) -> io::Result<Option<Charge>> {
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        reading.read_on()?;
        Ok(reading.charges.first.get(&intent).copied())
    }

    /// Returns every charge that was in the ledger when it was opened or last searched.
    pub(crate) fn into_charges(self) -> Charges {
        self.reading.into_inner().unwrap_or_else(PoisonError::into_inner).charges
    }
}

impl LedgerReader {
    /// Reads the entries that were appended since the last call.
    fn read_on(&mut self) -> io::Result<()> {
        self.file.read_to_end(&mut self.rest)?;
        let entries = self.rest.chunks_exact(ENTRY_BYTES);
        let rest = entries.remainder().to_vec();
        for entry in entries {
            let charge = Charge::from_entry(entry).ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidData, "the ledger has an entry that is not a charge")
            })?;
            if *self.charges.first.entry(charge.intent).or_insert(charge) != charge {
                self.charges.duplicates.push(charge);
            }
        }
        self.rest = rest;
        Ok(())
    }
}
