//! The node's threads: owned, named, joined; the end of any of them is noticed.

use std::io;
use std::thread::JoinHandle;

use tokio::sync::mpsc;
use tokio::task::LocalSet;

/// A thread that ended, and why.
pub(crate) type End = (String, Result<(), String>);

/// All threads of a node.
pub(crate) struct Threads {
    handles: Vec<JoinHandle<()>>,
    ended: mpsc::Sender<End>,
}

/// Threads of a node at most; each tells its end once.
const THREADS_MAX: usize = 64;

impl Threads {
    /// No threads yet, and where their ends are told.
    pub(crate) fn new() -> (Self, mpsc::Receiver<End>) {
        let (ended, ends) = mpsc::channel(THREADS_MAX);
        (Self { handles: Vec::new(), ended }, ends)
    }

    pub(crate) fn start(&mut self, name: &str, work: impl FnOnce() -> Result<(), String> + Send + 'static) -> io::Result<()> {
        assert!(self.handles.len() < THREADS_MAX, "invariant: the node has a fixed set of threads");
        let (ended, label) = (self.ended.clone(), name.to_owned());
        let handle = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            let outcome = outcome.unwrap_or_else(|_| Err("it panicked".to_owned()));
            // At the node's end nobody listens any more.
            let _ = ended.try_send((label, outcome));
        })?;
        self.handles.push(handle);
        Ok(())
    }

    /// Starts a thread that runs one future on a runtime of its own.
    pub(crate) fn start_async<F: Future<Output = Result<(), String>>>(
        &mut self,
        name: &str,
        work: impl FnOnce() -> F + Send + 'static,
    ) -> io::Result<()> {
        self.start(name, move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
            let runtime = runtime.map_err(|error| error.to_string())?;
            LocalSet::new().block_on(&runtime, async move { work().await })
        })
    }

    /// Waits for all of them.
    pub(crate) fn join(self) {
        for handle in self.handles {
            // A panic was told as the thread's end.
            let _ = handle.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_thread_is_told_with_its_reason() {
        let (mut threads, mut ends) = Threads::new();
        threads.start_async("sound", || async { Ok(()) }).unwrap();
        threads.start("broken", || panic!("on purpose")).unwrap();
        threads.join();
        let mut told = [ends.blocking_recv().unwrap(), ends.blocking_recv().unwrap()];
        told.sort();
        assert_eq!(told[0], ("broken".to_owned(), Err("it panicked".to_owned())));
        assert_eq!(told[1], ("sound".to_owned(), Ok(())));
    }
}
