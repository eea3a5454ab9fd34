//! The outside world: a journal in a file, to which messages are appended.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use oncekey::Message;

/// The journal: the file `journal`, with one message on each line.
pub(crate) struct Journal {
    file: File,
}

impl Journal {
    pub(crate) fn open(directory: &Path) -> io::Result<Journal> {
        let file = OpenOptions::new().create(true).append(true).open(directory.join("journal"))?;
        Ok(Journal { file })
    }

    /// Appends a message: its topic, its id, its token and its payload.
    pub(crate) fn append(&self, topic: &str, message: &Message) -> io::Result<()> {
        let payload = String::from_utf8_lossy(message.payload());
        let line = format!("{topic}\t{}\t{}\t{payload}", message.id().as_u64(), message.token());
        // One write of a length that divides the size of a page: a kill leaves the whole line or nothing.
        let line = format!("{line:127}\n");
        (&self.file).write_all(line.as_bytes())
    }
}
