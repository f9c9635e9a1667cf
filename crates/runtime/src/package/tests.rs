use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::symlink;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// An entry as hostile as it likes: name, mode with type bits, content.
type Raw<'r> = (&'r [u8], u32, &'r [u8]);

fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & 0_u32.wrapping_sub(crc & 1)))
    })
}

/// A zip of stored entries, without any check.
fn raw_zip(entries: &[Raw<'_>]) -> Vec<u8> {
    let (mut zip, mut directory) = (Vec::new(), Vec::new());
    for (name, mode, content) in entries {
        let start = u32::try_from(zip.len()).unwrap();
        let size = u32::try_from(content.len()).unwrap().to_le_bytes();
        let mut common = vec![20, 0, 0, 8, 0, 0, 0, 0, 0x21, 0];
        common.extend(crc(content).to_le_bytes());
        common.extend([size, size].concat());
        common.extend(u16::try_from(name.len()).unwrap().to_le_bytes());
        common.extend([0, 0]);
        zip.extend([b"PK\x03\x04", common.as_slice(), *name, *content].concat());
        let mode = (mode << 16).to_le_bytes();
        let rest = [[0; 6].as_slice(), &mode, &start.to_le_bytes(), name].concat();
        directory.extend([b"PK\x01\x02\x14\x03", common.as_slice(), &rest].concat());
    }
    let count = u16::try_from(entries.len()).unwrap().to_le_bytes();
    let (size, start) = (u32::try_from(directory.len()).unwrap(), u32::try_from(zip.len()).unwrap());
    zip.extend(directory);
    zip.extend(
        [b"PK\x05\x06\0\0\0\0", [count, count].concat().as_slice(), &size.to_le_bytes(), &start.to_le_bytes(), &[0, 0]].concat(),
    );
    zip
}

const FILE: u32 = 0o100_644;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;

/// Unpacks into a folder named `into` beside nothing else.
fn unpacked(zip: &[u8]) -> (TempDir, Result<PathBuf, Error>) {
    let dir = tempfile::tempdir().unwrap();
    let into = dir.path().join("into");
    let done = unpack(zip, &into);
    (dir, done.map(|()| into))
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

/// Unpacks what is refused; nothing of it may lie anywhere else.
fn refused(entries: &[Raw<'_>]) -> Error {
    let (dir, done) = unpacked(&raw_zip(entries));
    let error = done.unwrap_err();
    let lies = fs::read_dir(dir.path()).unwrap().filter(|entry| entry.as_ref().unwrap().file_name() != "into");
    assert_eq!(lies.count(), 0, "{error}");
    error
}

#[test]
fn a_package_is_unpacked_with_modes_made_plain() {
    let zip = raw_zip(&[
        (b"deep/er/main.py", 0o100_600, b"code"),
        (b"./bootstrap", 0o106_711, b"#!"),
        (b"deep/", 0o040_700, b""),
        (b"link", LINK, b"deep/er/../er/main.py"),
        (b"dangling", LINK, b"no/where"),
        (b"no-mode", 0, b""),
    ]);
    let (_dir, done) = unpacked(&zip);
    let code = done.unwrap();
    assert_eq!(fs::read(code.join("link")).unwrap(), b"code");
    for (path, expected) in
        [("", 0o755), ("deep", 0o755), ("deep/er", 0o755), ("deep/er/main.py", 0o644), ("bootstrap", 0o755), ("no-mode", 0o644)]
    {
        assert_eq!(mode(&code.join(path)), expected, "{path}");
    }
}

#[test]
fn names_that_lead_anywhere_else_are_refused() {
    for name in ["../x", "a/../../x", "/x", "a\\..\\x", "a/..", "..", "a\0b"] {
        let error = refused(&[(name.as_bytes(), FILE, b"x")]);
        assert!(matches!(error, Error::Entry { .. }), "{name}: {error}");
    }
    let (long, deep) = ("x".repeat(256), "x/".repeat(600));
    for name in [long.as_bytes(), deep.as_bytes(), b"\xff"] {
        assert!(matches!(refused(&[(name, FILE, b"x")]), Error::Entry { .. }));
    }
}

#[test]
fn a_path_is_one_thing_once() {
    for pair in [["a", "a"], ["a", "./a"], ["a/b", "a"], ["a", "a/b"], ["a/", "a/"], ["a/b", "a//b"]] {
        let error = refused(&[(pair[0].as_bytes(), FILE, b"1"), (pair[1].as_bytes(), FILE, b"2")]);
        assert!(matches!(error, Error::Duplicate { .. }), "{pair:?}: {error}");
    }
    assert!(matches!(refused(&[(b"l", LINK, b"d"), (b"l/x", FILE, b"")]), Error::Duplicate { .. }));
}

#[test]
fn links_that_lead_out_in_any_number_of_steps_are_refused() {
    for links in [
        &[("l", "/etc/passwd")][..],
        &[("l", "..")],
        &[("a/l", "../../x")],
        &[("d", "."), ("e", "d/..")],
        &[("a/d", "."), ("e", "a/d/../..")],
        &[("x", "y"), ("y", "x")],
        &[("x", "x/x")],
    ] {
        let entries: Vec<Raw<'_>> = links.iter().map(|(name, target)| (name.as_bytes(), LINK, target.as_bytes())).collect();
        let error = refused(&entries);
        assert!(matches!(error, Error::Escapes { .. }), "{links:?}: {error}");
    }
    assert!(matches!(refused(&[(b"l", LINK, b"")]), Error::Entry { .. }));
}

#[test]
fn only_files_directories_and_links_are_unpacked() {
    for kind in [0o020_666, 0o060_666, 0o010_666, 0o140_666] {
        assert!(matches!(refused(&[(b"x", kind, b"")]), Error::Entry { .. }), "{kind:o}");
    }
}

#[test]
fn what_is_no_zip_or_empty_or_too_large_is_refused() {
    let whole = raw_zip(&[(b"a", FILE, b"x")]);
    for bytes in [&b""[..], b"PK", b"not a zip", &whole[..whole.len() - 1], &[&whole[..], b"x"].concat()] {
        assert!(matches!(unpacked(bytes).1, Err(Error::NotAZip { .. })), "{bytes:?}");
    }
    assert!(matches!(unpacked(&raw_zip(&[])).1, Err(Error::Empty)));
    assert!(matches!(unpacked(&vec![0; MAX_ZIP_BYTES + 1]).1, Err(Error::TooLarge { .. })));
    let mut less = whole.clone();
    let entries = whole.len() - 22 + 8;
    less[entries] = 2;
    less[entries + 2] = 2;
    assert!(matches!(unpacked(&less).1, Err(Error::NotAZip { .. })));
    let mut damaged = whole;
    damaged[31] = b'y';
    assert!(matches!(unpacked(&damaged).1, Err(Error::Damaged { .. })));
}

#[test]
fn directories_that_are_only_implied_count_too() {
    let names: Vec<String> = (0..200).map(|number| format!("{number}/{}x", "d/".repeat(400))).collect();
    let entries: Vec<Raw<'_>> = names.iter().map(|name| (name.as_bytes(), FILE, b"".as_slice())).collect();
    assert!(matches!(refused(&entries), Error::TooManyEntries { .. }));
}

#[test]
fn a_bomb_is_cut_off_whatever_it_says_about_its_size() {
    let folder = tempfile::tempdir().unwrap();
    let mut honest = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
    honest.start_file("zeros", zip::write::SimpleFileOptions::default()).unwrap();
    honest.write_all(&vec![0; 1 << 20]).unwrap();
    let honest = honest.finish().unwrap().into_inner();
    let into = folder.path().join("into");
    assert!(matches!(entries::unpack(&honest, &into, 1000), Err(Error::UnpacksTooLarge)));
    assert!(!into.exists(), "refused before anything was written");
    let size = (1_u32 << 20).to_le_bytes();
    let mut lying = honest;
    for at in 0..lying.len() - 4 {
        if lying[at..at + 4] == size {
            lying[at..at + 4].copy_from_slice(&10_u32.to_le_bytes());
        }
    }
    entries::unpack(&lying, &into, 100_000).unwrap_err();
    assert!(fs::metadata(into.join("zeros")).unwrap().len() <= 100_000);
}

#[test]
fn a_provided_function_has_an_executable_bootstrap_at_its_top() {
    for (name, mode, found) in [
        (&b"bootstrap"[..], PROGRAM, None),
        (b"bootstrap", FILE, Some("it is not executable")),
        (b"bootstrap/x", PROGRAM, Some("it is no file")),
        (b"bin/bootstrap", PROGRAM, Some("it is not there")),
    ] {
        let (_dir, done) = unpacked(&raw_zip(&[(name, mode, b"#!")]));
        let said = check_provided(&done.unwrap()).err().map(|error| {
            let Error::NoProgram { found } = error else { panic!("{error}") };
            found
        });
        assert_eq!(said, found);
    }
}

fn a_target() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c", "..", ".", "d"]), 1..6).prop_map(|names| names.join("/"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn links_that_pass_never_lead_out_on_a_real_file_system(
        targets in prop::collection::btree_map(prop::sample::select(vec!["a", "b", "c", "d/a", "d/b", "d/e/c"]), a_target(), 1..6),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap().join("top");
        fs::create_dir_all(top.join("d/e")).unwrap();
        let links: BTreeMap<String, String> = targets.into_iter().map(|(path, target)| (path.to_owned(), target)).collect();
        for (path, target) in &links {
            symlink(target, top.join(path)).unwrap();
        }
        for path in links.keys() {
            if links::stays_inside(path, &links)
                && let Ok(real) = top.join(path).canonicalize()
            {
                prop_assert!(real.starts_with(&top), "{path} leads to {}", real.display());
            }
        }
    }

    #[test]
    fn no_bytes_make_it_panic_or_write_elsewhere(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        cut in any::<prop::sample::Index>(),
        whole in any::<bool>(),
    ) {
        let mut zip = raw_zip(&[(b"a/b", PROGRAM, b"content"), (b"l", LINK, b"a/b"), (b"../", FILE, b""), (b"c", FILE, b"")]);
        let mut plain = raw_zip(&[(b"a/b", PROGRAM, b"content"), (b"l", LINK, b"a/b"), (b"c", FILE, b"")]);
        for bytes in [&mut zip, &mut plain] {
            for (at, value) in &flips {
                let at = at.index(bytes.len());
                bytes[at] = *value;
            }
            if !whole {
                bytes.truncate(cut.index(bytes.len()));
            }
            let (dir, _) = unpacked(bytes);
            prop_assert!(fs::read_dir(dir.path()).unwrap().all(|entry| entry.unwrap().file_name() == "into"));
        }
    }

    #[test]
    fn no_soup_makes_the_directory_reader_panic(
        soup in prop::collection::vec(any::<u8>(), 0..200),
        tail in prop::collection::vec(any::<u8>(), 16..19),
    ) {
        let _ = directory::find(&soup);
        let _ = directory::find(&[soup.as_slice(), b"PK\x05\x06", &tail].concat());
    }
}
