//! The answers to the lines. They are counted, reported on standard error if they are refusals, and written to the file of
//! answers if there is one.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use serde::Serialize;

use crate::failure::{Failure, print_error};
use crate::ledger::Receipt;

/// The answer to a line, as its sender would get it.
#[derive(Debug, Serialize)]
#[serde(tag = "answer", rename_all = "lowercase")]
pub(crate) enum Answer {
    /// The delivery was performed.
    Performed(Receipt),
    /// The delivery had been performed before, and gets the receipt of that time.
    Replayed {
        #[serde(flatten)]
        receipt: Receipt,
        /// Whether the delivery was in doubt and its entry was found in the ledger.
        reconciled: bool,
    },
    /// The id was used before with a different event or payload.
    Mismatched { reason: String },
    /// The line is not a delivery.
    Rejected { reason: String },
}

/// The number of lines with each answer: `lines` = `performed` + `replayed` + `mismatched` + `rejected`.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Counts {
    lines: u64,
    performed: u64,
    replayed: u64,
    mismatched: u64,
    rejected: u64,
    /// The number of lines in `replayed` whose delivery was in doubt and whose entry was found in the ledger.
    reconciled: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, answer: &Answer) {
        self.lines += 1;
        match answer {
            Answer::Performed(_) => self.performed += 1,
            Answer::Replayed { reconciled, .. } => {
                self.replayed += 1;
                self.reconciled += u64::from(*reconciled);
            }
            Answer::Mismatched { .. } => self.mismatched += 1,
            Answer::Rejected { .. } => self.rejected += 1,
        }
    }

    pub(crate) fn merge(&mut self, other: &Counts) {
        self.lines += other.lines;
        self.performed += other.performed;
        self.replayed += other.replayed;
        self.mismatched += other.mismatched;
        self.rejected += other.rejected;
        self.reconciled += other.reconciled;
    }
}

/// Delivers the answers. Shared by all threads.
#[derive(Debug)]
pub(crate) struct Answers<'a> {
    /// The path of the deliveries, which messages contain.
    pub(crate) deliveries: &'a Path,
    file: Option<AnswerFile>,
}

impl<'a> Answers<'a> {
    /// Creates the file of answers if the user requested one. Refuses an existing file, which could be any file, even the
    /// deliveries.
    pub(crate) fn create(deliveries: &'a Path, path: Option<&Path>) -> Result<Answers<'a>, Failure> {
        Ok(Answers { deliveries, file: path.map(AnswerFile::create).transpose()? })
    }

    /// Reports the answer to one line. `delivery` is the delivery's id, if the line has one.
    pub(crate) fn give(&self, line: u64, delivery: Option<&str>, answer: &Answer) -> Result<(), Failure> {
        if let Answer::Mismatched { reason } | Answer::Rejected { reason } = answer {
            print_error(&format!("{}:{line}: {reason}", self.deliveries.display()));
        }
        match &self.file {
            Some(file) => file.write(line, delivery, answer),
            None => Ok(()),
        }
    }

    pub(crate) fn close(self) -> Result<(), Failure> {
        self.file.map_or(Ok(()), |file| file.flush())
    }
}

/// The file of answers: one line of JSON for each delivery line, in the order in which the answers were given.
#[derive(Debug)]
struct AnswerFile {
    path: PathBuf,
    file: Mutex<BufWriter<File>>,
}

impl AnswerFile {
    fn create(path: &Path) -> Result<AnswerFile, Failure> {
        let file =
            File::create_new(path).map_err(|error| format!("{}: cannot create: {error}", path.display()))?;
        Ok(AnswerFile { path: path.to_owned(), file: Mutex::new(BufWriter::new(file)) })
    }

    fn write(&self, line: u64, delivery: Option<&str>, answer: &Answer) -> Result<(), Failure> {
        #[derive(Serialize)]
        struct Answered<'a> {
            line: u64,
            #[serde(skip_serializing_if = "Option::is_none")]
            delivery: Option<&'a str>,
            #[serde(flatten)]
            answer: &'a Answer,
        }

        let mut text = serde_json::to_vec(&Answered { line, delivery, answer })?;
        text.push(b'\n');
        self.lock()?.write_all(&text).map_err(|error| self.cannot_write(&error))
    }

    fn flush(&self) -> Result<(), Failure> {
        self.lock()?.flush().map_err(|error| self.cannot_write(&error))
    }

    fn lock(&self) -> Result<MutexGuard<'_, BufWriter<File>>, Failure> {
        self.file
            .lock()
            .map_err(|_| format!("{}: a thread panicked while writing", self.path.display()).into())
    }

    fn cannot_write(&self, error: &io::Error) -> Failure {
        format!("{}: cannot write: {error}", self.path.display()).into()
    }
}
