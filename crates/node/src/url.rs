//! Functions by URL: `/fn/NAME/rest?query` as a function URL event (format 2.0), and results as HTTP answers.
//!
//! The event's paths begin after the function's name, as if the function had a host of its own. A key of the node that came
//! with the request is not shown to the function.

mod event;
mod response;

use model::FunctionName;

use crate::lambda::Error;

pub use event::{Caller, Request, event};
pub use response::{is_dear, response};

/// AWS's text for a caller who may not call a function by its URL.
pub const FORBIDDEN: &str = "Forbidden. For troubleshooting Function URL authorization issues, see: https://docs.aws.amazon.com/lambda/latest/dg/urls-auth.html";

/// What the path of a request by URL names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    pub function: FunctionName,
    /// The rest of the path as sent, beginning with `/`.
    pub path: &'a str,
}

/// Reads the path of a request by URL.
pub fn parse(path: &str) -> Result<Target<'_>, Error> {
    let missing =
        || Error::ResourceNotFound { message: "there is no function at this path; the form is /fn/NAME/…".to_owned() };
    let rest = path.strip_prefix("/fn/").ok_or_else(missing)?;
    let name_bytes = rest.find('/').unwrap_or(rest.len());
    let (name, path) = rest.split_at(name_bytes);
    let function = name.parse().map_err(|_| missing())?;
    Ok(Target { function, path: if path.is_empty() { "/" } else { path } })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_path_names_the_function_and_what_it_is_asked() {
        for (path, rest) in [("/fn/hello", "/"), ("/fn/hello/", "/"), ("/fn/hello/a%20b/c", "/a%20b/c"), ("/fn/hello//", "//")] {
            let target = parse(path).unwrap();
            assert_eq!((target.function.as_str(), target.path), ("hello", rest), "{path}");
        }
        for path in ["/fn/", "/fn", "/fn//a", "/fn/a%20b/", "/fn/../v1", "/v1/"] {
            assert_eq!(parse(path).unwrap_err().status().as_u16(), 404, "{path}");
        }
    }

    proptest! {
        #[test]
        fn no_path_makes_the_parser_panic(path in "(/fn/)?[ -~ä]{0,40}") {
            if let Ok(target) = parse(&path) {
                prop_assert!(target.path.starts_with('/'));
            }
        }
    }
}
