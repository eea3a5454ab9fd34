//! The orders, what comes of them, and the error of the job.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use oncekey::RunError;
use serde::{Deserialize, Serialize};

/// An order: the input of the job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) id: String,
    pub(crate) cents: u64,
    pub(crate) items: Vec<String>,
}

/// The receipt of a charge.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Charge {
    pub(crate) receipt: usize,
}

/// What the carrier answers. A refusal for good is an answer and not an error: asking again would not change it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Shipment {
    Accepted { parcel: usize },
    Refused(String),
}

/// The result of the job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Fulfilled {
    pub(crate) charge: Charge,
    pub(crate) shipment: Shipment,
}

impl fmt::Display for Fulfilled {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.shipment {
            Shipment::Accepted { parcel } => {
                write!(out, "shipped: receipt {}, parcel {parcel}", self.charge.receipt)
            }
            Shipment::Refused(reason) => {
                write!(out, "refused: {reason}; receipt {} refunded", self.charge.receipt)
            }
        }
    }
}

/// Why the job stopped. It can be run again in each case.
#[derive(Debug)]
pub(crate) enum Failure {
    World(io::Error),
    Store(oncekey::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::World(error)
    }
}

impl From<oncekey::Error> for Failure {
    fn from(error: oncekey::Error) -> Failure {
        Failure::Store(error)
    }
}

/// Lets `?` convert the error of any step.
impl<T, E> From<RunError<T, E>> for Failure
where
    Failure: From<E>,
{
    fn from(error: RunError<T, E>) -> Failure {
        error.flatten()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::World(error) => error.fmt(out),
            Failure::Store(error) => error.fmt(out),
        }
    }
}

impl std::error::Error for Failure {}

/// Reads the file `orders`: on each line an id, an amount and the items.
pub(crate) fn read(directory: &Path) -> io::Result<Vec<Order>> {
    let parse = |line: &str| {
        let mut words = line.split(' ').map(str::to_owned);
        let id = words.next().unwrap_or_default();
        let cents = words.next().unwrap_or_default().parse().map_err(io::Error::other)?;
        Ok(Order { id, cents, items: words.collect() })
    };
    fs::read_to_string(directory.join("orders"))?.lines().map(parse).collect()
}
