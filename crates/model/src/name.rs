//! Names that appear in paths, files and records.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::serde_as_text;

/// Why a text cannot be a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` cannot be a {what}: use 1 to {max} of the characters a-z, A-Z, 0-9, `-` and `_`")]
pub struct NameError {
    what: &'static str,
    max: usize,
    text: String,
}

fn valid(text: &str, what: &'static str, max: usize) -> Result<Arc<str>, NameError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if (1..=max).contains(&text.len()) && text.bytes().all(allowed) {
        Ok(text.into())
    } else {
        let text = text.chars().take(2 * max).collect();
        Err(NameError { what, max, text })
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                valid(text, $what, $max).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        serde_as_text!($name);
    };
}

name! {
    /// The name of a function: 1 to 64 of `a-zA-Z0-9-_`, AWS's rule.
    FunctionName, "function name", 64
}
name! {
    /// The owner of functions, the unit of fair sharing.
    Tenant, "tenant name", 64
}
name! {
    /// The name of a rate that several functions share.
    RateClassName, "rate class name", 64
}

impl Default for Tenant {
    fn default() -> Self {
        Self("default".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_holds_nothing_that_a_path_or_header_could_misread() {
        assert_eq!("hello-World_2".parse::<FunctionName>().unwrap().as_str(), "hello-World_2");
        let long = "x".repeat(65);
        for text in ["", "a/b", "..", "a b", "a\n", "ä", &long] {
            assert!(text.parse::<FunctionName>().is_err(), "{text:?}");
        }
    }
}
