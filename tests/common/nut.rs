//! A real UPS daemon: upsd of Network UPS Tools with its driver `dummy-ups`, whose variables a test sets.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::net::free_port;
use crate::{dirs, wait};

/// How long the daemons may take to be there, on a machine that is busy with other tests.
const START: Duration = Duration::from_secs(30);

/// upsd takes what its driver says for stale after so many seconds: the shortest that it can count.
const MAX_AGE: u32 = 2;

/// Name of the UPS.
pub const UPS: &str = "lab";

/// A user that may set variables, and may log in.
pub const USER: &str = "ha";

/// Its password.
pub const PASSWORD: &str = "not a secret";

/// upsd and one UPS; both end with it.
pub struct Nut {
    dir: TempDir,
    port: u16,
    driver: Option<Child>,
    daemon: Option<Child>,
}

impl Nut {
    /// A UPS on line power, with 900 s in its battery.
    pub fn start() -> Nut {
        let mut nut = Nut { dir: dirs::for_a_node(), port: free_port(), driver: None, daemon: None };
        nut.write("nut.conf", "MODE=standalone\n");
        nut.write(
            "ups.conf",
            "pollinterval = 1\n[lab]\n  driver = dummy-ups\n  port = lab.dev\n  mode = dummy-once\n",
        );
        nut.write(
            "lab.dev",
            "ups.status: OL\nbattery.charge: 100\nbattery.runtime: 900\nbattery.runtime.low: 120\n",
        );
        nut.write("upsd.conf", &format!("LISTEN 127.0.0.1 {}\nMAXAGE {MAX_AGE}\n", nut.port));
        nut.write(
            "upsd.users",
            &format!("[{USER}]\n  password = \"{PASSWORD}\"\n  actions = SET\n  upsmon secondary\n"),
        );
        nut.start_driver();
        nut.start_daemon();
        nut
    }

    /// `host:port` of upsd.
    pub fn server(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Sets a variable of the UPS, such as `ups.status` to `OB DISCHRG`. The driver takes it in within a second.
    pub fn set(&self, variable: &str, value: &str) {
        let stream = TcpStream::connect(self.server()).expect("upsd listens");
        let mut answers = BufReader::new(stream.try_clone().expect("a socket"));
        for command in [
            format!("USERNAME {USER}"),
            format!("PASSWORD \"{PASSWORD}\""),
            format!("SET VAR {UPS} {variable} \"{value}\""),
        ] {
            (&stream).write_all(format!("{command}\n").as_bytes()).expect("upsd reads");
            let mut answer = String::new();
            answers.read_line(&mut answer).expect("upsd answers");
            assert!(answer.starts_with("OK"), "{command}: {answer}");
        }
    }

    /// The driver dies: upsd says DRIVER-NOT-CONNECTED.
    pub fn kill_driver(&mut self) {
        end(&mut self.driver);
    }

    /// It stands still: upsd says DATA-STALE after a while.
    pub fn hang_driver(&self) {
        signal(self.driver.as_ref(), Signal::STOP);
    }

    /// It goes on.
    pub fn wake_driver(&self) {
        signal(self.driver.as_ref(), Signal::CONT);
    }

    /// upsd dies.
    pub fn kill_daemon(&mut self) {
        end(&mut self.daemon);
    }

    /// Starts the driver, as the configuration's first state has the UPS.
    pub fn start_driver(&mut self) {
        self.driver = Some(self.spawn("/lib/nut/dummy-ups", &["-a", UPS, "-u", "root", "-D"]));
        let socket = self.dir.path().join(format!("dummy-ups-{UPS}"));
        wait::until("dummy-ups to listen", START, || socket.exists().then_some(()));
    }

    /// Starts upsd.
    pub fn start_daemon(&mut self) {
        self.daemon = Some(self.spawn("/lib/nut/upsd", &["-u", "root", "-F", "-D"]));
        wait::until("upsd to listen", START, || TcpStream::connect(self.server()).ok());
    }

    fn spawn(&self, program: &str, arguments: &[&str]) -> Child {
        let dir = self.dir.path();
        let log = fs::File::options().create(true).append(true).open(dir.join("log")).expect("own directory");
        Command::new(program)
            .args(arguments)
            .env("NUT_CONFPATH", dir)
            .env("NUT_STATEPATH", dir)
            .env("NUT_ALTPIDPATH", dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|why| panic!("{program}: {why}; scripts/setup installs nut-server"))
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.dir.path().join(name);
        fs::write(&path, text).expect("own directory");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("own file");
    }
}

impl Drop for Nut {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            eprintln!("--- NUT ---\n{}", lines[lines.len().saturating_sub(20)..].join("\n"));
        }
        end(&mut self.driver);
        end(&mut self.daemon);
    }
}

fn end(child: &mut Option<Child>) {
    if let Some(mut child) = child.take() {
        // It may have ended by itself.
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn signal(child: Option<&Child>, signal: Signal) {
    let pid = Pid::from_child(child.expect("it runs"));
    kill_process(pid, signal).expect("our own child");
}
