//! Checks the figures of `stats`, and their text against the grammar of OpenMetrics 1.0.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{NONE, START_MS, abandon, acquire, clocked, perform, seconds};
use oncekey::{Begin, Error, Expected, ManualClock, Next, Options, Stats, Store};

/// A metric family as a parser reads it.
#[derive(Debug, Default)]
struct Family {
    kind: String,
    unit: String,
    help: String,
    /// The value by the labels.
    samples: BTreeMap<String, String>,
}

/// Parses an exposition by the rules of the specification, and panics if it breaks one.
fn parse(text: &str) -> BTreeMap<String, Family> {
    let body = text.strip_suffix("# EOF\n").expect("an exposition ends with an EOF line");
    assert!(!body.contains("# EOF") && !text.contains('\r') && !body.contains("\n\n"));
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = String::new();
    let is_name = |name: &str| {
        let mut characters = name.chars();
        let is_letter = |c: char| c.is_ascii_alphabetic() || c == '_' || c == ':';
        characters.next().is_some_and(is_letter) && characters.all(|c| is_letter(c) || c.is_ascii_digit())
    };
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# ") {
            let mut words = rest.splitn(3, ' ');
            let (keyword, name, value) =
                (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
            assert!(is_name(name), "{line}");
            if name != current {
                assert!(!families.contains_key(name), "the lines of a family are together: {line}");
                name.clone_into(&mut current);
            }
            let family = families.entry(name.to_owned()).or_default();
            assert!(family.samples.is_empty(), "metadata comes before the samples: {line}");
            let field = match keyword {
                "TYPE" => &mut family.kind,
                "UNIT" => &mut family.unit,
                "HELP" => &mut family.help,
                _ => panic!("unknown keyword: {line}"),
            };
            assert!(field.is_empty() && !value.is_empty(), "given once: {line}");
            value.clone_into(field);
            continue;
        }
        let (sample, value) = line.rsplit_once(' ').expect("a sample has a value");
        let (name, labels) = sample.split_once('{').unwrap_or((sample, "}"));
        let labels = labels.strip_suffix('}').expect("labels are closed");
        let family = families.get_mut(&current).expect("a sample follows the metadata of its family");
        let expected = if family.kind == "counter" { format!("{current}_total") } else { current.clone() };
        assert_eq!(name, expected, "{line}");
        if !labels.is_empty() {
            let (label, quoted) = labels.split_once('=').unwrap();
            let inner = quoted.strip_prefix('"').and_then(|inner| inner.strip_suffix('"')).unwrap();
            let unescaped = inner.replace("\\\\", "").replace("\\\"", "").replace("\\n", "");
            assert!(is_name(label) && !unescaped.contains(['"', '\\']), "{line}");
        }
        assert!(value.parse::<f64>().unwrap() >= 0.0, "{line}");
        assert!(family.samples.insert(labels.to_owned(), value.to_owned()).is_none(), "twice: {line}");
    }
    for (name, family) in &families {
        assert!(["gauge", "counter"].contains(&&*family.kind), "{name}: {family:?}");
        assert!(!family.help.is_empty() && !family.samples.is_empty(), "{name}: {family:?}");
        assert!(!name.ends_with("_total"), "{name}: only the sample of a counter has the suffix");
        for unit in ["bytes", "seconds"] {
            assert_eq!(name.ends_with(&format!("_{unit}")), family.unit == unit, "{name}: {family:?}");
        }
    }
    families
}

/// A store with a different number for each figure.
fn busy() -> (Store, ManualClock) {
    let clock = ManualClock::new(START_MS);
    let store = clocked(&clock).retention(seconds(1_000)).lease(seconds(100)).open_in_memory().unwrap();
    (store, clock)
}

