//! Keys, scopes and fingerprints.
//!
//! Every module may use this one. Other systems store tokens, so the token of a key must never change: the tests of
//! this module and `tests/token.rs` pin it.

mod token;

use std::fmt::{self, Write as _};

/// The maximum length of a key, and of a scope, in bytes.
///
/// Longer keys and scopes are refused with [`Error::Key`](crate::Error::Key).
pub const MAX_KEY_BYTES: usize = 1_024;

/// The maximum length of a token, in characters. Most gateways accept idempotency keys of this length.
const MAX_TOKEN_CHARACTERS: usize = 255;

/// An idempotency key: names one operation, optionally within a scope.
///
/// A key is 1 to 1,024 bytes of any value. The scope (a tenant, an account, a consumer) is at most 1,024 bytes and may
/// be empty. The same key in two scopes names two operations. A key without a scope differs from a key with an empty
/// scope.
///
/// Calls of a [`Store`](crate::Store) also accept strings and bytes directly, borrowed or owned: see [`AnyKey`].
/// [`Key::new`] checks nothing. The call that uses an empty or overlong key returns [`Error::Key`](crate::Error::Key).
///
/// Use an id that every retry repeats: of the order, of the message, or the idempotency key that the client sends. For a
/// caller that has none, [`Key::mint`] makes a fresh key, and [`Key::derive`] makes one from the parts of the intent. Both
/// return the text of a key without a scope.
///
/// ```
/// use oncekey::{Fingerprint, Key, Store};
///
/// let store = Store::in_memory()?;
/// let key = Key::new("order-1729").scope("acct_42");
/// store.record(key, Fingerprint::NONE, b"shipped")?;
///
/// assert!(store.get(key)?.is_completed());
/// assert!(store.get("order-1729")?.is_absent(), "without the scope it is a different key");
/// # Ok::<(), oncekey::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key<'a> {
    scope: Option<&'a [u8]>,
    name: &'a [u8],
    /// The name of a step, if this addresses a step of the operation.
    step: Option<&'a [u8]>,
}

impl<'a> Key<'a> {
    /// Makes a key without a scope.
    #[must_use]
    pub fn new<B: AsRef<[u8]> + ?Sized>(name: &'a B) -> Key<'a> {
        Key { scope: None, name: name.as_ref(), step: None }
    }

    /// Returns the same key in `scope`, which replaces any earlier scope.
    #[must_use]
    pub fn scope<B: AsRef<[u8]> + ?Sized>(self, scope: &'a B) -> Key<'a> {
        Key { scope: Some(scope.as_ref()), ..self }
    }

    /// Addresses the [step](crate::Attempt::step) of this name of the key's operation, for an operator.
    ///
    /// [`Store::get`](crate::Store::get), [`Store::compare_and_set`](crate::Store::compare_and_set) and
    /// [`Operation::complete_if`](crate::Operation::complete_if) take such a key. Every other call returns
    /// [`Error::Key`](crate::Error::Key), because only an attempt at the operation begins steps. The
    /// [`token`](Key::token) is that of the step: search the outside world by it.
    ///
    /// A step can be addressed while its operation is unfinished.
    ///
    /// ```
    /// use oncekey::{Expected, Key, Status, Store};
    ///
    /// let store = Store::in_memory()?;
    /// let lost = store.operation("order-7").run(|job| {
    ///     let receipt = job.step("charge").run(|_| Err::<u64, _>("timed out"));
    ///     receipt.map_err(|error| error.to_string())
    /// });
    /// assert!(lost.is_err());
    ///
    /// // The gateway has the charge. The next attempt gets its receipt and goes on after it.
    /// let charge = Key::new("order-7").step("charge");
    /// assert_eq!(charge.token(), "order-7#charge");
    /// let seen = store.get(charge)?;
    /// assert_eq!(seen.status(), Status::InDoubt);
    /// let expected = Expected::Present { status: seen.status(), version: seen.version().expect("it began") };
    /// store.operation(charge).complete_if(expected, &17_u64)?;
    /// assert_eq!(store.get("order-7")?.status(), Status::Stopped, "nothing is left to find out");
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    #[must_use]
    pub fn step<B: AsRef<[u8]> + ?Sized>(self, name: &'a B) -> Key<'a> {
        Key { step: Some(name.as_ref()), ..self }
    }

    /// Returns the name of the step that the key addresses, or `None` if it addresses an operation.
    #[must_use]
    pub fn step_name(&self) -> Option<&'a [u8]> {
        self.step
    }

    /// Returns the key of the operation.
    pub(crate) fn without_step(self) -> Key<'a> {
        Key { step: None, ..self }
    }

    /// Returns the bytes of the key without its scope.
    #[must_use]
    pub fn name(&self) -> &'a [u8] {
        self.name
    }

