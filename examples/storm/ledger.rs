//! The outside world: a file to which every charge appends an entry. It takes no idempotency keys.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::wire::Receipt;

/// The length of every entry. It divides the size of a page, so no entry crosses a page boundary, and a kill during a
/// write leaves the entry whole or absent.
const ENTRY_BYTES: usize = 64;

/// A charge that has happened.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Charge {
    pub(crate) intent: u32,
    /// The number of the part, from 1; 0 for an order that is charged as a whole.
    pub(crate) part: u32,
    /// The version of the attempt that charged.
    pub(crate) attempt_version: u64,
    /// A random number that differs from charge to charge. Without it, a duplicate could equal the charge that it repeats.
    pub(crate) nonce: u64,
}

impl Charge {
    /// Returns the receipt of this charge, which is the same when the charge is made and when it is looked up later.
    pub(crate) fn receipt(&self) -> Receipt {
        // Up to seven repetitions, so that results differ in length.
        let words = "paid in full and with thanks ".repeat((self.nonce % 8) as usize);
        Receipt { attempt_version: self.attempt_version, nonce: self.nonce, words }
    }

    fn to_entry(self) -> String {
        // The four columns, three spaces and the newline add up to `ENTRY_BYTES`. The last two columns are wide enough for any u64.
        format!("{:16} {:4} {:20} {:20}\n", self.intent, self.part, self.attempt_version, self.nonce)
    }

    fn from_entry(entry: &[u8]) -> Option<Charge> {
        let mut numbers = std::str::from_utf8(entry).ok()?.split_ascii_whitespace();
        let intent = numbers.next()?.parse().ok()?;
        let part = u32::try_from(numbers.next()?.parse::<u64>().ok()?).ok()?;
        let attempt_version = numbers.next()?.parse().ok()?;
        Some(Charge { intent, part, attempt_version, nonce: numbers.next()?.parse().ok()? })
    }
}

/// The ledger file, open for appending and for lookups.
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

/// The charges of a ledger.
#[derive(Default)]
pub(crate) struct Charges {
    /// The first charge of each intent, or of each part of it.
    pub(crate) first: HashMap<(u32, u32), Charge>,
    /// All further charges, each of which is a duplicate.
    pub(crate) duplicates: Vec<Charge>,
}

/// The subscribers of the store's messages: a file to which every message appends a line.
pub(crate) struct Published(File);

impl Published {
    pub(crate) fn open(directory: &Path) -> io::Result<Published> {
        Ok(Published(OpenOptions::new().create(true).append(true).open(directory.join("published"))?))
    }

    pub(crate) fn append(&self, token: &str, receipt: &Receipt) -> io::Result<()> {
        // The two columns, a space and the newline add up to `ENTRY_BYTES`.
        (&self.0).write_all(format!("{token:41} {:21}\n", receipt.nonce).as_bytes())
    }

    /// Returns the nonces that were published under each token. A message may be there twice.
    pub(crate) fn read(directory: &Path) -> io::Result<HashMap<String, Vec<u64>>> {
        let mut published: HashMap<String, Vec<u64>> = HashMap::new();
        for line in std::fs::read_to_string(directory.join("published"))?.lines() {
            let mut columns = line.split_ascii_whitespace();
            let (token, nonce) = (columns.next().unwrap_or_default(), columns.next().unwrap_or_default());
            let nonce = nonce.parse().map_err(io::Error::other)?;
            published.entry(token.to_owned()).or_default().push(nonce);
        }
        Ok(published)
    }
}

impl Ledger {
    pub(crate) fn open(directory: &Path) -> io::Result<Ledger> {
        let path = directory.join("ledger");
        let appending = OpenOptions::new().create(true).append(true).open(&path)?;
        // A write that failed, for example because the disk was full, can leave an incomplete last entry. `append` returned
        // an error for it, so the charge was never acknowledged and the entry can be removed.
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

    /// Returns the charge of this intent, or of this part of it, made by this process or an earlier one.
    ///
    /// The result is authoritative: the file is read to its end, and the store lets only one caller at a time reconcile
    /// or run the operation of a key, so no other thread is charging this intent.
    pub(crate) fn find(&self, intent: u32, part: u32) -> io::Result<Option<Charge>> {
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        reading.read_on()?;
        Ok(reading.charges.first.get(&(intent, part)).copied())
    }

    /// Returns every charge that was in the ledger when the ledger was opened or last searched.
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
            // The nonce makes every charge unique. So the first charge of the intent equals this one only if this one was just
            // inserted.
            if *self.charges.first.entry((charge.intent, charge.part)).or_insert(charge) != charge {
                self.charges.duplicates.push(charge);
            }
        }
        self.rest = rest;
        Ok(())
    }
}
