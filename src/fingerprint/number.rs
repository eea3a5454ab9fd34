//! The canonical bytes of serde_json's numbers, which arrive as text under its feature `arbitrary_precision`.

use super::{
    CanonicalWriter, DECIMAL_NEGATIVE, DECIMAL_NON_NEGATIVE, HUGE_NEGATIVE, HUGE_NON_NEGATIVE, LENGTH, STR,
    length,
};
use crate::visit::{Problem, VisitError};

/// Replaces the text of a JSON number, written from `count_at` on, with the encoding of the number.
#[cold]
pub(super) fn put_json_number(writer: &mut CanonicalWriter, count_at: usize) -> Result<(), VisitError> {
    let value = writer.out.split_off(count_at);
    let text = match value.get(LENGTH..) {
        Some([STR, rest @ ..]) => rest.get(LENGTH..).and_then(|text| std::str::from_utf8(text).ok()),
        _ => None,
    };
    let refuse = || VisitError::new(Problem::Number(text.unwrap_or_default().into()));
    let text = text.ok_or_else(refuse)?;
    let number = Decimal::read(text).ok_or_else(refuse)?;
    if number.is_integer && !(number.negative && number.digits.is_empty()) {
        let zeros = usize::try_from(number.exponent).map_err(|_| refuse())?;
        let digits = format!("{}{}", number.digits, "0".repeat(zeros));
        if digits.is_empty() {
            writer.put_integer(false, 0);
        } else if let Ok(magnitude) = digits.parse::<u128>() {
            writer.put_wide_integer(number.negative, magnitude);
        } else {
            writer
                .put_text(if number.negative { HUGE_NEGATIVE } else { HUGE_NON_NEGATIVE }, digits.as_bytes());
        }
        return Ok(());
    }
    let float: f64 = text.parse().map_err(|_| refuse())?;
    let shortest = Decimal::read(&format!("{float:e}"));
    if shortest.is_some_and(|shortest| {
        shortest.digits == number.digits && (shortest.exponent == number.exponent || number.digits.is_empty())
    }) {
        writer.put_f64(float);
        return Ok(());
    }
    writer.put([if number.negative { DECIMAL_NEGATIVE } else { DECIMAL_NON_NEGATIVE }]);
    writer.put(number.exponent.to_le_bytes());
    let digits = number.digits.as_bytes();
    writer.put(length(digits.len())?.to_le_bytes());
    writer.out.extend_from_slice(digits);
    Ok(())
}

/// A decimal number in JSON's syntax: `digits` times ten to the power of `exponent`.
struct Decimal {
    negative: bool,
    /// Without leading and trailing zeros. Empty for zero.
    digits: String,
    exponent: i64,
    /// Whether the text has neither a point nor an exponent.
    is_integer: bool,
}

impl Decimal {
    fn read(text: &str) -> Option<Decimal> {
        let (negative, text) = match text.strip_prefix('-') {
            Some(text) => (true, text),
            None => (false, text),
        };
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, Some(exponent)),
            None => (text, None),
        };
        let (whole, fraction) = match mantissa.split_once('.') {
            Some((whole, fraction)) => (whole, Some(fraction)),
            None => (mantissa, None),
        };
        let is_digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if !is_digits(whole) || !fraction.is_none_or(is_digits) {
            return None;
        }
        let is_integer = fraction.is_none() && exponent.is_none();
        let fraction = fraction.unwrap_or_default();
        let exponent: i64 = exponent.map_or(Ok(0), str::parse).ok()?;
        let all = format!("{whole}{fraction}");
        let digits = all.trim_end_matches('0');
        let zeros = i64::try_from(all.len() - digits.len()).ok()?;
        let exponent = exponent.checked_sub(i64::try_from(fraction.len()).ok()?)?.checked_add(zeros)?;
        let digits = digits.trim_start_matches('0').to_owned();
        Some(Decimal { negative, exponent: if digits.is_empty() { 0 } else { exponent }, digits, is_integer })
    }
}
