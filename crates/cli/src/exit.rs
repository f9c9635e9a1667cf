//! How a command ends: 0 done, 1 error, 2 usage, 3 refused by admission.

use std::process::ExitCode;

/// The exit codes of `takt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Ok,
    /// Something could not be done, or an audit found a broken promise.
    Error,
    /// The command line was not understood.
    Usage,
    /// Admission said no; nothing was changed.
    Refused,
}

impl Exit {
    /// The number that the shell sees.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Error => 1,
            Self::Usage => 2,
            Self::Refused => 3,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
