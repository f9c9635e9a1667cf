//! `X-Amz-Client-Context`: what a client tells a function about itself.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::IgnoredAny;

use super::Error;

/// Bytes of the header's value; AWS's number.
pub const MAX_BYTES: usize = 3583;

/// Decodes the header's value to the JSON object that the runtime is handed in `Lambda-Runtime-Client-Context`.
///
/// The object is given back as the client wrote it, in one line of ASCII, so that it fits a header: white space between
/// tokens becomes a space, other characters than ASCII their `\u` escapes.
pub fn decode(value: &str) -> Result<String, Error> {
    let refused = |message: &str| Error::InvalidRequestContent { message: message.to_owned() };
    if MAX_BYTES < value.len() {
        return Err(refused("Client context must be no more than 3583 bytes when base64-encoded."));
    }
    let invalid = || refused("Client context must be a valid Base64-encoded JSON object.");
    let bytes = STANDARD.decode(value).map_err(|_| invalid())?;
    let text = str::from_utf8(&bytes).map_err(|_| invalid())?;
    serde_json::from_str::<IgnoredAny>(text).map_err(|_| invalid())?;
    if !text.trim_start().starts_with('{') {
        return Err(invalid());
    }
    Ok(ascii_line(text))
}

/// Rewrites valid JSON so that it fits a header's value.
fn ascii_line(json: &str) -> String {
    let mut line = String::with_capacity(json.len());
    for character in json.chars() {
        match character {
            // Control characters in strings are escaped in valid JSON, so these stand between tokens.
            '\n' | '\r' | '\t' => line.push(' '),
            ' '..='~' => line.push(character),
            other => {
                let mut units = [0; 2];
                for unit in other.encode_utf16(&mut units) {
                    line.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_context_reaches_the_runtime_as_one_line_of_ascii() {
        let json = "{\n\t\"custom\": {\"k\": \"ä😀\"}, \"b\": 1.50}";
        assert_eq!(decode(&STANDARD.encode(json)).unwrap(), "{  \"custom\": {\"k\": \"\\u00e4\\ud83d\\ude00\"}, \"b\": 1.50}");
    }

    #[test]
    fn anything_but_a_json_object_is_refused() {
        for json in ["", "1", "[]", "{", "null", "{} {}"] {
            assert_eq!(decode(&STANDARD.encode(json)).unwrap_err().code(), "InvalidRequestContentException", "{json}");
        }
        decode("not base64!").unwrap_err();
        let long = STANDARD.encode(format!("{{\"k\":\"{}\"}}", "x".repeat(3000)));
        assert!(decode(&long).unwrap_err().to_string().contains("3583"));
    }

    proptest! {
        #[test]
        fn what_is_decoded_means_the_same(key in ".{0,20}", text in ".{0,40}") {
            let json = serde_json::json!({ key: text });
            let line = decode(&STANDARD.encode(serde_json::to_string_pretty(&json).unwrap())).unwrap();
            prop_assert!(line.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
            prop_assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), json);
        }

        #[test]
        fn no_value_makes_the_decoder_panic(value in "[ -~]{0,60}") {
            let _ = decode(&value);
        }
    }
}
