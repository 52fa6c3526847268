//! Two machines and their cable.

use std::net::Ipv4Addr;

use pmemha_rig::{ALPHA, BETA, Machine, Pair, RigError};

use crate::Outcome;
use crate::listening::serve;

/// Sends messages to and fro over RDMA.
fn ping(from: &Machine, to: &Machine, messages: &str) -> Result<String, RigError> {
    let argv = ["ibv_rc_pingpong", "-d", "rxe0", "-g", "1", "-n", messages];
    let server = serve(to, 18515, &argv)?;
    let report =
        from.command(argv[0]).args(argv[1..].iter().copied()).arg(to.spec().address.to_string()).text()?;
    server.text()?;
    Ok(report)
}

fn until_port_is(machine: &Machine, state: &str) -> Outcome {
    let script = format!("until grep -q {state} /sys/class/infiniband/rxe0/ports/1/state; do :; done");
    machine.command("sh").args(["-c", &script]).text().map(drop)
}

/// How many packets the RDMA device got.
const ARRIVED: &str = "/sys/class/infiniband/rxe0/ports/1/hw_counters/rcvd_pkts";

/// Waits until an RDMA transfer is under way.
fn until_more_arrived(machine: &Machine) -> Outcome {
    let script =
        format!("before=$(cat {ARRIVED}); until [ $(cat {ARRIVED}) -gt $((before + 1000)) ]; do :; done");
    machine.command("sh").args(["-c", &script]).text().map(drop)
}

/// Whether anything at all answers at an address, be it by refusing.
fn reaches(machine: &Machine, address: Ipv4Addr) -> Result<bool, RigError> {
    let program = format!(
        "import socket\n\
         try: socket.create_connection(('{address}', 9), 3)\n\
         except ConnectionRefusedError: print('answered')\n\
         except OSError: print('silent')"
    );
    Ok(machine.command("python3").args(["-c", &program]).text()? == "answered\n")
}

fn port_state(machine: &Machine) -> Result<String, RigError> {
    machine.command("cat").arg("/sys/class/infiniband/rxe0/ports/1/state").text()
}

#[test]
fn two_machines_talk_over_their_cable_until_it_is_cut_or_one_is_off() -> Outcome {
    let Pair { alpha, beta, cable } = Pair::boot()?;
    ping(&alpha, &beta, "100")?;
    assert!(reaches(&alpha, BETA)? && reaches(&beta, ALPHA)?);

    // Cut under traffic: nothing arrives, and neither machine's port goes down; whole again, the same connection goes on,
    // since Soft-RoCE retries for ever with the usual count of 7.
    let write = ["ib_write_bw", "-d", "rxe0", "-x", "1", "-F", "-n", "100000000", "-p", "18600"];
    let server = serve(&beta, 18600, &write)?;
    let client = alpha.command(write[0]).args(write[1..].iter().copied()).arg(BETA.to_string()).spawn()?;
    until_more_arrived(&beta)?;
    cable.cut();
    assert!(!reaches(&alpha, BETA)?);
    let arrived = beta.command("cat").arg(ARRIVED).text()?;
    assert!(!reaches(&beta, ALPHA)?);
    assert_eq!(beta.command("cat").arg(ARRIVED).text()?, arrived);
    assert_eq!([port_state(&alpha)?, port_state(&beta)?], ["4: ACTIVE\n"; 2]);
    cable.heal();
    until_more_arrived(&beta)?;
    drop(client);
    drop(server);
    ping(&beta, &alpha, "100")?;

    // Pulled: that machine's port says so.
    alpha.pull_cable()?;
    until_port_is(&alpha, "DOWN")?;
    assert_eq!(port_state(&beta)?, "4: ACTIVE\n");
    alpha.put_cable()?;
    until_port_is(&alpha, "ACTIVE")?;

    // Off and on again, either of them: the one that stayed hears it.
    let beta = beta.cut_power().boot()?;
    ping(&alpha, &beta, "100")?;
    let alpha = alpha.cut_power().boot()?;
    ping(&alpha, &beta, "100")?;
    Ok(())
}
