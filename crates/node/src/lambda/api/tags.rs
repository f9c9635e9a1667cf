//! Tags, and the guarantee that speaks through them.

use std::collections::BTreeMap;

use model::{FunctionSpec, Terms};

use crate::lambda::Error;

/// What the keys of a guarantee's tags start with.
pub const TAG_PREFIX: &str = "takt:";
/// Tags on one function, those of its guarantee included; AWS's number.
pub const MAX_TAGS: usize = 50;
const MAX_KEY_CHARS: usize = 128;
const MAX_VALUE_CHARS: usize = 256;

/// All tags of a function: its owner's and those its guarantee reads as.
///
/// A burst of one, which is what no stated burst means, is not listed: a tool that compares what it set with what it reads
/// finds no difference.
#[must_use]
pub fn of(spec: &FunctionSpec) -> BTreeMap<String, String> {
    let mut tags = spec.tags.clone();
    let pairs = spec.guarantee.as_ref().map(Terms::to_pairs).unwrap_or_default();
    let stated = pairs.into_iter().filter(|(key, value)| !(*key == "burst" && value == "1"));
    tags.extend(stated.map(|(key, value)| (format!("{TAG_PREFIX}{key}"), value)));
    tags
}

/// Adds and replaces tags; those of the guarantee change its terms.
///
/// A new `takt:rate` takes the place of a rate class and the other way round; a new `takt:overflow` that is no queue drops the
/// queue's limit.
pub fn add(spec: &mut FunctionSpec, tags: &BTreeMap<String, String>) -> Result<(), Error> {
    let mut own = spec.tags.clone();
    let mut given: BTreeMap<&str, &str> = BTreeMap::new();
    for (key, value) in tags {
        check_one(key, value)?;
        match key.strip_prefix(TAG_PREFIX) {
            Some(term) => drop(given.insert(term, value)),
            None => drop(own.insert(key.clone(), value.clone())),
        }
    }
    let mut guarantee = spec.guarantee.clone();
    if !given.is_empty() {
        let before = guarantee.as_ref().map(Terms::to_pairs).unwrap_or_default();
        let mut pairs: BTreeMap<&str, &str> = before.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let replaced = |key: &str| match key {
            "rate" | "burst" => given.contains_key("rate_class") || given.contains_key("rate-class"),
            "rate_class" => given.contains_key("rate"),
            "queue_limit" => given.get("overflow").is_some_and(|overflow| *overflow != "queue"),
            _ => false,
        };
        pairs.retain(|key, _| !replaced(key));
        for (key, value) in &given {
            // `-` and `_` are the same in keys; the new spelling must not stand beside the old one.
            let normal = Terms::KEYS.into_iter().find(|known| *known == key.replace('-', "_"));
            pairs.insert(normal.unwrap_or(key), value);
        }
        let terms = Terms::from_pairs(pairs).map_err(|error| invalid(format!("The tags of the guarantee: {error}")))?;
        guarantee = terms;
    }
    let whole = FunctionSpec { tags: own, guarantee, ..spec.clone() };
    check_count(of(&whole).len())?;
    *spec = whole;
    Ok(())
}

/// Removes tags; keys that are not there are passed over, as on AWS. Without `takt:rate` (or `takt:rate_class`) there is no
/// guarantee, so removing it withdraws the whole of it.
pub fn remove(spec: &mut FunctionSpec, keys: &[String]) -> Result<(), Error> {
    let mut guarantee = spec.guarantee.clone();
    let terms: Vec<String> =
        keys.iter().filter_map(|key| key.strip_prefix(TAG_PREFIX)).map(|key| key.replace('-', "_")).collect();
    if terms.iter().any(|key| key == "rate" || key == "rate_class") {
        guarantee = None;
    } else if let Some(before) = guarantee.as_ref().filter(|_| !terms.is_empty()) {
        let pairs = before.to_pairs();
        // A queue's limit goes with the queue.
        let gone = |key: &str| terms.iter().any(|term| term == key || (term == "overflow" && key == "queue_limit"));
        let kept = pairs.iter().filter(|(key, _)| !gone(key)).map(|(key, value)| (*key, value.as_str()));
        guarantee = Terms::from_pairs(kept).map_err(|error| invalid(format!("The tags of the guarantee: {error}")))?;
    }
    spec.guarantee = guarantee;
    spec.tags.retain(|key, _| !keys.contains(key));
    Ok(())
}

