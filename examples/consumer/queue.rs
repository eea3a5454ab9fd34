//! A queue in a file, which delivers from the last committed offset.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A message, with the id that a redelivery repeats.
pub(crate) struct Message {
    pub(crate) id: String,
    pub(crate) body: String,
}

/// The queue in a directory: one message on each line of the file `messages`, and the number of messages that were handled in
/// the file `offset`.
pub(crate) struct Queue {
    messages: String,
    offset: PathBuf,
}

impl Queue {
    pub(crate) fn open(directory: &Path) -> io::Result<Queue> {
        let messages = fs::read_to_string(directory.join("messages"))?;
        Ok(Queue { messages, offset: directory.join("offset") })
    }

    /// Returns at most `count` messages from the committed offset on, and the offset after them.
    pub(crate) fn poll(&self, count: usize) -> io::Result<(Vec<Message>, usize)> {
        let offset = match fs::read_to_string(&self.offset) {
            Ok(text) => text.trim().parse().map_err(io::Error::other)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        let parse = |line: &str| {
            let (id, body) = line.split_once(' ').unwrap_or((line, ""));
            Message { id: id.to_owned(), body: body.to_owned() }
        };
        let messages: Vec<Message> = self.messages.lines().skip(offset).take(count).map(parse).collect();
        let next = offset + messages.len();
        Ok((messages, next))
    }

    /// Commits the offset in one step, so that a kill leaves the former one or this one.
    pub(crate) fn commit(&mut self, offset: usize) -> io::Result<()> {
        let draft = self.offset.with_extension("draft");
        fs::write(&draft, offset.to_string())?;
        fs::rename(&draft, &self.offset)
    }
}

/// Writes a queue of `count` messages. Every hundredth message is there twice.
pub(crate) fn write(directory: &Path, count: usize) -> io::Result<()> {
    let line = |number: usize| {
        let id = if number % 100 == 99 { number - 1 } else { number };
        format!("order-{id} ship {} parcels\n", id % 7)
    };
    fs::write(directory.join("messages"), (0..count).map(line).collect::<String>())
}
