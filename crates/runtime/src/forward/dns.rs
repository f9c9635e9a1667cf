//! As much of DNS as it takes to know which name is asked for, and to refuse.

/// A name in a query: lower case, labels joined by dots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    pub name: String,
}

/// A header's bytes.
const HEADER: usize = 12;
/// The longest name, in its dotted form.
const NAME_MAX: usize = 253;
const RESPONSE: u8 = 0x80;
const REFUSED: u8 = 5;

/// Reads the one question of a query. `None`: it is no query with exactly one question in a plain name.
#[must_use]
pub fn question(query: &[u8]) -> Option<Question> {
    let header = query.get(..HEADER)?;
    let is_query = header[2] & RESPONSE == 0;
    let questions = u16::from_be_bytes([header[4], header[5]]);
    if !is_query || questions != 1 {
        return None;
    }
    let mut name = String::new();
    let mut at = HEADER;
    loop {
        let length = usize::from(*query.get(at)?);
        if length == 0 {
            break;
        }
        // A compressed name or a label type of later standards: 63 is the longest label.
        if 63 < length {
            return None;
        }
        let label = query.get(at + 1..at + 1 + length)?;
        if !label.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-' || *byte == b'_') {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        name.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
        if NAME_MAX < name.len() {
            return None;
        }
        at += 1 + length;
    }
    // The type and the class must follow.
    query.get(at + 1..at + 5)?;
    Some(Question { name })
}

/// The answer that a query is refused: the query's own header and question, marked so. `None` where there is no header.
#[must_use]
pub fn refusal(query: &[u8]) -> Option<Vec<u8>> {
    let mut answer = query.get(..HEADER)?.to_vec();
    answer[2] |= RESPONSE;
    answer[3] = (answer[3] & 0xf0) | REFUSED;
    answer[4..].fill(0);
    Some(answer)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn query(labels: &[&str]) -> Vec<u8> {
        let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in labels {
            bytes.push(u8::try_from(label.len()).unwrap());
            bytes.extend_from_slice(label.as_bytes());
        }
        bytes.extend_from_slice(&[0, 0, 1, 0, 1]);
        bytes
    }

    #[test]
    fn the_name_asked_for_is_read_in_lower_case() {
        assert_eq!(question(&query(&["DB", "example", "org"])).unwrap().name, "db.example.org");
        assert_eq!(question(&query(&[])).unwrap().name, "");
    }

    #[test]
    fn a_query_that_could_hide_its_name_has_none() {
        let mut compressed = query(&["a"]);
        compressed[12] = 0xc0;
        let mut response = query(&["a"]);
        response[2] |= RESPONSE;
        let mut two = query(&["a"]);
        two[5] = 2;
        for bytes in [compressed, response, two, query(&["a b"]), query(&["a"])[..18].to_vec(), Vec::new()] {
            assert_eq!(question(&bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn a_refusal_keeps_the_id_and_says_refused() {
        let answer = refusal(&query(&["a"])).unwrap();
        assert_eq!((&answer[..2], answer[2] & RESPONSE, answer[3] & 0xf), (&[0x12, 0x34][..], RESPONSE, REFUSED));
        assert_eq!(refusal(&[0; 11]), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = question(&bytes);
            let _ = refusal(&bytes);
        }
    }
}
