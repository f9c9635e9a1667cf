//! The nouns of Takt and what makes each of them valid.
//!
//! Everything here is plain data: no clock, no socket, no decision. Text from outside is parsed once, at the edge, into
//! these types; whoever holds one may trust it.

pub mod config;
mod function;
mod guarantee;
mod id;
mod name;
mod outcome;
mod quantity;
mod rate;
mod time;

pub use function::{FunctionSpec, Outbound, Peer, Runtime, UrlAccess};
pub use guarantee::{
    Burst, CpuShare, DurationText, Guarantee, Level, OnOverrun, Overflow, Pacing, RateClass, Require, TermError, Terms,
};
pub use id::{FunctionKey, IdText, InstanceId, InvocationId, LeaseId, Version};
pub use name::{FunctionName, NameError, RateClassName, Tenant};
pub use outcome::{Cause, Class, End};
pub use quantity::{Memory, QuantityError, brief_duration, format_duration, parse_duration};
pub use rate::{Rate, RateError};
pub use time::Time;

/// Serialises a type as its text, and reads it back through `FromStr`.
macro_rules! serde_as_text {
    ($type:ty) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use serde_as_text;
