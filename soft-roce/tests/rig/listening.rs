//! Servers that are to listen before their clients come.

use pmemha_rig::{Machine, RigError, Running};

/// Starts a server, and waits until it listens on a TCP port of the machine.
pub fn serve(machine: &Machine, port: u16, argv: &[&str]) -> Result<Running, RigError> {
    let (program, arguments) = argv.split_first().expect("a program");
    let server = machine.command(program).args(arguments.iter().copied()).spawn()?;
    let listens = format!(
        "until cat /proc/net/tcp /proc/net/tcp6 | grep -q ':{port:04X} [0-9A-F]*:0000 0A'; do :; done"
    );
    machine.command("sh").args(["-c", &listens]).text()?;
    Ok(server)
}
