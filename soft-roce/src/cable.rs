//! The cable between two machines. Each QEMU sends its frames to us, and we pass them on: so either machine may be
//! switched off and on without the other's noticing more than a silence, and the cable can be cut without either's
//! noticing anything else.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// A cable with two ends. Clones are the same cable.
#[derive(Clone, Default)]
pub struct Cable(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// The machines' connections, as long as they are on.
    ends: [Mutex<Option<UnixStream>>; 2],
    /// Relaxed: nothing else depends on it. A frame that is on its way when the cable is cut may still arrive.
    cut: AtomicBool,
}

/// One of the two ends of a cable.
#[derive(Clone, Copy)]
pub(crate) enum End {
    Left = 0,
    Right = 1,
}

impl Cable {
    /// From now on no frame passes, in either direction. Both machines' network devices stay up: only silence tells.
    pub fn cut(&self) {
        self.0.cut.store(true, Ordering::Relaxed);
    }

    /// Frames pass again.
    pub fn heal(&self) {
        self.0.cut.store(false, Ordering::Relaxed);
    }

    /// Connects a machine that was switched on, and passes its frames on until it is switched off.
    pub(crate) fn plug(&self, end: End, mut machine: UnixStream) -> io::Result<()> {
        *self.0.lock(end) = Some(machine.try_clone()?);
        let shared = self.0.clone();
        let pass = move || {
            let mut frame = Vec::new();
            while read_frame(&mut machine, &mut frame).is_ok() {
                shared.pass(end.other(), &frame);
            }
        };
        std::thread::Builder::new().name("cable".into()).spawn(pass)?;
        Ok(())
    }
}

impl Shared {
    /// A frame for a machine that is off is lost, as on a real cable.
    fn pass(&self, to: End, frame: &[u8]) {
        if self.cut.load(Ordering::Relaxed) {
            return;
        }
        let mut machine = self.lock(to);
        if machine.as_mut().is_some_and(|stream| stream.write_all(frame).is_err()) {
            *machine = None;
        }
    }

    fn lock(&self, end: End) -> MutexGuard<'_, Option<UnixStream>> {
        // A thread that panicked left a stream or none: either will do.
        self.ends[end as usize].lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl End {
    fn other(self) -> End {
        match self {
            End::Left => End::Right,
            End::Right => End::Left,
        }
    }
}

/// Reads a frame as QEMU sends it, its length before it, into `frame`, length and all.
fn read_frame(from: &mut UnixStream, frame: &mut Vec<u8>) -> io::Result<()> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let size = u32::from_be_bytes(length) as usize;
    if size > FRAME_LIMIT {
        return Err(io::ErrorKind::InvalidData.into());
    }
    frame.clear();
    frame.extend(length);
    frame.resize(4 + size, 0);
    from.read_exact(&mut frame[4..])
}

/// QEMU's own limit: 64 KiB and a page.
const FRAME_LIMIT: usize = 68 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn plugged(cable: &Cable, end: End) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        cable.plug(end, ours).unwrap();
        theirs
    }

    fn send(stream: &mut UnixStream, text: &[u8]) {
        stream.write_all(&(text.len() as u32).to_be_bytes()).unwrap();
        stream.write_all(text).unwrap();
    }

    fn received(stream: &mut UnixStream) -> Vec<u8> {
        let mut frame = Vec::new();
        read_frame(stream, &mut frame).unwrap();
        frame.split_off(4)
    }

    #[test]
    fn frames_pass_in_both_directions_until_the_cable_is_cut() {
        let cable = Cable::default();
        let (mut left, mut right) = (plugged(&cable, End::Left), plugged(&cable, End::Right));
        send(&mut left, b"to the right");
        assert_eq!(received(&mut right), b"to the right");
        send(&mut right, b"to the left");
        assert_eq!(received(&mut left), b"to the left");

        cable.cut();
        cable.0.pass(End::Right, b"\0\0\0\x04lost");
        cable.heal();
        cable.0.pass(End::Right, b"\0\0\0\x05again");
        assert_eq!(received(&mut right), b"again");
    }

    #[test]
    fn a_machine_that_comes_back_is_heard_by_the_one_that_stayed() {
        let cable = Cable::default();
        let mut left = plugged(&cable, End::Left);
        drop(plugged(&cable, End::Right));
        send(&mut left, b"to nobody");
        let mut right = plugged(&cable, End::Right);
        send(&mut right, b"here again");
        assert_eq!(received(&mut left), b"here again");
        send(&mut left, b"welcome");
        let first = received(&mut right);
        assert!(first == b"welcome" || (first == b"to nobody" && received(&mut right) == b"welcome"));
    }
}
