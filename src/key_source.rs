//! Keys for callers that have none: [`Key::mint`] and [`Key::derive`].
//!
//! Other systems and other programs store these keys, so both forms must never change: the tests of this module pin them.
//! Neither form needs a store or keeps state in the process, so a forked child has nothing to reset.

use std::fmt::Write as _;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::key::{Key, push_hex};

/// What every derived key begins with.
const DERIVED: &str = "derived-";

impl Key<'_> {
    /// Mints a fresh key, to hand to a client that sends it back with its request and with every retry.
    ///
    /// The key is a UUID of version 7 in its usual form: 36 characters, hyphens and lowercase hexadecimal digits. It begins
    /// with the time in ms, so later keys sort after earlier ones. Keys that are minted within one ms are in no particular
    /// order. The other 74 bits are random. The key is its own [`token`](Key::token).
    ///
    /// # When it is right
    ///
    /// A key makes retries harmless only if **every retry uses the same key**. So the side that retries must have the key
    /// before the side effect runs:
    ///
    /// - The client asks for a key, and then sends it with its request. If the answer with the key is lost, the client asks
    ///   for another key. Nothing has happened under the first.
    /// - The program mints the key when it accepts a job, and records it with the job before it acts: in its database, or in
    ///   the message that it puts into a queue. Each attempt at the job reads the key there. The client polls with it.
    ///
    /// **A key that is minted on every retry is no idempotency.** To the store each retry is then a new operation, and the side
    /// effect runs again. Never mint a key in the function that runs the operation. If the client cannot send a key back, use
    /// an id that it already has, such as that of its order or message, or [`derive`](Key::derive) the key.
    ///
    /// # Scopes
    ///
    /// The key has no scope. Add one when you use the key, and the same one in every call. If clients send keys back, use the
    /// account that the client has authenticated as. A client that sends another client's key then names an operation of its
    /// own, and does not get the other client's result. A key is hard to guess, but does not prove who sends it.
    ///
    /// # Clock and forks
    ///
    /// The time is that of the wall clock, not store time, and only the order depends on it. Under a clock that is wrong or
    /// goes back, keys are still different. A time before 1970 counts as 1970. The random bits come from the operating system
    /// in each call, and nothing is kept in the process. So a forked child and its parent mint different keys.
    ///
    /// # Errors
    ///
    /// [`Error::Random`]: the operating system has no random bytes. There is no weaker fallback: if two operations had one key,
    /// the second would get the result of the first.
    ///
    /// ```
    /// use oncekey::{Key, Outcome, Store};
    ///
    /// let store = Store::in_memory()?;
    /// let export = |key: &str| {
    ///     store.operation(key).scope("acct_42").run(|_| Ok::<_, std::io::Error>("export 17".to_owned()))
    /// };
    ///
    /// // The client asks for a key, and keeps it.
    /// let key = Key::mint()?;
    /// // It sends the key with its request. The answer is lost, so it sends the request again, with the same key.
    /// assert_eq!(export(&key)?, Outcome::Done("export 17".to_owned()));
    /// assert_eq!(export(&key)?, Outcome::AlreadyDone("export 17".to_owned()));
    /// // Or it polls.
    /// assert!(store.get(Key::new(&key).scope("acct_42"))?.is_completed());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn mint() -> Result<String> {
        mint_at(SystemTime::now(), |random| getrandom::fill(random).map_err(Into::into))
    }

    /// Derives a key from the parts that identify an intent. The same parts give the same key in every process, store and
    /// version of this crate, and on every platform.
    ///
    /// Use it for an intent that has an identity but no id, such as "the invoice of this customer for this month". Parts can
    /// have any length and contain any bytes. Different lists of parts have different keys: `["a", "bc"]` is not
    /// `["ab", "c"]`, whereas both would be the same string if the program concatenated the parts itself.
    ///
    /// # What to use as parts
    ///
    /// - First the kind of the intent, so that an invoice and a reminder for the same customer and month differ.
    /// - Then everything that distinguishes this intent from others of its kind.
    /// - Nothing that can differ between two attempts, such as the time of the call.
    ///
    /// Pass numbers as text: `&customer.to_string()`. Pass what is not part of the identity, such as the amount, to
    /// [`request`](crate::Operation::request). If a retry then has a different amount, it is a
    /// [`Mismatch`](Error::Mismatch) and not a second invoice.
    ///
    /// # The trap: same payload, different intent
    ///
    /// A customer orders two pounds of coffee on Monday, and two more on Tuesday. If the key is derived from the content of the
    /// order, **both orders have the same key**. The second gets the result of the first and is never shipped. The store
    /// cannot distinguish it from a retry. So do not derive a key from the payload alone. Add an id that the client creates
    /// once for each intent, such as that of the cart or form. If there is none, [`mint`](Key::mint) a key, and let the client
    /// send it back.
    ///
    /// # Scopes
    ///
    /// The key has no scope. Add one when you use the key, and the same one in every call. The scope is not hashed: the same
    /// derived key in two scopes names two operations and has two tokens. A tenant can be the scope or one of the parts.
    ///
    /// # After the retention
    ///
    /// The same parts give the same key for ever. When its retention has passed, the key is absent, and a retry runs the side
    /// effect again. The gateway may still remember the token: see [`Key::token`]. If an intent recurs, put its date or number
    /// into the parts.
    ///
    /// # Format
    ///
    /// The key is `derived-` and the SHA-256 of the parts in lowercase hexadecimal: 72 characters. It is its own
    /// [`token`](Key::token). Each part is hashed as a netstring: its length in bytes as a decimal number, `:`, its bytes and
    /// `,`. Programs in other languages can therefore derive the same key:
    ///
    /// ```text
    /// printf '7:invoice,7:acct_42,7:2026-11,' | sha256sum
    /// ```
    ///
    /// The parts are text or bytes, not any type that is `Serialize` as for a [`request`](crate::Operation::request). In the
    /// fingerprint of a request the names of types and fields count, so a deploy that renames one changes it. A changed
    /// fingerprint is refused, but a changed key would run the side effect again.
    ///
    /// The digest contains no secret: a reader of the key who guesses the parts can confirm the guess.
    ///
    /// ```
    /// use oncekey::{Key, Outcome, Store};
    ///
    /// let store = Store::in_memory()?;
    /// let invoice = |customer: u64, month: &str, cents: u64| {
    ///     store
    ///         .operation(Key::derive(["invoice", &customer.to_string(), month]))
    ///         .request(&cents)
    ///         .run(|_| Ok::<_, std::io::Error>(format!("invoice over {cents}")))
    /// };
    /// assert_eq!(invoice(42, "2026-11", 900)?, Outcome::Done("invoice over 900".to_owned()));
    /// assert_eq!(invoice(42, "2026-11", 900)?, Outcome::AlreadyDone("invoice over 900".to_owned()));
    /// assert!(invoice(42, "2026-11", 1_000).is_err(), "a mismatch: the invoice of this month exists, over another sum");
    ///
    /// assert_eq!(
    ///     Key::derive(["invoice", "acct_42", "2026-11"]),
    ///     "derived-fce4fce9ab29ea614b6832e67327ff4744839b6e03d6e90579cf9e703d3f35c5",
    /// );
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn derive<I>(parts: I) -> String
    where
        I: IntoIterator,
        I::Item: AsRef<[u8]>,
    {
        let mut hasher = Sha256::new();
        let mut length = String::new();
        for part in parts {
            let part = part.as_ref();
            length.clear();
            let _ = write!(length, "{}:", part.len());
            hasher.update(&length);
            hasher.update(part);
            hasher.update(b",");
        }
        let mut key = DERIVED.to_owned();
        push_hex(&mut key, &hasher.finalize());
        key
    }
}

