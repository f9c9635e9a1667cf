//! Changes the keys of a running node: on disk first, then wherever requests are let in.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot};

use crate::auth::Access;
use crate::auth::keys::{self, Keys};
use crate::handle::Handle;
use crate::lanes::Pending;
use crate::management::{self, RotationError};

pub(crate) type Done = oneshot::Sender<Result<Keys, RotationError>>;

/// Every place of a node that lets requests in, and the file that the next start reads.
pub(crate) struct Keyring {
    data: PathBuf,
    lanes: Arc<Handle>,
    management: Arc<Mutex<Access>>,
    wanted: mpsc::Receiver<Done>,
}

/// Asks for new keys. A rotation that was begun goes on to its end, whoever hangs up.
pub(crate) struct Rotations(mpsc::Sender<Done>);

impl Keyring {
    pub(crate) fn new(data: PathBuf, lanes: Arc<Handle>, management: Arc<Mutex<Access>>) -> (Self, Rotations) {
        let (asks, wanted) = mpsc::channel(1);
        (Self { data, lanes, management, wanted }, Rotations(asks))
    }

    /// Whoever asks next. Safe to drop at any point.
    pub(crate) async fn asked(&mut self) -> Option<Done> {
        self.wanted.recv().await
    }

    /// Does the rotation that was asked for. Dropped in the middle of it, it leaves a node whose parts take different keys:
    /// only a node that is ending may do so.
    pub(crate) async fn answer(&self, done: Done) {
        let rotated = self.rotate().await;
        // A client that hung up reads the keys from the file.
        let _ = done.send(rotated);
    }

    async fn rotate(&self) -> Result<Keys, RotationError> {
        let data = self.data.clone();
        let made = tokio::task::spawn_blocking(move || keys::rotate(&data));
        let keys = made.await.map_err(|_| RotationError::Closed)?.map_err(|source| RotationError::File { source })?;
        // Were the node to end here, its next start would read the new keys.
        self.lanes.rotate(&keys).await.map_err(|_| RotationError::Closed)?;
        self.management.lock().unwrap_or_else(PoisonError::into_inner).rotate(&keys);
        Ok(keys)
    }
}

impl management::Keyring for Rotations {
    fn rotate(&self) -> Pending<Result<Keys, RotationError>> {
        let (done, rotated) = oneshot::channel();
        let asked = self.0.try_send(done);
        Box::pin(async move {
            asked.map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => RotationError::Busy,
                mpsc::error::TrySendError::Closed(_) => RotationError::Closed,
            })?;
            rotated.await.unwrap_or(Err(RotationError::Closed))
        })
    }
}
