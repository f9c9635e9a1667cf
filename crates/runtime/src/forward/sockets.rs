//! The sockets that forwarders hold: a number for all instances together, of which each function has its part.
//!
//! They are descriptors of the process that forwards, and what else it needs descriptors for must not depend on what functions
//! connect to.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::FunctionName;

use crate::room::Room;

/// The sockets of all forwarders. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Sockets(Arc<Mutex<Open>>);

#[derive(Debug)]
struct Open {
    room: Room<FunctionName>,
    /// Instances that share, by function.
    instances: BTreeMap<FunctionName, usize>,
}

/// What one instance may open: its function's part, or more while others leave it.
#[derive(Debug)]
pub struct Share {
    sockets: Sockets,
    function: FunctionName,
}

/// One socket may be open while this is kept.
#[derive(Debug)]
pub(super) struct Socket<'a>(&'a Share);

impl Sockets {
    /// So many at once.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self(Arc::new(Mutex::new(Open { room: Room::new(most), instances: BTreeMap::new() })))
    }

    /// For an instance of a function. Called when its forwarder starts.
    #[must_use]
    pub fn share(&self, function: FunctionName) -> Share {
        let mut open = self.open();
        open.room.join(function.clone());
        *open.instances.entry(function.clone()).or_default() += 1;
        drop(open);
        Share { sockets: self.clone(), function }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        // Nothing panics in between, and counts are right at every step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    pub(super) fn open(&self) -> Option<Socket<'_>> {
        self.sockets.open().room.enter(self.function.clone(), usize::MAX).ok().map(|()| Socket(self))
    }
}

impl Drop for Socket<'_> {
    fn drop(&mut self) {
        self.0.sockets.open().room.exit(&self.0.function);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut open = self.sockets.open();
        let left = open.instances.get(&self.function).map_or(0, |instances| instances.saturating_sub(1));
        if left == 0 {
            open.instances.remove(&self.function);
            open.room.leave(&self.function);
        } else {
            open.instances.insert(self.function.clone(), left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(share: &Share) -> Vec<Socket<'_>> {
        std::iter::from_fn(|| share.open()).collect()
    }

    #[test]
    fn a_function_that_opens_without_end_leaves_another_its_part_however_many_instances_it_has() {
        let sockets = Sockets::new(40);
        let shares: Vec<Share> = (0..5).map(|_| sockets.share("greedy".parse().unwrap())).collect();
        let other = sockets.share("other".parse().unwrap());
        let greedy: Vec<Socket<'_>> = shares.iter().flat_map(opened).collect();
        assert_eq!((greedy.len(), opened(&other).len()), (20, 10));
        drop(greedy);
        assert_eq!(opened(&other).len(), 20);
    }

    #[test]
    fn a_function_whose_last_instance_is_gone_has_no_part() {
        let sockets = Sockets::new(40);
        let (first, second) = (sockets.share("f".parse().unwrap()), sockets.share("f".parse().unwrap()));
        drop(first);
        assert_eq!(sockets.open().room.sharing(), 1);
        drop(second);
        let open = sockets.open();
        assert_eq!((open.room.sharing(), open.instances.len()), (0, 0));
    }
}
