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

    /// The id with exactly these bits, as read back from a record.
    #[must_use]
    pub const fn from_u128(bits: u128) -> Self {
        Self(bits)
    }
}

impl fmt::Display for InvocationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let v = self.0;
        let (a, b, c, d, e) = (v >> 96, (v >> 80) & 0xffff, (v >> 64) & 0xffff, (v >> 48) & 0xffff, v & 0xffff_ffff_ffff);
        write!(f, "{a:08x}-{b:04x}-{c:04x}-{d:04x}-{e:012x}")
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
        let groups: Vec<&str> = text.split('-').collect();
        let hex = |byte: u8| byte.is_ascii_hexdigit();
        let shaped = groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12]);
        if !shaped || !groups.iter().all(|group| group.bytes().all(hex)) {
            return Err(error());
        }
        u128::from_str_radix(&groups.concat(), 16).map(Self).map_err(|_| error())
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
        for text in [
            "",
            "ffffffff-ffff-4fff-bfff-fffffffffff",
            "gfffffff-ffff-4fff-bfff-ffffffffffff",
            "+fffffff-ffff-4fff-bfff-ffffffffffff",
        ] {
            assert!(text.parse::<InvocationId>().is_err(), "{text}");
        }
    }
}
