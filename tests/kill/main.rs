//! Kill -9 at random moments under load: of the application, of the source's agent, of the destination's agent.
//!
//! After each kill the promises hold. The image that a promotion would yield, made on a copy of the destination's replica as
//! it is at that instant, keeps the program's own invariants (promise 1) and holds every operation that was acknowledged (2), a
//! failover holds everything that was published (3), never more than one node runs the program (4), the program goes on while
//! an agent is dead (5), and the status claims no LSN that the destination lacks, nor calls a broken stream a stream (7).
//! An agent that comes back goes on from the ring where the ring still has what is missing, and makes the copy that is owed.
//!
//! `PMEMHA_KILLS` of each kind are done (50 in `make test`, 1,000 in a soak). The seed is printed; `PMEMHA_KILL_SEED` makes the
//! same choices again (moments differ as far as the machine's scheduling does).

mod application;
mod copies;
mod destination;
mod rig;
mod source;

use pmemha_testkit::chance::Chance;
use pmemha_testkit::node::Binaries;
use rig::Tally;

const BINARIES: Binaries =
    Binaries { agent: env!("CARGO_BIN_EXE_pmemhad"), cli: env!("CARGO_BIN_EXE_pmemha") };

/// Kills of each kind in `make test`.
const KILLS: u64 = 50;

fn kills() -> u64 {
    std::env::var("PMEMHA_KILLS").map_or(KILLS, |n| n.parse().expect("PMEMHA_KILLS is a number"))
}

fn chance(lane: u64) -> Chance {
    Chance::from_env("PMEMHA_KILL_SEED").lane(lane)
}

/// Workloads that may run for ever in their files, and the commit level that their drains wait for.
const LOADS: [(&str, &str); 3] = [("raw", "received"), ("atomic", "durable"), ("memcpy", "received")];

#[test]
fn the_destination_agent_is_killed() {
    let mut chance = chance(1);
    let mut tally = Tally::default();
    for (i, (mode, commit)) in LOADS.into_iter().enumerate() {
        destination::AGENT.campaign(mode, commit, share(i), &mut chance, &mut tally);
    }
    tally.close("destination");
}

#[test]
fn the_source_agent_is_killed() {
    let mut chance = chance(2);
    let mut tally = Tally::default();
    for (i, (mode, commit)) in LOADS.into_iter().enumerate() {
        let rig = source::AGENT.campaign(mode, commit, share(i), &mut chance, &mut tally);
        source::assert_knows_the_program(rig);
    }
    tally.close("source");
}

#[test]
fn the_source_agent_is_killed_while_a_copy_is_under_way() {
    copies::under_way(&mut chance(5));
}

#[test]
fn the_source_agent_is_killed_when_a_gap_has_just_been_closed() {
    copies::after_a_gap(&mut chance(6));
}

#[test]
fn the_application_is_killed_and_restarted() {
    application::restarts("raw", kills() - kills() / 5, &mut chance(3));
}

#[test]
fn the_application_is_killed_and_the_heir_takes_over() {
    application::failovers("atomic", (kills() / 5).max(1), &mut chance(4));
}

/// How many of the kills the load of this number gets.
fn share(i: usize) -> u64 {
    let (all, n) = (kills(), LOADS.len() as u64);
    all / n + u64::from((i as u64) < all % n)
}