    /// Returns the key without its scope as text, or `None` if it is not valid UTF-8.
    #[must_use]
    pub fn as_str(&self) -> Option<&'a str> {
        std::str::from_utf8(self.name).ok()
    }

    /// Returns the bytes of the scope, or `None` if the key has no scope.
    #[must_use]
    pub fn scope_name(&self) -> Option<&'a [u8]> {
        self.scope
    }

    /// Returns the key and its scope as one printable string, to pass to another system as its idempotency key.
    ///
    /// A gateway that receives the token (as `Idempotency-Key`, for example) recognizes a repeated request even if this
    /// process has crashed in between.
    ///
    /// The token is the same for every attempt, in every process, file and version of this crate. Different keys have
    /// different tokens. The scope counts: having none differs from having an empty one. A token has at most 255
    /// characters, all of them printable ASCII without spaces.
    ///
    /// # Format
    ///
    /// The token is the key, preceded by the scope and `/` if there is a scope, and followed by `#` and the name of the step
    /// if the key [addresses one](Key::step). In each part, each of `%`, `/`, `#`, `~`, each space and each byte that is not
    /// printable ASCII becomes `%` and two uppercase hexadecimal digits. So a key
    /// of ordinary printable ASCII without a scope is its own token. If the result has more than 255 characters, the token
    /// is `~` and the SHA-256 of that result in lowercase hexadecimal instead.
    ///
    /// # Never reuse a key
    ///
    /// The other system may remember a token for longer than the store remembers its key. Use a key for one operation only,
    /// even after its retention has passed or after [`forget`](crate::Store::forget).
    ///
    /// ```
    /// use oncekey::Key;
    ///
    /// assert_eq!(Key::new("charge:order-1729").token(), "charge:order-1729");
    /// assert_eq!(Key::new("order-1729").scope("acct 42").token(), "acct%2042/order-1729");
    /// assert_eq!(Key::new(&[0xFF, b'/']).scope("").token(), "/%FF%2F");
    /// assert_eq!(Key::new(&"k".repeat(1_000)).token().len(), 65);
    /// ```
    #[must_use]
    pub fn token(&self) -> String {
        self.token_with(|_| {})
    }

    /// Returns a copy of the key that owns its bytes.
    #[must_use]
    pub fn to_owned(&self) -> OwnedKey {
        let boxed = |part: Option<&[u8]>| part.map(Box::from);
        OwnedKey { scope: boxed(self.scope), name: Box::from(self.name), step: boxed(self.step) }
    }

    /// Checks the key of a call that takes no step.
    pub(crate) fn check(&self) -> Result<(), KeyProblem> {
        match self.step {
            Some(_) => Err(KeyProblem::IsStep),
            None => self.check_lengths(),
        }
    }

    /// Checks the key and, if it addresses one, the name of the step.
    pub(crate) fn check_lengths(&self) -> Result<(), KeyProblem> {
        match self.step {
            Some([]) => return Err(KeyProblem::StepEmpty),
            Some(step) if step.len() > MAX_KEY_BYTES => {
                return Err(KeyProblem::StepTooLong { length_bytes: step.len() });
            }
            _ => {}
        }
        if self.name.is_empty() {
            return Err(KeyProblem::Empty);
        }
        if self.name.len() > MAX_KEY_BYTES {
            return Err(KeyProblem::TooLong { length_bytes: self.name.len() });
        }
        match self.scope {
            Some(scope) if scope.len() > MAX_KEY_BYTES => {
                Err(KeyProblem::ScopeTooLong { length_bytes: scope.len() })
            }
            _ => Ok(()),
        }
    }
}

/// Appends bytes as lowercase hexadecimal digits.
pub(crate) fn push_hex(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
}

/// Why a key cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyProblem {
    /// The key is empty. The shortest key has one byte.
    Empty,
    /// The key is longer than [`MAX_KEY_BYTES`].
    #[non_exhaustive]
    TooLong {
        /// The length of the key, in bytes.
        length_bytes: usize,
    },
    /// The scope is longer than [`MAX_KEY_BYTES`].
    #[non_exhaustive]
    ScopeTooLong {
        /// The length of the scope, in bytes.
        length_bytes: usize,
    },
    /// The name of the step is empty. The shortest name has one byte.
    StepEmpty,
    /// The name of the step is longer than [`MAX_KEY_BYTES`].
    #[non_exhaustive]
    StepTooLong {
        /// The length of the name, in bytes.
        length_bytes: usize,
    },
    /// The key [addresses a step](Key::step), and the call is for an operation.
    IsStep,
}

