//! Agents that have nothing to do take next to nothing.

use std::thread;
use std::time::{Duration, Instant};

use pmemha_testkit::node::{Node, Pair, PairOptions};

use super::{BINARIES, Program, await_quiet};

/// Long enough that the share below is several ticks of the kernel's clock.
const WINDOW: Duration = Duration::from_secs(12);

/// Windows, of which the best counts: a machine that is busy with other things makes every wake-up dearer.
const WINDOWS: u32 = 3;

/// Share of a core that an idle agent may take, as one part in so many: 0.5 %.
const PART: u32 = 200;

#[test]
fn idle_agents_take_less_than_half_a_percent_of_a_core() {
    let pair = Pair::start(BINARIES, &PairOptions::default());
    let mut program = Program::start(&pair.alpha);
    let file = pair.alpha.files().join("data");
    program.does(&format!("f = open({file:?}, 'w+b'); f.truncate(8 << 20); m = mmap.mmap(f.fileno(), 0)"));
    program.does("m[0:4096] = os.urandom(4096); m.flush()");
    await_quiet(&pair);
    let agents = [&pair.alpha, &pair.beta];
    let mut seen = Vec::new();
    for _ in 0..WINDOWS {
        let (began, before) = (Instant::now(), agents.map(Node::processor_time));
        thread::sleep(WINDOW);
        let after = agents.map(Node::processor_time);
        let taken = [after[0] - before[0], after[1] - before[1]];
        let most = began.elapsed() / PART;
        if taken.iter().all(|taken| *taken < most) {
            return;
        }
        seen.push((taken, most));
    }
    panic!("processor time of source and destination at rest, and what they may take: {seen:?}");
}