/// Mints a key as [`Key::mint`] does, with the given time and source of random bytes.
///
/// `Uuid::now_v7` is not used: it panics if there are no random bytes, and keeps a counter in the process, which a forked child
/// would continue.
fn mint_at(now: SystemTime, fill: impl FnOnce(&mut [u8]) -> io::Result<()>) -> Result<String> {
    let mut random = [0; 10];
    fill(&mut random).map_err(Error::random)?;
    let since_epoch = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    // Saturates in the year 584,556,019. The UUID has room for 48 bits, which last until the year 10889.
    let ms = u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX);
    Ok(uuid::Builder::from_unix_timestamp_millis(ms, &random).into_uuid().to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::*;
    use crate::error::ErrorKind;

    fn filled_with(byte: u8) -> impl FnOnce(&mut [u8]) -> io::Result<()> {
        move |random| {
            random.fill(byte);
            Ok(())
        }
    }

    #[test]
    fn a_minted_key_is_the_uuid_of_the_specification() {
        // The example of RFC 9562, appendix A.6.
        let at = UNIX_EPOCH + Duration::from_millis(0x017F_22E2_79B0);
        let random = [0x0C, 0xC3, 0x18, 0xC4, 0xDC, 0x0C, 0x0C, 0x07, 0x39, 0x8F];
        let fill = |bytes: &mut [u8]| {
            bytes.copy_from_slice(&random);
            Ok(())
        };
        assert_eq!(mint_at(at, fill).unwrap(), "017f22e2-79b0-7cc3-98c4-dc0c0c07398f");
    }

    #[test]
    fn a_minted_key_sorts_after_those_of_earlier_milliseconds() {
        let at = UNIX_EPOCH + Duration::from_millis(1_764_158_400_000);
        let earlier = mint_at(at, filled_with(0xFF)).unwrap();
        let later = mint_at(at + Duration::from_millis(1), filled_with(0)).unwrap();
        assert!(earlier < later, "{earlier} {later}");
    }

    #[test]
    fn no_time_fails_or_changes_the_length() {
        let before_1970 = mint_at(UNIX_EPOCH - Duration::from_secs(1), filled_with(7)).unwrap();
        assert_eq!(before_1970, mint_at(UNIX_EPOCH, filled_with(7)).unwrap());
        assert_eq!(before_1970, "00000000-0000-7707-8707-070707070707");
        let year_20000 = mint_at(UNIX_EPOCH + Duration::from_secs(568_971_820_800), filled_with(7)).unwrap();
        assert_eq!(year_20000.len(), 36);
    }

    #[test]
    fn no_key_is_minted_without_random_bytes() {
        let error = mint_at(SystemTime::now(), |_| Err(io::Error::from_raw_os_error(5))).unwrap_err();
        assert!(matches!(&error, Error::Random { source } if source.raw_os_error() == Some(5)), "{error}");
        assert_eq!(error.kind(), ErrorKind::World);
        assert!(error.is_retryable());
    }

    #[test]
    fn minted_keys_differ_and_can_be_used_and_sent() {
        let keys: BTreeSet<String> = (0..10_000).map(|_| Key::mint().unwrap()).collect();
        assert_eq!(keys.len(), 10_000);
        for key in &keys {
            assert!(Key::new(key).check().is_ok());
            assert_eq!(Key::new(key).token(), *key);
        }
    }

    #[test]
    fn derived_keys_never_change() {
        // If this test fails, the next retry of every derived key runs its side effect again. The digests are those of
        // `printf '7:invoice,7:acct_42,7:2026-11,' | sha256sum`.
        let long = [b'k'; 10_000];
        let table: [(&[&[u8]], &str); 12] = [
            (&[], "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
            (&[b""], "643d76d2766c1c66bf6df40630304dc3b86aa16ace3849a62e16419d2ed3cce7"),
            (&[b"", b""], "78f3ba77faa1ffc62bd2dd7cc8de66fb1c9112793b99729582731a64ee7ae8e4"),
            (&[b"abc"], "d7863618cccd3bb7b6a1e37bb28ab7d01db8c49467a3e497e630f325b4fabf74"),
            (&[b"a", b"bc"], "d16f37a638ba770eff5e5da16e42c72f44dc44fd4da2eeffa698877ed1fd986c"),
            (&[b"ab", b"c"], "c574c25172ecac17c428975b6e876d2a98a72d84660fc96686f942390b360cd8"),
            (&[b"1:a,"], "930fac96a13621eb43ba4fa56558ced86bc667249b1c0ed19955656bb6b13ffa"),
            (&[b"a"], "9fa1b1c0f0be70b0a0a46e93c1b2cdab5e2820551cb4eff78b59cde1ee014936"),
            (
                &[b"invoice", b"acct_42", b"2026-11"],
                "fce4fce9ab29ea614b6832e67327ff4744839b6e03d6e90579cf9e703d3f35c5",
            ),
            (&[b"\xFF\0"], "7cf85a93c1aab19a4b1c7e2434dc6ccfb574171a2221c8f9e7ebb1d16ab4c90a"),
            (&[&long], "a777dfb2636824dda938f4867a650977429636162a26c21b672827cd8238ce62"),
            (&["caf\u{e9}".as_bytes()], "3d5b60930e5832afcb52eab36bd99d9d2b8bdb938db9c3e1da8547ed319c7a01"),
        ];
        for (parts, digest) in table {
            let key = Key::derive(parts);
            assert_eq!(key, format!("derived-{digest}"), "{:?}", parts.concat().escape_ascii().to_string());
            assert!(Key::new(&key).check().is_ok());
            assert_eq!(Key::new(&key).token(), key);
        }
    }

    #[test]
    fn different_parts_have_different_keys() {
        // All lists of at most three parts of at most two bytes each. The bytes are those that have a meaning in a netstring.
        let mut parts: Vec<Vec<u8>> = vec![vec![]];
        for _ in 0..2 {
            let longer = parts.iter().flat_map(|part| b"1:,a".map(|byte| [&part[..], &[byte]].concat()));
            parts = std::iter::once(vec![]).chain(longer).collect();
        }
        let mut lists: Vec<Vec<&[u8]>> = vec![vec![]];
        for _ in 0..3 {
            let longer =
                lists.iter().flat_map(|list| parts.iter().map(|part| [&list[..], &[&part[..]]].concat()));
            lists = std::iter::once(vec![]).chain(longer).collect();
        }
        let keys: BTreeSet<String> = lists.iter().map(Key::derive).collect();
        assert_eq!((keys.len(), lists.len()), (9_724, 9_724));
    }

    #[test]
    fn only_the_bytes_of_the_parts_count() {
        let expected = Key::derive(["invoice", "42"]);
        let number = 42;
        assert_eq!(Key::derive(["invoice", &number.to_string()]), expected);
        assert_eq!(Key::derive(&["invoice".to_owned(), "42".to_owned()]), expected);
        assert_eq!(Key::derive([&b"invoice"[..], b"42"]), expected);
        assert_eq!(Key::derive(vec![b"invoice".to_vec(), b"42".to_vec()]), expected);
    }
}
