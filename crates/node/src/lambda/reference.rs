//! How clients name functions: `hello`, `hello:$LATEST`, `123456789012:function:hello`, a full ARN.

use model::FunctionName;

use super::{Error, Home};

/// The longest reference AWS's clients send.
const MAX_BYTES: usize = 256;
const PATTERN: &str = "(arn:(aws[a-zA-Z-]*)?:lambda:)?([a-z]{2}(-gov)?-[a-z]+-\\d{1}:)?(\\d{12}:)?(function:)?([a-zA-Z0-9-_]+)(:(\\$LATEST|[a-zA-Z0-9-_]+))?";

/// Which version of a function is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Qualifier {
    /// None was named: the one that serves.
    Unqualified,
    /// `$LATEST`, the same one.
    Latest,
    /// A published version or an alias; this node has neither yet.
    Other(String),
}

/// A function as a client named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionRef {
    pub name: FunctionName,
    pub qualifier: Qualifier,
}

impl FunctionRef {
    /// Reads a decoded reference and the `Qualifier` of the query, which may repeat but not contradict it.
    pub fn parse(text: &str, query_qualifier: Option<&str>) -> Result<Self, Error> {
        let invalid = || Error::pattern(text, "functionName", PATTERN);
        if MAX_BYTES < text.len() {
            return Err(Error::too_long(text, "functionName", MAX_BYTES));
        }
        let (name, own) = split(text).ok_or_else(invalid)?;
        let name: FunctionName = name.parse().map_err(|_| invalid())?;
        let named = own.map(|text| qualifier(text).ok_or_else(invalid)).transpose()?;
        let asked = match query_qualifier {
            None => None,
            Some(text) => Some(qualifier(text).ok_or_else(|| Error::pattern(text, "qualifier", "(|[a-zA-Z0-9$_-]+)"))?),
        };
        let qualifier = match (named, asked) {
            (Some(named), Some(asked)) if named != asked => {
                let message = "The derived qualifier from the function name does not match the specified qualifier.";
                return Err(Error::InvalidParameterValue { message: message.to_owned() });
            }
            (Some(qualifier), _) | (None, Some(qualifier)) => qualifier,
            (None, None) => Qualifier::Unqualified,
        };
        Ok(Self { name, qualifier })
    }

    /// The function's name, when it is the serving version that is meant; else AWS's answer that there is no such version or
    /// alias.
    pub fn serving(&self, home: &Home) -> Result<&FunctionName, Error> {
        match &self.qualifier {
            Qualifier::Unqualified | Qualifier::Latest => Ok(&self.name),
            Qualifier::Other(other) => {
                let arn = home.arn(&self.name);
                let number = other.bytes().all(|byte| byte.is_ascii_digit());
                let what = if number { "Function not found" } else { "Cannot find alias arn" };
                Err(Error::ResourceNotFound { message: format!("{what}: {arn}:{other}") })
            }
        }
    }

    /// Refuses any qualifier, for operations on a function as a whole.
    pub fn unqualified(&self) -> Result<&FunctionName, Error> {
        match &self.qualifier {
            Qualifier::Unqualified => Ok(&self.name),
            Qualifier::Latest | Qualifier::Other(_) => {
                let message = "This operation is permitted on Lambda functions only. Aliases and versions do not support this operation. Please specify either a function name or an unqualified function ARN.";
                Err(Error::InvalidParameterValue { message: message.to_owned() })
            }
        }
    }
}

fn qualifier(text: &str) -> Option<Qualifier> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    match text {
        "$LATEST" => Some(Qualifier::Latest),
        _ if (1..=128).contains(&text.len()) && text.bytes().all(allowed) => Some(Qualifier::Other(text.to_owned())),
        _ => None,
    }
}

/// The name and the qualifier of a reference in any of its forms.
fn split(text: &str) -> Option<(&str, Option<&str>)> {
    let rest = match text.strip_prefix("arn:") {
        Some(rest) => {
            let (partition, rest) = rest.split_once(':')?;
            let known =
                partition.strip_prefix("aws").is_some_and(|tail| tail.bytes().all(|b| b.is_ascii_alphabetic() || b == b'-'));
            // A full ARN states region, account and kind.
            let rest = rest.strip_prefix("lambda:").filter(|_| known)?;
            let (region, after_region) = rest.split_once(':')?;
            let (account, after_account) = after_region.split_once(':')?;
            if !is_region(region) || !is_account(account) || !after_account.starts_with("function:") {
                return None;
            }
            rest
        }
        None => text,
    };
    let rest = strip(rest, is_region);
    let rest = strip(rest, is_account);
    // A function may itself be called `function`; then nothing follows, or a qualifier that only an ARN could have.
    let rest = rest.strip_prefix("function:").unwrap_or(rest);
    match rest.split_once(':') {
        Some((name, qualifier)) => Some((name, Some(qualifier))),
        None => Some((rest, None)),
    }
}