impl fmt::Display for KeyProblem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyProblem::Empty => write!(out, "a key is 1 to 1,024 bytes; this one is empty"),
            KeyProblem::TooLong { length_bytes } => {
                write!(out, "a key is 1 to 1,024 bytes; this one has {length_bytes}")
            }
            KeyProblem::ScopeTooLong { length_bytes } => {
                write!(out, "a scope is at most 1,024 bytes; this one has {length_bytes}")
            }
            KeyProblem::StepEmpty => {
                write!(out, "the name of a step is 1 to 1,024 bytes; this one is empty")
            }
            KeyProblem::StepTooLong { length_bytes } => {
                write!(out, "the name of a step is 1 to 1,024 bytes; this one has {length_bytes}")
            }
            KeyProblem::IsStep => {
                write!(
                    out,
                    "the key addresses a step, and only `get` and compare-and-set take the key of a step"
                )
            }
        }
    }
}

impl<'a, B: AsRef<[u8]> + ?Sized> From<&'a B> for Key<'a> {
    fn from(name: &'a B) -> Key<'a> {
        Key::new(name)
    }
}

impl fmt::Debug for Key<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Key({self})")
    }
}

impl fmt::Display for Key<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(step) = self.step {
            write!(out, "step \"{}\" of ", step.escape_ascii())?;
        }
        match self.scope {
            Some(scope) => {
                write!(out, "key \"{}\" in scope \"{}\"", self.name.escape_ascii(), scope.escape_ascii())
            }
            None => write!(out, "key \"{}\"", self.name.escape_ascii()),
        }
    }
}

/// A [`Key`] that owns its bytes. Leases, completions and errors contain one. An error about a step has the
/// [key of the step](Key::step).
///
/// ```
/// use oncekey::Key;
///
/// let owned = Key::new("order-1729").scope("acct_42").to_owned();
/// assert_eq!(owned.as_key(), Key::new("order-1729").scope("acct_42"));
/// assert_eq!(owned.to_string(), r#"key "order-1729" in scope "acct_42""#);
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct OwnedKey {
    scope: Option<Box<[u8]>>,
    name: Box<[u8]>,
    step: Option<Box<[u8]>>,
}

impl OwnedKey {
    /// Returns the key, borrowed.
    #[must_use]
    pub fn as_key(&self) -> Key<'_> {
        Key { scope: self.scope.as_deref(), name: &self.name, step: self.step.as_deref() }
    }
}

impl<'a> From<&'a OwnedKey> for Key<'a> {
    fn from(owned: &'a OwnedKey) -> Key<'a> {
        owned.as_key()
    }
}

impl fmt::Debug for OwnedKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.as_key(), out)
    }
}

impl fmt::Display for OwnedKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.as_key(), out)
    }
}

/// A borrowed or owned key: the argument type of the calls of a [`Store`](crate::Store).
///
/// Converts from a [`Key`], an [`OwnedKey`], a `String` or `Vec<u8>`, and a reference to anything that is
/// `AsRef<[u8]>`: `"text"`, `&string`, `&bytes`. A borrowed key is not copied.
///
/// ```
/// use oncekey::{Fingerprint, Store};
///
/// let store = Store::in_memory()?;
/// let order = 1_729;
/// // The operation owns its key, so it can be returned or run later.
/// let operation = store.operation(format!("charge:{order}")).scope("acct_42");
/// operation.run(|_| Ok::<_, oncekey::Error>("receipt".to_owned())).expect("a new operation");
/// store.record(format!("ship:{order}"), Fingerprint::NONE, b"")?;
/// assert!(store.get(&format!("ship:{order}"))?.is_completed());
/// # Ok::<(), oncekey::Error>(())
/// ```
#[derive(Clone)]
pub struct AnyKey<'a>(Either<'a>);

#[derive(Clone)]
enum Either<'a> {
    Borrowed(Key<'a>),
    Owned(OwnedKey),
}

impl AnyKey<'_> {
    /// Returns the key, borrowed.
    #[must_use]
    pub fn as_key(&self) -> Key<'_> {
        match &self.0 {
            Either::Borrowed(key) => *key,
            Either::Owned(key) => key.as_key(),
        }
    }
}

