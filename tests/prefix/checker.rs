//! A checker that lives long: states are named to it one by one, and it is started again when one brings it down.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

/// Longest wait for an answer: a state that is broken can send its reader round in circles.
const PATIENCE: Duration = Duration::from_secs(20);

/// A program's checker.
pub struct Checker<'a> {
    command: &'a dyn Fn() -> Command,
    running: Option<Running>,
    /// How often a state brought it down.
    pub restarts: usize,
}

struct Running {
    child: Child,
    questions: ChildStdin,
    answers: Receiver<String>,
}

impl<'a> Checker<'a> {
    /// One that is started by `command` when it is first needed.
    pub fn new(command: &'a dyn Fn() -> Command) -> Checker<'a> {
        Checker { command, running: None, restarts: 0 }
    }

    /// The number of operations found in the state named by `question`, a number a thread; or what is wrong with it.
    pub fn ask(&mut self, question: &str) -> Result<Vec<u64>, String> {
        let running = self.running.get_or_insert_with(|| Running::start((self.command)()));
        match running.ask(question) {
            Some(answer) => parse(&answer),
            None => {
                self.running = None;
                self.restarts += 1;
                Err("the checker crashed or hung on it".into())
            }
        }
    }
}

impl Running {
    fn start(mut command: Command) -> Running {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("the checker starts");
        let questions = child.stdin.take().expect("piped");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let (sender, answers) = channel();
        // Ends with the checker's output.
        thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Running { child, questions, answers }
    }

    fn ask(&mut self, question: &str) -> Option<String> {
        writeln!(self.questions, "{question}").ok()?;
        self.answers.recv_timeout(PATIENCE).ok()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Neither fails for a child that has not been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn parse(answer: &str) -> Result<Vec<u64>, String> {
    let found = answer.strip_prefix("ok ").ok_or_else(|| answer.to_owned())?;
    Ok(found.split(' ').map(|n| n.parse().expect("a number")).collect())
}
