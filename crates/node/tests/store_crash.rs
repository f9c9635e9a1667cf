//! `kill -9` in a loop of acknowledged writes: whatever was acknowledged is there, whole.

#[cfg(test)]
mod crash {
    use std::io::{BufRead, BufReader, Write};
    use std::path::Path;
    use std::process::{Command, Stdio};

    use journal::store::{Batch, Store};
    use takt_node::store::Sqlite;

    const CHILD: &str = "TAKT_STORE_CRASH_CHILD";
    const WRITERS: usize = 3;

    /// The child's part: writes pairs for ever and prints the number of each after it was acknowledged.
    fn write_until_killed(path: &Path, round: usize) {
        let store = Sqlite::open(path).unwrap();
        std::thread::scope(|scope| {
            for writer in 0..WRITERS {
                let store = &store;
                scope.spawn(move || {
                    for number in 0_usize.. {
                        let name = format!("{round}/{writer}/{number}");
                        let batch = Batch::new().put(format!("left/{name}"), vec![1]).put(format!("right/{name}"), vec![2]);
                        store.apply(batch).unwrap();
                        store.sync().unwrap();
                        let mut out = std::io::stdout().lock();
                        writeln!(out, "\nacknowledged {name}").unwrap();
                        out.flush().unwrap();
                    }
                });
            }
        });
    }

    fn acknowledged_before_kill(folder: &Path, round: usize) -> Vec<String> {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["crash::nothing_acknowledged_is_lost_to_a_kill", "--exact", "--nocapture"])
            .env(CHILD, format!("{round}:{}", folder.join("store.sqlite3").display()))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut names = Vec::new();
        while names.len() < 20 + 7 * round {
            let line = lines.next().expect("the child writes until it is killed").unwrap();
            names.extend(line.strip_prefix("acknowledged ").map(str::to_owned));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What the child had printed by then was acknowledged too.
        names.extend(lines.map_while(Result::ok).filter_map(|line| line.strip_prefix("acknowledged ").map(str::to_owned)));
        names
    }

    #[test]
    fn nothing_acknowledged_is_lost_to_a_kill() {
        if let Ok(task) = std::env::var(CHILD) {
            let (round, path) = task.split_once(':').unwrap();
            write_until_killed(Path::new(path), round.parse().unwrap());
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        for round in 0..4 {
            let mut names = acknowledged_before_kill(folder.path(), round);
            // A last line may be cut off by the kill.
            names.retain(|name| name.split('/').count() == 3);
            let store = Sqlite::open(&folder.path().join("store.sqlite3")).unwrap();
            let snapshot = store.snapshot().unwrap();
            for name in names.iter().take(names.len() - 1) {
                assert_eq!(snapshot.get(&format!("left/{name}")).unwrap(), Some(vec![1]), "{name}");
            }
            let halves = |side: &str| snapshot.scan(side).unwrap().len();
            assert_eq!(halves("left/"), halves("right/"), "a batch is whole");
        }
    }
}
