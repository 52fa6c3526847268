//! Runs in a machine of the rig: takes commands from the host on the machine's ports until the host is gone.
//! `guest/start` starts it with the number of ports.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;

use pmemha_rig::guest;
use rustix::fs::inotify;

fn main() -> ExitCode {
    let Some(ports) = std::env::args().nth(1).and_then(|number| number.parse::<usize>().ok()) else {
        eprintln!("usage: pmemha-rig-guest PORTS (started by guest/start in a machine of the rig)");
        return ExitCode::from(2);
    };
    let (ended, first) = mpsc::channel();
    for number in 1..=ports {
        let ended = ended.clone();
        std::thread::spawn(move || {
            let end = open(number).and_then(|port| guest::serve(&port));
            // Nobody listens when another port was first.
            let _ = ended.send(end);
        });
    }
    match first.recv() {
        Ok(Err(e)) if e.kind() != io::ErrorKind::UnexpectedEof => {
            eprintln!("rig: a port failed: {e}");
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

/// Opens a port, which the kernel may not have made yet.
fn open(number: usize) -> io::Result<File> {
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC)?;
    inotify::add_watch(&watch, "/dev", inotify::WatchFlags::CREATE)?;
    loop {
        if let Some(path) = port(number)? {
            return OpenOptions::new().read(true).write(true).open(path);
        }
        rustix::io::read(&watch, &mut [0; 4096])?;
    }
}

/// `/dev/vportDpNUMBER`; which D the machine's only serial device has depends on its other devices.
fn port(number: usize) -> io::Result<Option<PathBuf>> {
    let end = format!("p{number}");
    for entry in fs::read_dir("/dev")? {
        let entry = entry?;
        let device = entry.file_name();
        let device = device.to_str().and_then(|name| name.strip_prefix("vport")?.strip_suffix(&end));
        if device.is_some_and(|device| device.bytes().all(|byte| byte.is_ascii_digit())) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}