fn check_one(key: &str, value: &str) -> Result<(), Error> {
    if key.is_empty() || MAX_KEY_CHARS < key.chars().count() {
        return Err(invalid(format!("A tag key has 1 to {MAX_KEY_CHARS} characters, this one has {}", key.chars().count())));
    }
    if MAX_VALUE_CHARS < value.chars().count() {
        let chars = value.chars().count();
        return Err(invalid(format!("The value of the tag `{key}` has {chars} characters, {MAX_VALUE_CHARS} are allowed")));
    }
    if key.to_ascii_lowercase().starts_with("aws:") {
        return Err(invalid(format!("The tag key `{key}` starts with aws:, which is kept for AWS")));
    }
    Ok(())
}

fn check_count(count: usize) -> Result<(), Error> {
    if MAX_TAGS < count {
        return Err(invalid(format!("{count} tags, {MAX_TAGS} are allowed")));
    }
    Ok(())
}

fn invalid(message: String) -> Error {
    Error::InvalidParameterValue { message }
}

#[cfg(test)]
mod tests {
    use model::{Overflow, Pacing, config};
    use proptest::prelude::*;

    use super::*;

    fn spec() -> FunctionSpec {
        config::parse("name = \"hello\"\nruntime = \"python\"").unwrap()
    }

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn tags_alone_give_change_and_withdraw_a_guarantee() {
        let mut spec = spec();
        add(&mut spec, &map(&[("takt:rate", "30/s"), ("takt:max_run_time", "20ms"), ("team", "a")])).unwrap();
        assert_eq!(of(&spec), map(&[("takt:rate", "30/s"), ("takt:max_run_time", "20ms"), ("team", "a")]));
        add(&mut spec, &map(&[("takt:burst", "5"), ("takt:overflow", "queue"), ("takt:queue-limit", "7")])).unwrap();
        let terms = spec.guarantee.clone().unwrap();
        assert_eq!(terms.overflow, Overflow::Queue { limit: 7 });
        assert!(matches!(terms.pacing, Pacing::Own { burst, .. } if burst.get() == 5));
        add(&mut spec, &map(&[("takt:overflow", "reject")])).unwrap();
        assert_eq!(spec.guarantee.clone().unwrap().overflow, Overflow::Reject);
        add(&mut spec, &map(&[("takt:rate_class", "vr")])).unwrap();
        assert!(matches!(&spec.guarantee.clone().unwrap().pacing, Pacing::Shared(class) if class.as_str() == "vr"));
        add(&mut spec, &map(&[("takt:rate", "5/min")])).unwrap();
        remove(&mut spec, &["takt:max_run_time".to_owned(), "unknown".to_owned()]).unwrap();
        assert_eq!(of(&spec), map(&[("takt:rate", "5/min"), ("takt:overflow", "reject"), ("team", "a")]));
        remove(&mut spec, &["takt:rate".to_owned()]).unwrap();
        assert_eq!((spec.guarantee, spec.tags), (None, map(&[("team", "a")])));
    }

    #[test]
    fn a_wrong_tag_changes_nothing() {
        let mut spec = spec();
        add(&mut spec, &map(&[("takt:rate", "30/s"), ("a", "1")])).unwrap();
        let before = spec.clone();
        let long = "x".repeat(257);
        for (key, value) in
            [("takt:rate", "fast"), ("takt:color", "red"), ("takt:queue_limit", "5"), ("aws:x", "1"), ("", "1"), ("k", &long)]
        {
            let error = add(&mut spec, &map(&[(key, value), ("z", "2")])).unwrap_err();
            assert_eq!(error.code(), "InvalidParameterValueException", "{key}");
            assert_eq!(spec, before, "{key}");
        }
        let many: BTreeMap<String, String> = (0..49).map(|n| (format!("k{n}"), String::new())).collect();
        assert!(add(&mut spec, &many).unwrap_err().to_string().contains("51 tags"));
    }

    proptest! {
        #[test]
        fn what_is_read_can_be_written_again(pairs in proptest::collection::btree_map("(takt:)?(rate|burst|overflow|cpu|deadline|k[0-9])", "(30/s|5|queue|0.5|80ms|)", 0..6)) {
            let mut first = spec();
            if add(&mut first, &pairs).is_ok() {
                let mut second = spec();
                add(&mut second, &of(&first)).unwrap();
                prop_assert_eq!(second, first);
            }
        }
    }
}
