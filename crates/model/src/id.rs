//! Identities. All of them are made from the seeded randomness or counters their makers were given.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::serde_as_text;

/// One demand to run a function; written as a UUID (version 4), the request id that AWS clients see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InvocationId(u128);

impl InvocationId {
    /// Makes an id from 128 random bits; the version and variant bits are set here.
    #[must_use]
    pub const fn from_random(bits: u128) -> Self {
        let version = (bits & !(0xf << 76)) | (0x4 << 76);
        Self((version & !(0x3 << 62)) | (0x2 << 62))
    }

    #[must_use]
    pub const fn as_u128(self) -> u128 {
        self.0
    }

    /// The id as clients see it.
    #[must_use]
    pub fn text(self) -> IdText {
        let mut text = [b'-'; TEXT_BYTES];
        let mut shift = 128;
        for place in (0..TEXT_BYTES).filter(|place| !DASHES.contains(place)) {
            shift -= 4;
            text[place] = b"0123456789abcdef"[usize::try_from(self.0 >> shift & 0xf).unwrap_or_default()];
        }
        IdText(text)
    }

    /// The id with exactly these bits, as read back from a record.
    #[must_use]
    pub const fn from_u128(bits: u128) -> Self {
        Self(bits)
    }
}

impl fmt::Display for InvocationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text().as_str())
    }
}

/// An invocation id as text, without allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdText([u8; TEXT_BYTES]);

const TEXT_BYTES: usize = 36;
/// Where the groups of 8, 4, 4, 4 and 12 digits are parted.
const DASHES: [usize; 4] = [8, 13, 18, 23];

impl IdText {
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default() // digits and dashes: always valid
    }
}

/// A text that is not 32 hexadecimal digits in UUID form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an invocation id; expected a UUID such as 4b0e7a52-7c1e-4d59-8a53-0f6cf1a2b3c4")]
pub struct ParseIdError {
    text: String,
}

impl FromStr for InvocationId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let error = || ParseIdError { text: text.chars().take(64).collect() };
        if text.len() != TEXT_BYTES {
            return Err(error());
        }
        let mut id = 0;
        for (at, byte) in text.bytes().enumerate() {
            let parts = DASHES.contains(&at);
            match char::from(byte).to_digit(16) {
                None if parts && byte == b'-' => {}
                Some(digit) if !parts => id = id << 4 | u128::from(digit),
                Some(_) | None => return Err(error()),
            }
        }
        Ok(Self(id))
    }
}

serde_as_text!(InvocationId);

macro_rules! counter_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

counter_id! {
    /// One warm copy of a function on this node, unique while the node runs.
    InstanceId, "i-"
}
counter_id! {
    /// A function's number on this node while it runs: what the hot path carries instead of the name.
    FunctionKey, "f-"
}
counter_id! {
    /// The right to deliver input to one held instance, unique while the node runs.
    LeaseId, "l-"
}
counter_id! {
    /// One deployed code and configuration of a function, counting from 1.
    Version, "v"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invocation_id_is_a_version_4_uuid_and_reads_back() {
        let id = InvocationId::from_random(u128::MAX);
        assert_eq!(id.to_string(), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(id.to_string().parse(), Ok(id));
        let mixed = InvocationId::from_u128(0x0123_4567_89ab_4def_8123_4567_89ab_cdef);
        assert_eq!(mixed.to_string(), "01234567-89ab-4def-8123-456789abcdef");
        assert_eq!("01234567-89AB-4def-8123-456789abcdef".parse(), Ok(mixed));
        for text in [
            "",
            "ffffffff-ffff-4fff-bfff-fffffffffff",
            "gfffffff-ffff-4fff-bfff-ffffffffffff",
            "+fffffff-ffff-4fff-bfff-ffffffffffff",
            "fffffff-fffff-4fff-bfff-ffffffffffff",
            "ffffffff-ffff-4fff-bfff-fffffffffffff",
        ] {
            assert!(text.parse::<InvocationId>().is_err(), "{text}");
        }
    }
}
