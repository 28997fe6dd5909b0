//! What the parts of a booted guest share: reaper, push stream, boot document, the orders to the main thread.

use crate::hold::Hold;
use crate::metadata::Profile;
use crate::push::Push;
use crate::reaper::Reaper;
use crate::supervise::Supervision;
use crate::util::{lock, refuse};
use firebuild_layers::{Builder, Settings};
use firebuild_protocol::message::{BootDocument, BootKind, Restart};
use firebuild_protocol::{ErrorCode, ProcessExit, TaskError};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What other threads ask of the main one.
#[derive(Debug)]
pub enum Order {
    EntrypointEnded(ProcessExit),
    /// Signal the entrypoint, kill it after the timeout; then power off.
    Stop {
        signal: i32,
        timeout: Duration,
    },
    PowerOff,
    /// Signal the entrypoint, and no more.
    Signal(i32),
    /// Start the entrypoint that has waited for somebody to attach.
    Start,
    /// Another restart policy.
    Restart(Restart),
    /// The guest is another machine now: start the entrypoint if it is to be started only now, and be `ready`.
    Resumed {
        start: bool,
    },
}

pub struct Guest {
    pub reaper: Reaper,
    pub push: Push,
    document: Mutex<Arc<BootDocument>>,
    /// The layers of a build machine; of no use in another.
    pub builder: Builder,
    profile: Mutex<Option<Arc<Profile>>>,
    /// Who works on files, and whether a snapshot has them wait.
    pub hold: Hold,
    /// The entrypoint's; in system mode its service holds another.
    pub supervision: Supervision,
    orders: Sender<Order>,
}

impl Guest {
    pub fn new(reaper: Reaper, push: Push, document: BootDocument, orders: Sender<Order>) -> Self {
        let builder = Builder::new(Settings::default());
        let document = Mutex::new(Arc::new(document));
        let (profile, hold, supervision) = (Mutex::default(), Hold::default(), Supervision::default());
        Self { reaper, push, document, builder, profile, hold, supervision, orders }
    }

    pub fn is_build(&self) -> bool {
        self.document().kind == BootKind::Build
    }

    /// What the guest is: as it booted, or as it was resumed.
    pub fn document(&self) -> Arc<BootDocument> {
        Arc::clone(&lock(&self.document))
    }

    /// The guest becomes another machine.
    pub fn set_document(&self, document: BootDocument) {
        *lock(&self.document) = Arc::new(document);
    }

    /// The boot is done: requests are served from now on.
    pub fn set_configured(&self, profile: Profile) {
        *lock(&self.profile) = Some(Arc::new(profile));
    }

    /// The metadata, or `busy` while the guest boots.
    pub fn profile(&self) -> Result<Arc<Profile>, TaskError> {
        match &*lock(&self.profile) {
            Some(profile) => Ok(Arc::clone(profile)),
            None => refuse(ErrorCode::Busy, "the guest is still booting"),
        }
    }

    /// From now on neither the host nor who is attached is waited for longer than that.
    pub fn give_up_after(&self, duration: Duration) {
        self.push.give_up_after(duration);
        self.supervision.attached.give_up_after(duration);
    }

    pub fn order(&self, order: Order) {
        // The main thread is gone only when the machine is.
        let _ = self.orders.send(order);
    }
}
