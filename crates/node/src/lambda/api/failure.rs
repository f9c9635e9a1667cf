//! What control refuses, in AWS's names and texts.

use std::time::Duration;

use model::FunctionName;

use crate::control::Error as Refused;
use crate::lambda::{Error, Home};
use crate::{code, registry};

/// How long a client waits before it asks a busy or starting node again.
const RETRY: Duration = Duration::from_secs(1);

impl Error {
    /// AWS's answer for what control refused.
    #[must_use]
    pub fn from_control(refused: &Refused, home: &Home) -> Self {
        let arn = |function: &FunctionName| home.arn(function);
        let text = refused.explain();
        match refused {
            Refused::Busy { .. } | Refused::Starting | Refused::Closing => {
                Self::Unavailable { message: text, retry_after: RETRY }
            }
            Refused::Exists { function } => Self::ResourceConflict { message: format!("Function already exist: {function}") },
            Refused::NoFunction { function } => {
                Self::ResourceNotFound { message: format!("Function not found: {}", arn(function)) }
            }
            Refused::InProgress { function } => Self::ResourceConflict {
                message: format!(
                    "The operation cannot be performed at this time. An update is in progress for resource: {}",
                    arn(function)
                ),
            },
            Refused::Revision { .. } => Self::stale_revision(),
            Refused::Code { source: code::Error::Package { source }, .. } => Self::InvalidParameterValue {
                message: format!("Could not unzip uploaded file. Please check your file, then try to upload again. ({source})"),
            },
            Refused::Registry { source: registry::Error::Full } => Self::CodeStorageExceeded { message: text },
            Refused::CannotServe { .. } | Refused::NotReady { .. } | Refused::NeighbourNotReady { .. } => {
                Self::ResourceNotReady { message: text }
            }
            // A guarantee that does not fit, is put wrongly, or cannot be proven now: the text says which and what to do.
            Refused::Refused { .. }
            | Refused::Invalid { .. }
            | Refused::Terms { .. }
            | Refused::NoCode { .. }
            | Refused::NoRateClass { .. }
            | Refused::NoEvidence { .. } => Self::InvalidParameterValue { message: text },
            Refused::RateClassInUse { .. } => Self::ResourceConflict { message: text },
            Refused::Code { source: code::Error::Io { .. }, .. }
            | Refused::Registry {
                source:
                    registry::Error::Corrupt { .. }
                    | registry::Error::RateClassesFull
                    | registry::Error::Store { .. }
                    | registry::Error::Cancelled,
            }
            | Refused::Cancelled => Self::Service { message: text },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_have_aws_s_names_and_texts() {
        let function: FunctionName = "hello".parse().unwrap();
        let check = |refused: Refused, status: u16, code: &str, part: &str| {
            let error = Error::from_control(&refused, &Home::default());
            assert_eq!((error.status().as_u16(), error.code()), (status, code));
            assert!(error.to_string().contains(part), "{error}");
        };
        let arn = "arn:aws:lambda:us-east-1:000000000000:function:hello";
        let named = |make: fn(FunctionName) -> Refused| make(function.clone());
        check(named(|function| Refused::Exists { function }), 409, "ResourceConflictException", "Function already exist: hello");
        let missing = format!("Function not found: {arn}");
        check(named(|function| Refused::NoFunction { function }), 404, "ResourceNotFoundException", &missing);
        let busy = format!("An update is in progress for resource: {arn}");
        check(named(|function| Refused::InProgress { function }), 409, "ResourceConflictException", &busy);
        let stale = named(|function| Refused::Revision { function, found: 2, wanted: 1 });
        check(stale, 412, "PreconditionFailedException", "Revision Id provided does not match");
        let unzip = named(|function| Refused::Code { function, source: code::Error::Package { source: "bad header".into() } });
        check(unzip, 400, "InvalidParameterValueException", "Could not unzip uploaded file");
        check(Refused::Starting, 503, "ServiceUnavailableException", "bringing up");
        let evidence = Refused::NoEvidence { reason: "disk full".to_owned() };
        check(evidence, 400, "InvalidParameterValueException", "disk full");
    }
}
