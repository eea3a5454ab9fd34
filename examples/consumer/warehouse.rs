//! The outside world: a warehouse that ships whatever it is told to, and keeps a list of it.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

/// The warehouse. Its list is the file `shipped`, with the token of one order on each line.
pub(crate) struct Warehouse {
    list: File,
    shipped: HashSet<String>,
}

impl Warehouse {
    pub(crate) fn open(directory: &Path) -> io::Result<Warehouse> {
        let path = directory.join("shipped");
        let mut list = OpenOptions::new().create(true).append(true).read(true).open(path)?;
        let mut shipped = String::new();
        list.read_to_string(&mut shipped)?;
        Ok(Warehouse { list, shipped: shipped.lines().map(str::to_owned).collect() })
    }

    /// Ships an order, whether or not it was shipped before.
    pub(crate) fn ship(&mut self, token: &str) -> io::Result<()> {
        // One write: a kill leaves the whole line or nothing.
        self.list.write_all(format!("{token}\n").as_bytes())?;
        self.shipped.insert(token.to_owned());
        Ok(())
    }

    pub(crate) fn has_shipped(&self, token: &str) -> bool {
        self.shipped.contains(token)
    }
}