impl<'a> AnyKey<'a> {
    /// Returns the same key in `scope`, which replaces any earlier scope.
    #[must_use]
    pub fn scope<B: AsRef<[u8]> + ?Sized>(self, scope: &'a B) -> AnyKey<'a> {
        match self.0 {
            Either::Borrowed(key) => key.scope(scope).into(),
            Either::Owned(key) => OwnedKey { scope: Some(Box::from(scope.as_ref())), ..key }.into(),
        }
    }
}

impl<'a, B: AsRef<[u8]> + ?Sized> From<&'a B> for AnyKey<'a> {
    fn from(name: &'a B) -> AnyKey<'a> {
        Key::new(name).into()
    }
}

impl<'a> From<Key<'a>> for AnyKey<'a> {
    fn from(key: Key<'a>) -> AnyKey<'a> {
        AnyKey(Either::Borrowed(key))
    }
}

impl<'a> From<&'a OwnedKey> for AnyKey<'a> {
    fn from(key: &'a OwnedKey) -> AnyKey<'a> {
        key.as_key().into()
    }
}

impl From<OwnedKey> for AnyKey<'_> {
    fn from(key: OwnedKey) -> Self {
        AnyKey(Either::Owned(key))
    }
}

impl From<String> for AnyKey<'_> {
    fn from(name: String) -> Self {
        name.into_bytes().into()
    }
}

impl From<Vec<u8>> for AnyKey<'_> {
    fn from(name: Vec<u8>) -> Self {
        OwnedKey { scope: None, name: name.into(), step: None }.into()
    }
}

impl fmt::Debug for AnyKey<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.as_key(), out)
    }
}

/// A 128-bit digest of a request. A store uses it to detect a key that is reused with a different request.
///
/// The store saves the fingerprint when an operation begins. A later call with the same key and a different fingerprint
/// fails with [`Error::Mismatch`](crate::Error::Mismatch).
///
/// [`Operation::request`](crate::Operation::request) and [`Store::fingerprint`](crate::Store::fingerprint) compute one with
/// SipHash, keyed by a secret in the file. A client who chooses requests therefore cannot make two of them collide. Such a
/// fingerprint is meaningless to any other store. To use your own digest, call [`Fingerprint::from_bytes`].
///
/// [`Fingerprint::NONE`] means "no request was given" and is compared like any other fingerprint: an operation that
/// began with a request and is retried without one is a mismatch.
///
/// ```
/// use oncekey::{Error, Store};
///
/// let store = Store::in_memory()?;
/// let ten_euros = store.fingerprint(b"amount=10");
/// let six_euros = store.fingerprint(b"amount=6");
/// store.record("charge:1", ten_euros, b"receipt")?;
/// assert!(matches!(store.begin("charge:1", six_euros), Err(Error::Mismatch { .. })));
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Fingerprint([u8; 16]);

impl Fingerprint {
    /// The fingerprint of an operation that has no request: 16 zero bytes.
    pub const NONE: Fingerprint = Fingerprint([0; 16]);

    /// Makes a fingerprint of a digest that the caller computed. If clients choose the requests, the digest must be
    /// that of a collision-resistant hash.
    ///
    /// 16 zero bytes are [`Fingerprint::NONE`].
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Fingerprint {
        Fingerprint(bytes)
    }

    /// Returns the bytes of the digest.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_of_a_step_equals_no_other_token() {
        let key = Key::new("order").scope("a");
        assert_eq!(key.step("reserve #1").token(), "a/order#reserve%20%231");
        let tokens = [
            key.token(),
            key.step("").token(),
            key.step("x").token(),
            Key::new("order#x").scope("a").token(),
            Key::new("order").step("x").token(),
            key.step(&[b'x'; 300]).token(),
            key.step(&[b'x'; 301]).token(),
        ];
        for (at, token) in tokens.iter().enumerate() {
            assert!(token.len() <= MAX_TOKEN_CHARACTERS, "{token}");
            assert!(!tokens[at + 1..].contains(token), "two keys share the token {token}");
        }
    }

    #[test]
    fn the_limits_of_keys_and_scopes_are_inclusive() {
        let longest = [b'k'; MAX_KEY_BYTES];
        let too_long = [b'k'; MAX_KEY_BYTES + 1];
        assert!(Key::new(&longest).scope(&longest).check().is_ok());
        assert!(Key::new("k").scope("").check().is_ok());
        assert!(Key::new("").check().is_err());
        assert!(Key::new(&too_long).check().is_err());
        assert!(Key::new("k").scope(&too_long).check().is_err());
        assert!(Key::new("k").step(&longest).check_lengths().is_ok());
        assert!(Key::new("k").step(&too_long).check_lengths().is_err());
        assert!(Key::new("k").step("").check_lengths().is_err());
        assert_eq!(Key::new("k").step("s").check(), Err(KeyProblem::IsStep));
    }
}
