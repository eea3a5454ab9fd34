//! The outside world: a stock, a bank, a carrier and a mail server. Each keeps a list of what it did, in one file for all.

use std::cell::{Cell, RefCell};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

use crate::order::{Charge, Order, Shipment};

/// The outside world. Its list is the file `world`: on each line a deed and the token that it was given.
pub(crate) struct World {
    file: RefCell<File>,
    deeds: RefCell<Vec<String>>,
    /// The deed whose answer gets lost, once.
    pub(crate) loses_answer_of: Cell<Option<&'static str>>,
}

impl World {
    pub(crate) fn open(directory: &Path) -> io::Result<World> {
        let path = directory.join("world");
        let mut file = OpenOptions::new().create(true).append(true).read(true).open(path)?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let deeds = text.lines().map(str::to_owned).collect();
        Ok(World { file: RefCell::new(file), deeds: RefCell::new(deeds), loses_answer_of: Cell::new(None) })
    }

    /// Does it, whether or not it was done before. Returns its number in the list.
    fn act(&self, deed: &'static str, token: &str) -> io::Result<usize> {
        let line = format!("{deed} {token}");
        println!("  {line}");
        // One write: a kill leaves the whole line or nothing.
        self.file.borrow_mut().write_all(format!("{line}\n").as_bytes())?;
        self.deeds.borrow_mut().push(line);
        if self.loses_answer_of.get() == Some(deed) {
            self.loses_answer_of.set(None);
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer"));
        }
        Ok(self.deeds.borrow().len())
    }

    /// Returns the number of what was done under the token.
    fn find(&self, deed: &str, token: &str) -> Option<usize> {
        let line = format!("{deed} {token}");
        self.deeds.borrow().iter().position(|done| *done == line).map(|at| at + 1)
    }

    /// Does it unless it was done before, as a service does that takes idempotency keys.
    fn act_once(&self, deed: &'static str, token: &str) -> io::Result<usize> {
        self.find(deed, token).map_or_else(|| self.act(deed, token), Ok)
    }

    pub(crate) fn reserve(&self, token: &str, _item: &str) -> io::Result<usize> {
        self.act_once("reserve", token)
    }

    pub(crate) fn put_back(&self, token: &str, _item: &str) -> io::Result<usize> {
        self.act_once("put-back", token)
    }

    pub(crate) fn mail(&self, token: &str, shipment: &Shipment) -> io::Result<usize> {
        let deed = if matches!(shipment, Shipment::Refused(_)) { "apologize" } else { "mail" };
        self.act_once(deed, token)
    }

    pub(crate) fn charge(&self, token: &str, _cents: u64) -> io::Result<Charge> {
        Ok(Charge { receipt: self.act("charge", token)? })
    }

    pub(crate) fn find_charge(&self, token: &str) -> Option<Charge> {
        self.find("charge", token).map(|receipt| Charge { receipt })
    }

    pub(crate) fn refund(&self, token: &str, charge: &Charge) -> io::Result<usize> {
        self.act("refund", token).map(|_| charge.receipt)
    }

    pub(crate) fn find_refund(&self, token: &str) -> Option<usize> {
        self.find("refund", token)
    }

    /// Ships the order, unless it contains a piano.
    pub(crate) fn ship(&self, token: &str, order: &Order) -> io::Result<Shipment> {
        if order.items.iter().any(|item| item == "piano") {
            self.act("refuse", token)?;
            return Ok(Shipment::Refused("too heavy".to_owned()));
        }
        Ok(Shipment::Accepted { parcel: self.act("ship", token)? })
    }

    pub(crate) fn find_shipment(&self, token: &str) -> Option<Shipment> {
        let refused = self.find("refuse", token).map(|_| Shipment::Refused("too heavy".to_owned()));
        refused.or_else(|| self.find("ship", token).map(|parcel| Shipment::Accepted { parcel }))
    }
}
