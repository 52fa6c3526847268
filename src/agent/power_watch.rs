//! Tells the groups' controllers when external power goes and comes back, and the status how it is.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};
use std::{io, mem};

use super::clock::WallTime;
use super::group::Controller;
use super::placement::Placement;
use super::status::PowerStatus;
use crate::locks::lock;
use crate::power::file::FileSource;
use crate::power::{Debounce, PowerEvent, PowerSource, PowerState};

/// How long power must be back before it counts: mains that flicker must not thaw and freeze in turn.
const SETTLE: Duration = Duration::from_secs(2);

/// The source is asked this often although nothing moved.
const ASK: Duration = Duration::from_millis(100);

/// The thread; stopped on drop.
pub struct PowerWatch {
    source: String,
    stop: Arc<AtomicBool>,
    heard: Arc<Mutex<PowerState>>,
    thread: Option<JoinHandle<()>>,
}

impl PowerWatch {
    /// Watches the file at `path`.
    /// `placement` is told after the groups, which have the more pressing business.
    pub fn start(
        path: &Path,
        controllers: Vec<Arc<dyn Controller>>,
        placement: Option<Arc<Placement>>,
    ) -> io::Result<PowerWatch> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut source = FileSource::new(path);
        let name = source.name().to_owned();
        let heard = Arc::new(Mutex::new(source.poll()));
        let (stopped, hears) = (stop.clone(), heard.clone());
        let thread = thread::Builder::new().name("power".into()).spawn(move || {
            let mut debounce = Debounce::new(SETTLE);
            // Pairs with the store in `drop`.
            while !stopped.load(Ordering::Acquire) {
                let state = source.wait(ASK);
                lock(&hears).clone_from(&state);
                if let Some(event) = debounce.event(&state, Instant::now()) {
                    controllers.iter().for_each(|c| c.power(event == PowerEvent::Back));
                    placement.iter().for_each(|p| p.power(event == PowerEvent::Back));
                }
            }
        })?;
        Ok(PowerWatch { source: name, stop, heard, thread: Some(thread) })
    }

    /// How power is, for the status document.
    pub fn status(&self) -> PowerStatus {
        let heard = lock(&self.heard).clone();
        PowerStatus {
            source: self.source.clone(),
            online: heard.online,
            runtime_s: heard.runtime.map(|r| r.as_secs()),
            charge: heard.charge,
            error: heard.fault,
            as_of: WallTime(SystemTime::now() - heard.as_of.elapsed()).to_string(),
        }
    }
}

impl Drop for PowerWatch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = mem::take(&mut self.thread) {
            let _ = thread.join();
        }
    }
}
