//! The arguments of a verb.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use oncekey::{Options, OwnedKey, Store};

use crate::Failure;

/// The arguments after the verb.
pub(crate) struct Arguments {
    /// The words that are not options, last one first.
    words: Vec<String>,
    values: HashMap<&'static str, String>,
    flags: Vec<&'static str>,
}

impl Arguments {
    pub(crate) fn parse(
        words: impl Iterator<Item = String>,
        (with_value, flags): (&'static [&'static str], &'static [&'static str]),
    ) -> Result<Arguments, String> {
        let mut arguments = Arguments { words: Vec::new(), values: HashMap::new(), flags: Vec::new() };
        let mut words = words;
        while let Some(word) = words.next() {
            if let Some(name) = with_value.iter().find(|name| **name == word) {
                let value = words.next().ok_or(format!("{name} needs a value"))?;
                arguments.values.insert(name, value);
            } else if let Some(name) = flags.iter().find(|name| **name == word) {
                arguments.flags.push(name);
            } else if word.starts_with("--") {
                return Err(format!("unknown option {word}"));
            } else {
                arguments.words.push(word);
            }
        }
        arguments.words.reverse();
        Ok(arguments)
    }

    /// Takes the next word.
    pub(crate) fn word(&mut self, what: &str) -> Result<String, Failure> {
        self.words.pop().ok_or_else(|| format!("{what} is missing").into())
    }

    pub(crate) fn path(&mut self) -> Result<PathBuf, Failure> {
        self.word("the path of the store").map(PathBuf::from)
    }

    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    pub(crate) fn has(&self, flag: &str) -> bool {
        self.flags.contains(&flag)
    }

    /// The scope, if one is given.
    pub(crate) fn scope(&self) -> Result<Option<Vec<u8>>, Failure> {
        self.value("--scope").map(unescape).transpose()
    }

    /// Takes the next word as a key.
    pub(crate) fn key(&mut self) -> Result<OwnedKey, Failure> {
        let name = unescape(&self.word("the key")?)?;
        let key = oncekey::Key::new(&name);
        Ok(match self.scope()? {
            Some(scope) => key.scope(&scope).to_owned(),
            None => key.to_owned(),
        })
    }

    /// Opens the store, which must exist. Waits for another process as long as `--wait` says.
    pub(crate) fn open(&mut self) -> Result<Store, Failure> {
        let path = self.path()?;
        let seconds = self.value("--wait").map_or(Ok(0), str::parse)?;
        let options = Options::new().create(false).lock_wait(Duration::from_secs(seconds));
        Ok(options.open(path)?)
    }
}

/// Reads a text in which bytes are written as `escape_ascii` prints them.
pub(crate) fn unescape(text: &str) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'\\' {
            bytes.push(*first);
            continue;
        }
        let (byte, after) = match rest {
            [b'x', high, low, after @ ..] => {
                let digits = [*high, *low];
                (u8::from_str_radix(std::str::from_utf8(&digits)?, 16)?, after)
            }
            [b't', after @ ..] => (b'\t', after),
            [b'r', after @ ..] => (b'\r', after),
            [b'n', after @ ..] => (b'\n', after),
            [same @ (b'\\' | b'"' | b'\''), after @ ..] => (*same, after),
            _ => return Err(format!("{text}: \\ is followed by xNN, t, r, n, a quote or \\").into()),
        };
        bytes.push(byte);
        rest = after;
    }
    Ok(bytes)
}
