//! The outside world.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::wire::Receipt;

/// Every entry has this length, which divides that of a page: a kill in the midst of a write finds the entry on one
/// page, written or not.
const ENTRY_BYTES: usize = 64;

/// Something that happened.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Act {
    pub(crate) intent: u32,
    pub(crate) version: u64,
    pub(crate) nonce: u64,
}

impl Act {
    /// What whoever wanted it is given, now or when the ledger is asked later.
    pub(crate) fn receipt(&self) -> Receipt {
        let words = "paid in full and with thanks ".repeat((self.nonce % 8) as usize);
        Receipt { version: self.version, nonce: self.nonce, words }
    }

    fn to_entry(self) -> String {
        format!("{:21} {:20} {:20}\n", self.intent, self.version, self.nonce)
    }

    fn from_entry(entry: &[u8]) -> Option<Act> {
        let mut numbers = std::str::from_utf8(entry).ok()?.split_ascii_whitespace();
        let intent = numbers.next()?.parse().ok()?;
        let version = numbers.next()?.parse().ok()?;
        Some(Act { intent, version, nonce: numbers.next()?.parse().ok()? })
    }
}

pub(crate) struct Ledger {
    appending: File,
    reading: Mutex<Reading>,
}

/// As much of the ledger as was read.
struct Reading {
    file: File,
    /// What follows the last whole entry.
    rest: Vec<u8>,
    acts: Acts,
}

#[derive(Default)]
pub(crate) struct Acts {
    /// By intent, what happened first.
    pub(crate) first: HashMap<u32, Act>,
    /// What should never have happened.
    pub(crate) again: Vec<Act>,
}

impl Ledger {
    pub(crate) fn open(directory: &Path) -> io::Result<Ledger> {
        let path = directory.join("ledger");
        let appending = OpenOptions::new().create(true).append(true).open(&path)?;
        // Should an entry be cut short after all, it never happened: nobody was told that it had.
        let length = appending.metadata()?.len();
        appending.set_len(length - length % ENTRY_BYTES as u64)?;
        let mut reading = Reading { file: File::open(&path)?, rest: Vec::new(), acts: Acts::default() };
        reading.go_on()?;
        Ok(Ledger { appending, reading: Mutex::new(reading) })
    }

    /// The deed.
    pub(crate) fn append(&self, act: Act) -> io::Result<()> {
        // One call to the operating system, which puts it at the end, wherever that is by then.
        (&self.appending).write_all(act.to_entry().as_bytes())
    }

    /// Whether the act happened, in this process or an earlier one. This is authoritative: it reads the file to its
    /// end, and whoever asks has the store's word that nobody else is at this act.
    pub(crate) fn find(&self, intent: u32) -> io::Result<Option<Act>> {
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        reading.go_on()?;
        Ok(reading.acts.first.get(&intent).copied())
    }

    /// Everything that has happened.
    pub(crate) fn into_acts(self) -> Acts {
        self.reading.into_inner().unwrap_or_else(PoisonError::into_inner).acts
    }
}

impl Reading {
    fn go_on(&mut self) -> io::Result<()> {
        self.file.read_to_end(&mut self.rest)?;
        let entries = self.rest.chunks_exact(ENTRY_BYTES);
        let rest = entries.remainder().to_vec();
        for entry in entries {
            let act = Act::from_entry(entry).ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidData, "the ledger holds what no act has written")
            })?;
            if *self.acts.first.entry(act.intent).or_insert(act) != act {
                self.acts.again.push(act);
            }
        }
        self.rest = rest;
        Ok(())
    }
}
