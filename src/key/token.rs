//! The text of tokens, which [`Key::token`] describes.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use super::{Key, MAX_TOKEN_CHARACTERS, push_hex};

impl Key<'_> {
    /// Returns the token of a message that this key's operation emitted: the key's token, `~` and the number of the message.
    pub(crate) fn token_of_message(&self, number: u32) -> String {
        self.token_with(|token| {
            let _ = write!(token, "~{number}");
        })
    }

    /// Returns the token of the key, with what `push_suffix` appends to it.
    pub(super) fn token_with(&self, push_suffix: impl FnOnce(&mut String)) -> String {
        let mut token = String::new();
        if let Some(scope) = self.scope {
            push_escaped(&mut token, scope);
            token.push('/');
        }
        push_escaped(&mut token, self.name);
        if let Some(step) = self.step {
            token.push('#');
            push_escaped(&mut token, step);
        }
        push_suffix(&mut token);
        if token.len() <= MAX_TOKEN_CHARACTERS {
            return token;
        }
        let mut digested = String::from("~");
        push_hex(&mut digested, &Sha256::digest(token.as_bytes()));
        digested
    }
}

/// Appends one part of a token, escaped.
///
/// The separators `/`, `#` and `~`, which also begins a digest, are escaped too: only [`Key::token_with`] and its callers
/// write them unescaped. Otherwise two keys could share a token.
fn push_escaped(token: &mut String, part: &[u8]) {
    for &byte in part {
        match byte {
            b'%' | b'/' | b'#' | b'~' => {
                let _ = write!(token, "%{byte:02X}");
            }
            0x21..=0x7E => token.push(char::from(byte)),
            _ => {
                let _ = write!(token, "%{byte:02X}");
            }
        }
    }
}
