//! Checks malformed lines, reused ids, and unusual ids and payloads.

use std::collections::BTreeMap;
use std::fs;

use crate::counts::Counts;
use crate::deliveries::delivery_line;
use crate::run::{Place, reports};

#[test]
fn a_bad_line_is_reported_by_number_and_the_rest_is_processed() {
    let bad: [(&[u8], &str); 14] = [
        (b"", "empty"),
        (b" \t\r", "empty"),
        (b"{\"delivery\":\"a\",\"event\":\"push\",\"payload\":{}", "EOF"),
        (b"no JSON", "expected"),
        (b"{\"delivery\":\"a\",\"event\":\"push\",\"payload\":{}} {}", "trailing"),
        (b"{\"event\":\"push\",\"payload\":{}}", "`delivery`"),
        (b"{\"delivery\":\"a\",\"payload\":{}}", "`event`"),
        (b"{\"delivery\":\"a\",\"event\":\"push\"}", "`payload`"),
        (b"{\"delivery\":17,\"event\":\"push\",\"payload\":{}}", "expected a string"),
        (b"{\"delivery\":\"a\",\"delivery\":\"b\",\"event\":\"push\",\"payload\":{}}", "duplicate"),
        (b"[\"a\",\"push\",{}]", "object"),
        (b"{\"delivery\":\"a\",\"event\":\"push\",\"payload\":\"\xFF\"}", "UTF-8"),
        (b"{\"delivery\":\"\",\"event\":\"push\",\"payload\":{}}", "empty"),
        (b"{\"delivery\":\"a\",\"event\":null,\"payload\":{}}", "expected a string"),
    ];
    let mut deliveries = Vec::new();
    for (at, (line, _)) in bad.iter().enumerate() {
        deliveries.extend_from_slice(line);
        let good = delivery_line(&format!("good-{at}"), "push", "{}");
        deliveries.extend_from_slice(format!("\n{good}\n").as_bytes());
    }
    let place = Place::new();
    fs::write(place.deliveries(), deliveries).unwrap();

    let output = place.output(&["--threads", "2"]);

    assert_eq!(output.status.code(), Some(0), "a bad line failed the run: {output:?}");
    let counts = Counts::read(&output);
    let bad_count = bad.len() as u64;
    assert_eq!(
        counts,
        Counts { lines: 2 * bad_count, performed: bad_count, rejected: bad_count, ..Counts::default() }
    );
    let reports: BTreeMap<u64, String> = reports(&place, &output);
    let numbers: Vec<u64> = reports.keys().copied().collect();
    let expected: Vec<u64> = (0..bad_count).map(|at| 2 * at + 1).collect();
    assert_eq!(numbers, expected);
    for (reason, (_, word)) in reports.values().zip(bad) {
        assert!(reason.contains(word), "{reason} does not contain {word}");
        assert!(!reason.contains("at line 1"), "{reason} gives a second line number");
    }
    assert_eq!(place.whole_entries().len(), bad.len());
}

#[test]
fn a_delivery_id_may_have_at_most_1024_bytes() {
    let place = Place::new();
    let longest = delivery_line(&"i".repeat(1_024), "push", "{}");
    let too_long = delivery_line(&"i".repeat(1_025), "push", "{}");
    place.write_deliveries(&format!("{too_long}\n{longest}\n"));

    let output = place.output(&[]);

    let counts = Counts::read(&output);
    assert_eq!(counts, Counts { lines: 2, performed: 1, rejected: 1, ..Counts::default() });
    assert_eq!(reports(&place, &output).into_keys().collect::<Vec<_>>(), [1]);
}

#[test]
fn a_used_id_with_a_different_event_or_payload_is_refused() {
    let place = Place::new();
    let lines = [
        delivery_line("a", "push", r#"{"n":12345678901234567890123,"s":"x"}"#),
        delivery_line("a", "pull", r#"{"n":12345678901234567890123,"s":"x"}"#),
        delivery_line("a", "push", r#"{"n":12345678901234567890124,"s":"x"}"#),
        delivery_line("a", "push", r#"{"n":12345678901234567890123, "s":"x"}"#),
        delivery_line("a", "push", r#"{"s":"x","n":12345678901234567890123}"#),
        delivery_line("a", "push", "null"),
        delivery_line("a", "push", r#"{"n":12345678901234567890123,"s":"x"}"#),
    ];
    place.write_deliveries(&lines.join("\n"));

    let output = place.output(&["--threads", "4"]);

    let counts = Counts::read(&output);
    assert_eq!(counts, Counts { lines: 7, performed: 1, replayed: 1, mismatched: 5, ..Counts::default() });
    assert_eq!(reports(&place, &output).into_keys().collect::<Vec<_>>(), [2, 3, 4, 5, 6]);
}

#[test]
fn a_redelivery_may_differ_around_its_event_and_payload() {
    let place = Place::new();
    place.write_deliveries(
        "{\"delivery\":\"a\",\"event\":\"push\",\"payload\":{\"payload\":[1,\"}\"]}}\n\
         {\"payload\" : {\"payload\":[1,\"}\"]} ,\"event\":\"p\\u0075sh\", \"delivery\":\"a\",\"again\":{\"payload\":2}}\r\n\
         \u{20}{ \"again\":1, \"delivery\":\"\\u0061\",\"event\":\"push\",\"payload\":\t{\"payload\":[1,\"}\"]}\t}",
    );
    let counts = place.run(&["--threads", "4"]);
    assert_eq!(counts, Counts { lines: 3, performed: 1, replayed: 2, ..Counts::default() });
}

#[test]
fn any_json_value_is_a_payload() {
    let payloads = ["null", "true", "1", "12", "-1.5e400", "\"\"", "\" {\\\"\"", "[]", "[[{}]]", "{}"];
    let lines =
        payloads.iter().enumerate().map(|(at, payload)| delivery_line(&at.to_string(), "push", payload));
    let others = payloads.iter().cycle().skip(1).enumerate();
    let others = others.map(|(at, payload)| delivery_line(&at.to_string(), "push", payload));
    let text: Vec<String> = lines.chain(others.take(payloads.len())).collect();
    let place = Place::new();
    place.write_deliveries(&text.join("\n"));
    let count = payloads.len() as u64;
    assert_eq!(
        place.run(&[]),
        Counts { lines: 2 * count, performed: count, mismatched: count, ..Counts::default() }
    );
}

#[test]
fn an_id_with_quotes_and_line_breaks_is_one_ledger_line() {
    let place = Place::new();
    let id = "a \"b\"\nc\\d \u{1F980}\u{0}";
    let line = delivery_line(id, "push\n", "{}");
    place.write_deliveries(&format!("{line}\n{line}\n"));

    assert_eq!(place.run(&[]), Counts { lines: 2, performed: 1, replayed: 1, ..Counts::default() });
    assert_eq!(place.run(&[]), Counts { lines: 2, replayed: 2, ..Counts::default() });

    let entries = place.whole_entries();
    assert_eq!(entries.len(), 1);
    assert_eq!((&*entries[0].delivery, &*entries[0].event), (id, "push\n"));
}

#[test]
fn an_empty_file_has_no_lines() {
    let place = Place::new();
    place.write_deliveries("");
    assert_eq!(place.run(&[]), Counts::default());
}