fn strip(text: &str, accepts: fn(&str) -> bool) -> &str {
    match text.split_once(':') {
        Some((head, rest)) if accepts(head) => rest,
        _ => text,
    }
}

/// `eu-west-1`, `us-gov-east-1`.
fn is_region(text: &str) -> bool {
    let mut parts = text.rsplit('-');
    let number = parts.next().is_some_and(|part| part.len() == 1 && part.bytes().all(|byte| byte.is_ascii_digit()));
    let words = text.split('-').count();
    number && (3..=4).contains(&words) && parts.all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase()))
}

fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(text: &str, name: &str, qualifier: &Qualifier) {
        let reference = FunctionRef::parse(text, None).unwrap();
        assert_eq!((reference.name.as_str(), &reference.qualifier), (name, qualifier), "{text}");
    }

    #[test]
    fn every_form_of_a_reference_names_the_function() {
        let seven = Qualifier::Other("7".to_owned());
        check("hello", "hello", &Qualifier::Unqualified);
        check("hello:$LATEST", "hello", &Qualifier::Latest);
        check("hello:7", "hello", &seven);
        check("function:hello", "hello", &Qualifier::Unqualified);
        check("123456789012:function:hello", "hello", &Qualifier::Unqualified);
        check("123456789012:function:hello:7", "hello", &seven);
        check("eu-west-1:123456789012:function:hello", "hello", &Qualifier::Unqualified);
        check("arn:aws:lambda:eu-west-1:123456789012:function:hello", "hello", &Qualifier::Unqualified);
        check("arn:aws-us-gov:lambda:us-gov-east-1:123456789012:function:hello:$LATEST", "hello", &Qualifier::Latest);
        check("function", "function", &Qualifier::Unqualified);
    }

    #[test]
    fn what_is_no_reference_is_refused_with_the_pattern() {
        for text in [
            "",
            "a b",
            "a/b",
            "hello:",
            "hello:$OLD",
            "hello:a:b",
            "arn:aws:s3:eu-west-1:123456789012:function:hello",
            "arn:aws:lambda:eu-west-1:123456789012:layer:hello",
            "arn:aws:lambda:eu-west-1:function:hello",
            "arn:evil:lambda:eu-west-1:123456789012:function:hello",
            "../hello",
            &"x".repeat(65),
            &"x".repeat(300),
        ] {
            let error = FunctionRef::parse(text, None).unwrap_err();
            assert_eq!(error.code(), "ValidationException", "{text}");
        }
    }

    #[test]
    fn a_qualifier_may_be_repeated_but_not_contradicted() {
        assert_eq!(FunctionRef::parse("hello:$LATEST", Some("$LATEST")).unwrap().qualifier, Qualifier::Latest);
        let error = FunctionRef::parse("hello:7", Some("$LATEST")).unwrap_err();
        assert_eq!(error.code(), "InvalidParameterValueException");
        assert_eq!(FunctionRef::parse("hello", Some("")).unwrap_err().code(), "ValidationException");
    }

    #[test]
    fn versions_and_aliases_are_not_found() {
        let home = Home::default();
        for (text, message) in [
            ("hello:7", "Function not found: arn:aws:lambda:us-east-1:000000000000:function:hello:7"),
            ("hello:live", "Cannot find alias arn: arn:aws:lambda:us-east-1:000000000000:function:hello:live"),
        ] {
            let error = FunctionRef::parse(text, None).unwrap().serving(&home).unwrap_err();
            assert_eq!(error, Error::ResourceNotFound { message: message.to_owned() });
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,80}", query in proptest::option::of(".{0,10}")) {
            let _ = FunctionRef::parse(&text, query.as_deref());
        }

        #[test]
        fn an_arn_reads_back_as_its_function(name in "[a-zA-Z0-9_-]{1,64}") {
            let home = Home::default();
            let arn = home.arn(&name.parse().unwrap());
            let read = FunctionRef::parse(&arn, None).unwrap();
            prop_assert_eq!(read.name.as_str(), name);
        }
    }
}
