//! Tells the groups' controllers when external power goes and comes back.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{io, mem};

use super::group::Controller;
use crate::power::file::FileSource;
use crate::power::{Debounce, PowerEvent, PowerSource};

/// How long power must be back before it counts: mains that flicker must not thaw and freeze in turn.
const SETTLE: Duration = Duration::from_secs(2);

/// The source is asked this often although nothing moved.
const ASK: Duration = Duration::from_millis(100);

/// The thread; stopped on drop.
pub struct PowerWatch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl PowerWatch {
    /// Watches the file at `path`.
    pub fn start(path: &Path, controllers: Vec<Arc<dyn Controller>>) -> io::Result<PowerWatch> {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut source, stopped) = (FileSource::new(path), stop.clone());
        let thread = thread::Builder::new().name("power".into()).spawn(move || {
            let mut debounce = Debounce::new(SETTLE);
            // Pairs with the store in `drop`.
            while !stopped.load(Ordering::Acquire) {
                let state = source.wait(ASK);
                if let Some(event) = debounce.event(&state, Instant::now()) {
                    controllers.iter().for_each(|c| c.power(event == PowerEvent::Back));
                }
            }
        })?;
        Ok(PowerWatch { stop, thread: Some(thread) })
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
