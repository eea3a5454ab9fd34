//! Parsing a line of the input into a delivery.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde::Deserialize;
use serde::de::IgnoredAny;

/// One delivery, as it arrived.
#[derive(Debug)]
pub(crate) struct Delivery {
    /// The number of its line, from 1.
    pub(crate) line: u64,
    pub(crate) id: String,
    pub(crate) event: String,
    /// The text of the payload, byte for byte. A redelivery repeats the same bytes, because a signature over the bytes has to
    /// remain valid. Parsed values could compare equal although the texts differ, for example two long integers that round
    /// to the same floating-point number.
    pub(crate) payload: String,
}

impl Delivery {
    /// Parses line `line` of the input. An error describes the problem without the line number.
    pub(crate) fn parse(line: u64, bytes: &[u8]) -> Result<Delivery, String> {
        #[derive(Deserialize)]
        struct Envelope {
            delivery: String,
            event: String,
            #[serde(rename = "payload")]
            _payload: IgnoredAny,
        }

        if bytes.trim_ascii().is_empty() {
            return Err("the line is empty".into());
        }
        let text = str::from_utf8(bytes).map_err(|error| format!("not UTF-8: {error}"))?;
        let Envelope { delivery: id, event, .. } =
            serde_json::from_str(text).map_err(|error| reason_without_line(&error))?;
        // serde also accepts an array of three values as the struct. An array has no member `payload`, so it is refused here.
        let payload = member_text(text, "payload").ok_or("not a JSON object")?;
        Ok(Delivery { line, id, event, payload: payload.to_owned() })
    }

    /// Returns the index of the thread that handles this delivery and all others with the same id.
    pub(crate) fn thread_index(&self, threads: usize) -> usize {
        let mut hasher = DefaultHasher::new();
        self.id.hash(&mut hasher);
        // The remainder is less than `threads`, so the conversion cannot fail.
        usize::try_from(hasher.finish() % threads as u64).unwrap_or_default()
    }
}

/// Returns the reason of a parse error without "line 1". `serde_json` parses one line only, and the caller prints the number
/// of that line in the file.
fn reason_without_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let position = format!(" at line {} column {}", error.line(), error.column());
    match text.strip_suffix(&position) {
        Some(reason) => format!("{reason} (column {})", error.column()),
        None => text,
    }
}

/// Returns the unparsed text of the member `name` of a JSON object.
///
/// `serde_json::value::RawValue` does this too, but needs a feature of that crate that oncekey does not enable.
fn member_text<'text>(object: &'text str, name: &str) -> Option<&'text str> {
    let mut rest = object.trim_start().strip_prefix('{')?;
    loop {
        let (key, _) = next_value::<String>(&mut rest)?;
        rest = rest.trim_start().strip_prefix(':')?;
        let (_, text) = next_value::<IgnoredAny>(&mut rest)?;
        if key == name {
            return Some(text);
        }
        rest = rest.trim_start().strip_prefix(',')?;
    }
}

/// Takes one JSON value off the front of `rest`. Returns the value and its text.
fn next_value<'text, T: Deserialize<'text>>(rest: &mut &'text str) -> Option<(T, &'text str)> {
    let mut values = serde_json::Deserializer::from_str(rest).into_iter();
    let value = values.next()?.ok()?;
    let (text, after) = rest.split_at(values.byte_offset());
    *rest = after;
    Some((value, text.trim_start()))
}
