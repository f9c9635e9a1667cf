//! Whether the links of a package stay inside it, decided on names alone.

use std::collections::BTreeMap;

/// As many links as Linux follows in one path.
const MAX_HOPS: usize = 40;

/// Whether following the link at `path` (names from the package's top) ever leaves the package, however its parts are
/// linked among each other. A link to nothing is fine as long as it stays inside; a circle is not.
pub(super) fn stays_inside(path: &str, links: &BTreeMap<String, String>) -> bool {
    let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    let mut place: Vec<&str> = parent.split('/').filter(|name| !name.is_empty()).collect();
    let mut ahead: Vec<&str> = Vec::new();
    let mut hops = 0;
    let mut follow = |target: &'_ str| {
        hops += 1;
        hops <= MAX_HOPS && !target.starts_with('/')
    };
    let Some(target) = links.get(path) else { return true };
    if !follow(target) {
        return false;
    }
    ahead.extend(target.split('/').rev());
    while let Some(name) = ahead.pop() {
        match name {
            "" | "." => {}
            ".." => {
                if place.pop().is_none() {
                    return false;
                }
            }
            name => {
                place.push(name);
                if let Some(target) = links.get(&place.join("/")) {
                    if !follow(target) {
                        return false;
                    }
                    place.pop();
                    ahead.extend(target.split('/').rev());
                }
            }
        }
    }
    true
}
