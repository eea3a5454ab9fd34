//! Generates deliveries.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;

use serde_json::Value;

use crate::common::random::Random;
use crate::counts::Counts;

/// Formats a delivery as a line. `payload` is JSON.
pub fn delivery_line(id: &str, event: &str, payload: &str) -> String {
    let (id, event) = (Value::from(id), Value::from(event));
    format!("{{\"delivery\":{id},\"event\":{event},\"payload\":{payload}}}")
}

/// Generated deliveries. As recorded ones do, they arrive repeatedly, late and out of order, and seven times with an id that
/// was used for a different delivery.
pub struct Deliveries {
    /// The lines, as the program reads them.
    pub text: String,
    /// The id of each distinct delivery.
    pub ids: Vec<String>,
    /// The numbers of the lines that reuse an id.
    pub misuses: HashSet<u64>,
    /// The event of each line, by line number.
    pub event_by_line: BTreeMap<u64, String>,
}

impl Deliveries {
    pub const MISUSES: usize = 7;

    pub fn generate(seed: u64, distinct: usize) -> Deliveries {
        let mut random = Random(seed);
        let ids: Vec<String> = (0..distinct).map(|at| format!("{:016x}-{at}", random.next())).collect();
        let event_of = |at: usize| ["push", "issues", "check_run", "release"][at % 4].to_owned();

        // For each line, the index in `ids` of its delivery, and whether the line reuses that id.
        let mut order: Vec<(usize, bool)> = Vec::new();
        for at in 0..distinct {
            order.extend(std::iter::repeat_n((at, false), 1 + random.below(5)));
        }
        for at in (1..order.len()).rev() {
            order.swap(at, random.below(at + 1));
        }
        for _ in 0..Self::MISUSES {
            let of = random.below(distinct);
            let first = order.iter().position(|line| *line == (of, false)).unwrap();
            // Inserts the line anywhere after the first with this id, and often directly after it. There, two threads could
            // process the two lines in the opposite order.
            let distance = if random.below(2) == 0 { 0 } else { random.below(order.len() - first) };
            order.insert(first + 1 + distance, (of, true));
        }

        let mut deliveries =
            Deliveries { text: String::new(), ids, misuses: HashSet::new(), event_by_line: BTreeMap::new() };
        for (number, (at, misuse)) in (1..).zip(order) {
            let mut event = event_of(at);
            let mut payload = format!(
                "{{\"number\": {at}, \"title\": \"caf\u{e9} \\\"{at}\\\"\", \"labels\": [{{}}, null]}}"
            );
            if misuse {
                deliveries.misuses.insert(number);
                if at % 2 == 0 { event.push('d') } else { payload.insert(1, ' ') }
            }
            writeln!(deliveries.text, "{}", delivery_line(&deliveries.ids[at], &event, &payload)).unwrap();
            deliveries.event_by_line.insert(number, event);
        }
        deliveries
    }

    pub fn lines(&self) -> u64 {
        self.event_by_line.len() as u64
    }

    pub fn counts_of_a_first_run(&self) -> Counts {
        let (lines, performed, mismatched) = (self.lines(), self.ids.len() as u64, self.misuses.len() as u64);
        Counts { lines, performed, replayed: lines - performed - mismatched, mismatched, ..Counts::default() }
    }
}
