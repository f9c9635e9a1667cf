//! What the seeded tests of this crate share.

/// Stories per test where nobody asks for another number.
const SEEDS: u64 = 1_000;
/// Fewer show too little for the tests that also claim that something happened in them.
const LEAST: u64 = 100;
const MOST: u64 = 1_000_000;

/// Tells one story per seed, as many as `TAKT_SEEDS` says, and names the seed of one that fails. Returns how many there were.
///
/// # Panics
/// When the variable holds anything but a number from 100 to 1,000,000.
pub(crate) fn for_each_seed(mut story: impl FnMut(u64)) -> u64 {
    let text = std::env::var_os("TAKT_SEEDS").map(|text| text.to_string_lossy().into_owned());
    let seeds = seeds(text.as_deref()).unwrap_or_else(|error| panic!("{error}"));
    for seed in 0..seeds {
        let told = Told(seed);
        story(told.0);
    }
    seeds
}

fn seeds(text: Option<&str>) -> Result<u64, String> {
    let Some(text) = text else { return Ok(SEEDS) };
    let number = text.parse().ok().filter(|number| (LEAST..=MOST).contains(number));
    number.ok_or_else(|| format!("TAKT_SEEDS is `{text}`; it takes a number from {LEAST} to {MOST}"))
}

/// Prints the seed of a story that fails.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("failing seed: {}", self.0);
        }
    }
}

#[test]
fn the_number_of_seeds_is_what_was_asked_for_or_an_error() {
    let check = |text, expected| assert_eq!(seeds(text).ok(), expected, "{text:?}");
    check(None, Some(1_000));
    check(Some("20000"), Some(20_000));
    for wrong in ["", "99", "1000001", "-1", "2 000", "many"] {
        check(Some(wrong), None);
    }
}