#[test]
fn each_counter_counts_its_own_event_once() {
    let (store, clock) = busy();
    type Counts = [u64; 9];
    let counts = |store: &Store| -> Counts {
        let s = store.stats();
        [
            s.begun,
            s.completed,
            s.released,
            s.forgotten,
            s.replayed,
            s.mismatched,
            s.fenced,
            s.doubted,
            s.reconciled,
        ]
    };
    let mut before = counts(&store);
    let mut changed_by = |what: &str, expected: &[(usize, u64)], act: &dyn Fn()| {
        act();
        let after = counts(&store);
        let changed: Vec<_> =
            (0..9).filter(|at| after[*at] != before[*at]).map(|at| (at, after[at] - before[at])).collect();
        assert_eq!(changed, expected, "{what}");
        before = after;
    };
    let [begun, completed, released, forgotten, replayed, mismatched, fenced, doubted, reconciled] =
        [0, 1, 2, 3, 4, 5, 6, 7, 8];
    changed_by("perform", &[(begun, 1), (completed, 1)], &|| perform(&store, "a", b"r"));
    changed_by("record", &[(completed, 1)], &|| drop(store.record("b", NONE, b"r").unwrap()));
    changed_by("replay", &[(replayed, 3)], &|| {
        drop(store.record("b", NONE, b"r").unwrap());
        drop(store.begin("a", NONE).unwrap());
        store.replay_into("a", NONE, &mut Vec::new()).unwrap();
    });
    changed_by("get", &[], &|| drop(store.get("a").unwrap()));
    changed_by("mismatch", &[(mismatched, 1)], &|| {
        let other = store.fingerprint(b"other");
        assert!(matches!(store.begin("a", other), Err(Error::Mismatch { .. })));
    });
    changed_by("release", &[(begun, 1), (released, 1)], &|| acquire(&store, "c").release().unwrap());
    changed_by("forget", &[(forgotten, 1)], &|| {
        assert!(store.forget("b").unwrap());
        assert!(!store.forget("b").unwrap());
    });
    changed_by("abandon", &[(begun, 1), (doubted, 1)], &|| abandon(&store, "d"));
    changed_by("resolve", &[(completed, 1), (reconciled, 1)], &|| {
        let Begin::InDoubt(mut doubt) = store.begin("d", NONE).unwrap() else { panic!() };
        doubt.resolve(&17_u64).unwrap();
    });
    changed_by("compare-and-set", &[(begun, 1), (released, 1), (doubted, 1), (reconciled, 1)], &|| {
        abandon(&store, "e");
        let seen = store.get("e").unwrap();
        let expected = Expected::Present { status: seen.status(), version: seen.version().unwrap() };
        store.compare_and_set("e", expected, Next::Absent).unwrap();
    });
    // The deadline passes, another call takes over and begins again, and the first attempt is fenced.
    changed_by(
        "take over",
        &[(begun, 2), (completed, 1), (fenced, 1), (doubted, 1), (reconciled, 1)],
        &|| {
            let mut first = acquire(&store, "f");
            clock.advance(seconds(100));
            let Begin::InDoubt(doubt) = store.begin("f", NONE).unwrap() else { panic!() };
            let mut second = doubt.begin_again().unwrap();
            assert!(matches!(first.complete(b"r"), Err(Error::Fenced { .. })));
            second.complete(b"r").unwrap();
        },
    );
    changed_by("a late completion", &[(begun, 1), (completed, 1)], &|| {
        let mut lease = acquire(&store, "g");
        clock.advance(seconds(100));
        lease.complete(b"r").unwrap();
    });
    changed_by("a compaction", &[], &|| assert!(!store.compact().unwrap().is_stopped));
    let mut batch = store.batch();
    for key in ["h", "i", "h"] {
        batch.record(store.operation(key), b"seen").unwrap();
    }
    drop(batch.commit().unwrap());
    changed_by("a batch", &[(completed, 2), (replayed, 1)], &|| ());
}

#[test]
fn the_gauges_show_what_is_there() {
    let (store, clock) = busy();
    let empty = store.stats();
    assert_eq!((empty.oldest_unfinished_age_ms(), empty.unfinished), (0, 0));
    abandon(&store, "in doubt");
    clock.advance(seconds(7));
    let lease = acquire(&store, "in progress");
    store.record("done", NONE, &[1; 1_000]).unwrap();
    let stats = store.stats();
    assert_eq!((stats.unfinished, stats.in_progress, stats.in_doubt), (2, 1, 1));
    assert_eq!(stats.oldest_unfinished_age_ms(), 7_000);
    assert_eq!((stats.frames - empty.frames, stats.records - empty.records), (3, 3));
    assert!(stats.free_bytes < empty.free_bytes && stats.live_bytes() >= 1_000);
    drop(lease);
    assert_eq!(store.stats().in_progress, 0);
}

