//! Where a node is found: its address, its data directory and the keys in it.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, Result};
use node::auth::keys::{self, Keys};

/// Where a node listens unless told otherwise.
pub const DEFAULT_URL: &str = "http://127.0.0.1:9000";

/// The data directory: the one given, else `$XDG_DATA_HOME/takt`, else `~/.local/share/takt`.
///
/// `None` when nothing is given and neither variable is set.
#[must_use]
pub fn data_dir(given: Option<PathBuf>) -> Option<PathBuf> {
    choose(given, std::env::var_os("XDG_DATA_HOME"), std::env::var_os("HOME"))
}

fn choose(given: Option<PathBuf>, xdg: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let absolute = |variable: Option<OsString>| variable.map(PathBuf::from).filter(|path| path.is_absolute());
    given
        .or_else(|| absolute(xdg).map(|share| share.join("takt")))
        .or_else(|| absolute(home).map(|home| home.join(".local/share/takt")))
}

/// The keys of the node whose data directory this is.
///
/// Errors where there are none to read: another user's node, another machine's, or one that never started.
pub fn keys(given: Option<PathBuf>) -> Result<Keys> {
    let dir = data_dir(given).context("no data directory: state one with --data-dir, or set HOME")?;
    keys::load(&dir).with_context(|| {
        format!("no keys of a node in {}; name its data directory with --data-dir, or its token with TAKT_TOKEN", dir.display())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_directory_is_the_nearest_one_stated() {
        let path = |text: &str| Some(PathBuf::from(text));
        let variable = |text: &str| Some(OsString::from(text));
        assert_eq!(choose(path("here"), variable("/xdg"), variable("/home/me")), path("here"));
        assert_eq!(choose(None, variable("/xdg"), variable("/home/me")), path("/xdg/takt"));
        assert_eq!(choose(None, variable("not/absolute"), variable("/home/me")), path("/home/me/.local/share/takt"));
        assert_eq!(choose(None, None, None), None);
    }
}
