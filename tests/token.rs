//! Checks that tokens are stable, printable, and different for different keys.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

use oncekey::{Key, MAX_KEY_BYTES};
use proptest::prelude::*;

/// Other systems store tokens. If a token changed, they would treat a retry as a new request.
#[test]
fn tokens_never_change() {
    let long = "k".repeat(255);
    for (scope, name, token) in [
        (None, &b"charge:order-1729"[..], "charge:order-1729"),
        (None, b"!\"$&'()*+,-.:;<=>?@[\\]^_`{|}", "!\"$&'()*+,-.:;<=>?@[\\]^_`{|}"),
        (None, b"%/#~", "%25%2F%23%7E"),
        (None, b"\x00\x1f \x7f\x80\xff", "%00%1F%20%7F%80%FF"),
        (None, "caf\u{e9}".as_bytes(), "caf%C3%A9"),
        (Some(&b""[..]), b"k", "/k"),
        (Some(b"acct_42"), b"order-1729", "acct_42/order-1729"),
        (Some(b"a/b"), b"c", "a%2Fb/c"),
        (Some(b"a"), b"b/c", "a/b%2Fc"),
        (None, long.as_bytes(), &long),
        // `printf 'k%.0s' {1..256} | sha256sum`
        (
            None,
            "k".repeat(256).as_bytes(),
            "~ce16fe78208a4e93f7158e62393680e025b2ad584f4e875ce903a654bb74cf93",
        ),
    ] {
        let key = Key::new(name);
        let key = scope.map_or(key, |scope| key.scope(scope));
        assert_eq!(key.token(), token, "{key}");
        assert_eq!(key.to_owned().as_key().token(), token, "{key}, owned");
    }
}

/// Generates names of bytes with a meaning in a token, of bytes that are escaped, and of ordinary bytes.
fn part(lengths: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
    let bytes = prop::sample::select(b"%/#~2Ff \x00\xffa".to_vec());
    prop::collection::vec(bytes, lengths)
}

fn key() -> impl Strategy<Value = (Option<Vec<u8>>, Vec<u8>)> {
    let short = (prop::option::of(part(0..4)), part(1..5));
    // The lengths include the longest token that is not a hash.
    let long = (prop::option::of(part(0..130)), part(60..140));
    prop_oneof![4 => short, 1 => long]
}

fn token(scope: Option<&[u8]>, name: &[u8]) -> String {
    let key = Key::new(name);
    scope.map_or(key, |scope| key.scope(scope)).token()
}

fn check_printable(token: &str) {
    assert!(!token.is_empty() && token.len() <= 255, "{} characters", token.len());
    assert!(token.bytes().all(|byte| byte.is_ascii_graphic()), "{token:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn two_keys_never_share_a_token(one in key(), other in key()) {
        let tokens = [&one, &other].map(|(scope, name)| token(scope.as_deref(), name));
        tokens.iter().for_each(|token| check_printable(token));
        prop_assert_eq!(one == other, tokens[0] == tokens[1], "{:?}", tokens);
    }

    #[test]
    fn every_key_has_a_printable_token(scope in prop::option::of(prop::collection::vec(any::<u8>(), 0..200)),
                                       name in prop::collection::vec(any::<u8>(), 1..200)) {
        check_printable(&token(scope.as_deref(), &name));
    }
}

/// Compares all keys of at most two bytes in the name and in the scope, because random keys rarely collide.
#[test]
fn no_two_short_keys_share_a_token() {
    let alphabet = *b"%/#~2F\xffa";
    let mut parts: Vec<Vec<u8>> = vec![vec![]];
    for _ in 0..2 {
        let longer = parts.iter().flat_map(|part| alphabet.map(|byte| [&part[..], &[byte]].concat()));
        parts = std::iter::once(vec![]).chain(longer).collect();
    }
    let mut seen = std::collections::HashMap::new();
    for name in &parts {
        for scope in std::iter::once(None).chain(parts.iter().map(Some)) {
            let scope = scope.map(|scope| &scope[..]);
            if let Some(other) = seen.insert(token(scope, name), (scope, name)) {
                panic!("{other:?} and {:?} share a token", (scope, name));
            }
        }
    }
    assert!(seen.len() > 5_000, "{}", seen.len());
}

#[test]
fn the_longest_keys_have_different_tokens() {
    let name = [b'k'; MAX_KEY_BYTES];
    let mut other = name;
    other[MAX_KEY_BYTES - 1] = b'l';
    let tokens = [
        token(None, &name),
        token(None, &other),
        token(Some(b""), &name),
        token(Some(&name), &name),
        token(Some(&name), &other),
    ];
    for (at, token) in tokens.iter().enumerate() {
        check_printable(token);
        assert!(!tokens[at + 1..].contains(token), "{token}");
    }
}