#[test]
fn the_gauges_show_stopped_jobs_and_pending_messages() {
    let (store, clock) = busy();
    abandon(&store, "in doubt");
    let stopped = store.operation("job").run(|job| {
        job.step("a").run(|_| Ok::<u64, String>(1)).map_err(|error| error.to_string())?;
        assert_eq!((store.stats().in_progress, store.stats().stopped), (1, 0));
        Err::<u64, _>("later".to_owned())
    });
    assert!(stopped.is_err());
    let emitted = store.operation("emits").emits(1_000).run(|attempt| {
        attempt.emit_bytes("mail", b"payload").map_err(|error| error.to_string())?;
        Ok::<u64, String>(1)
    });
    assert!(emitted.is_ok());
    clock.advance(seconds(7));
    let stats = store.stats();
    assert_eq!((stats.unfinished, stats.in_doubt, stats.stopped, stats.unfinished_steps), (2, 2, 1, 1));
    let families = parse(&stats.to_openmetrics());
    let value = |name: &str| families[&format!("oncekey_{name}")].samples[""].clone();
    assert_eq!(
        (value("stopped"), value("unfinished_steps"), value("messages")),
        ("1".into(), "1".into(), "1".into())
    );
    assert_eq!(value("message_bytes"), stats.message_bytes.to_string());
    let age_ms = stats.oldest_message_age_ms();
    assert!((7_000..7_016).contains(&age_ms), "{age_ms}");
    assert_eq!(value("oldest_message_age_seconds"), format!("{}.{:03}", age_ms / 1_000, age_ms % 1_000));
    store.outbox().next("mail").unwrap().unwrap().ack().unwrap();
    assert_eq!((store.stats().messages, store.stats().oldest_message_age_ms()), (0, 0));
}

#[test]
fn the_text_follows_the_grammar_and_prints_every_figure() {
    let (store, clock) = busy();
    abandon(&store, "in doubt");
    clock.advance(seconds(7));
    store.record("done", NONE, b"").unwrap();
    let stats = store.stats();
    let families = parse(&stats.to_openmetrics());
    let value = |name: &str| families[&format!("oncekey_{name}")].samples[""].clone();
    assert_eq!((value("keys"), value("in_doubt"), value("completed")), ("2".into(), "1".into(), "1".into()));
    assert_eq!((value("oldest_unfinished_age_seconds"), value("poisoned")), ("7.000".into(), "0".into()));
    assert_eq!(value("store_time_seconds"), format!("{}.000", (START_MS + 7_000) / 1_000));
    assert!(families.keys().all(|name| name.starts_with("oncekey_")));

    // Every field is printed under its name, except for three, which are printed as seconds.
    let printed = format!("{stats:?}");
    let fields: BTreeSet<&str> = printed
        .split(['{', ','])
        .filter_map(|part| part.split_once(": "))
        .map(|(name, _)| name.trim())
        .collect();
    assert!(fields.len() > 30, "{fields:?}");
    let missing: Vec<_> =
        fields.iter().filter(|field| !families.contains_key(&format!("oncekey_{field}"))).collect();
    assert_eq!(missing, [&"oldest_message_ms", &"oldest_unfinished_ms", &"store_time_ms"]);
}

#[test]
fn several_stores_are_told_apart_by_an_escaped_label() {
    let stores = [Options::new().open_in_memory().unwrap(), Options::new().open_in_memory().unwrap()];
    stores[1].record("a", NONE, b"").unwrap();
    let stats = stores.each_ref().map(Store::stats);
    let text = Stats::openmetrics_of([("plain", &stats[0]), ("\"quoted\" \\ \n", &stats[1])]);
    let families = parse(&text);
    assert!(families.values().all(|family| family.samples.len() == 2));
    let keys = &families["oncekey_keys"].samples;
    assert_eq!(keys["store=\"plain\""], "0");
    assert_eq!(keys[r#"store="\"quoted\" \\ \n""#], "1");
    assert_eq!(Stats::openmetrics_of([]).lines().filter(|line| !line.starts_with('#')).count(), 0);
}
