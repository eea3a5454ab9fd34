//! Parses the counts that the program prints at the end of a run.

use std::process::Output;

use serde_json::Value;

/// The counts that the program prints as one JSON object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    pub lines: u64,
    pub performed: u64,
    pub replayed: u64,
    pub mismatched: u64,
    pub rejected: u64,
    pub reconciled: u64,
}

impl Counts {
    /// Parses and checks the counts. The program must have succeeded.
    pub fn read(output: &Output) -> Counts {
        assert!(output.status.success(), "{output:?}");
        let printed = text(&output.stdout);
        assert_eq!(printed.lines().count(), 1, "more than one line: {printed}");
        let object: Value = serde_json::from_str(printed).unwrap();
        let count = |name: &str| object[name].as_u64().unwrap();
        let counts = Counts {
            lines: count("lines"),
            performed: count("performed"),
            replayed: count("replayed"),
            mismatched: count("mismatched"),
            rejected: count("rejected"),
            reconciled: count("reconciled"),
        };
        let Counts { lines, performed, replayed, mismatched, rejected, reconciled } = counts;
        assert_eq!(lines, performed + replayed + mismatched + rejected, "{counts:?}");
        assert!(reconciled <= replayed, "{counts:?}");
        counts
    }
}

pub fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).unwrap()
}
