//! What a machine has.

use pmemha_rig::{DEVDAX, FSDAX, RigError};

use crate::listening::serve;
use crate::{Outcome, SHARED};

#[test]
fn commands_yield_status_and_outputs_apart_also_several_at_once() -> Outcome {
    let outputs = std::thread::scope(|scope| {
        let runs = [3, 4, 5].map(|n| {
            let script = format!("echo out {n}; echo err {n} >&2; exit {n}");
            scope.spawn(move || SHARED.command("sh").args(["-c", &script]).output())
        });
        runs.map(|run| run.join().expect("no panic"))
    });
    for (n, output) in (3..).zip(outputs) {
        let output = output?;
        assert_eq!(output.status, pmemha_rig::Status::Exited(n));
        assert_eq!(output.stdout, format!("out {n}\n").into_bytes());
        assert_eq!(output.stderr, format!("err {n}\n").into_bytes());
    }
    Ok(())
}

#[test]
fn a_machine_runs_programs_of_the_host_on_a_kernel_of_its_own() -> Outcome {
    let program = std::env::current_exe().expect("our path");
    let ours = std::fs::metadata(&program).expect("our program").len().to_string();
    let program = program.to_str().expect("a path of text");
    assert_eq!(SHARED.command("stat").args(["-c", "%s", program]).text()?.trim(), ours);
    let tests = SHARED.command(program).arg("--list").text()?;
    assert!(tests.contains("a_machine_runs_programs_of_the_host_on_a_kernel_of_its_own"), "{tests}");

    let host = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("our kernel's version");
    assert_ne!(SHARED.command("uname").arg("-r").text()?, host);
    assert_eq!(SHARED.command("hostname").text()?.trim(), "shared");
    assert_eq!(SHARED.command("nproc").text()?.trim(), "2");
    Ok(())
}

#[test]
fn writes_to_the_file_system_of_the_host_stay_in_the_machine() -> Outcome {
    let file = std::env::temp_dir().join(format!("rig-{}", std::process::id()));
    let name = file.to_str().expect("a path of text");
    let text = SHARED.command("sh").args(["-c", &format!("echo here >{name}; cat {name}")]).text()?;
    assert_eq!(text, "here\n");
    assert!(!file.exists());
    Ok(())
}

#[test]
fn the_rdma_device_is_active_with_the_largest_packets_and_unlimited_memory() -> Outcome {
    let info = SHARED.command("ibv_devinfo").args(["-v", "-d", "rxe0"]).text()?;
    for wanted in ["PORT_ACTIVE", "active_mtu:\t\t4096", "GID[  1]:\t\t::ffff:10.77.0.1, RoCE v2"] {
        assert!(info.contains(wanted), "{wanted} in {info}");
    }
    assert_eq!(SHARED.command("sh").args(["-c", "ulimit -l"]).text()?, "unlimited\n");
    assert_eq!(SHARED.command("cat").arg("/sys/class/net/rdma0/mtu").text()?, "9000\n");
    Ok(())
}

#[test]
fn a_machine_alone_sends_and_writes_to_itself() -> Outcome {
    let ping = ["ibv_rc_pingpong", "-d", "rxe0", "-g", "1", "-n", "200"];
    let server = serve(&SHARED, 18515, &ping)?;
    SHARED.command(ping[0]).args(ping[1..].iter().copied()).arg("10.77.0.1").text()?;
    assert!(server.text()?.contains("200 iters in"));

    let write = ["ib_write_bw", "-d", "rxe0", "-x", "1", "-F", "-n", "200", "-p", "18600"];
    let server = serve(&SHARED, 18600, &write)?;
    let report = SHARED.command(write[0]).args(write[1..].iter().copied()).arg("10.77.0.1").text()?;
    assert!(report.contains("BW average"), "{report}");
    server.text()?;
    Ok(())
}

/// Maps `length` bytes of a file, synchronously persistent if `sync`, and writes to them.
fn map(file: &str, length: u32, sync: bool) -> Result<String, RigError> {
    let flags = if sync { "0x80003" } else { "mmap.MAP_SHARED" };
    let program = format!(
        "import mmap, os\n\
         m = mmap.mmap(os.open('{file}', os.O_RDWR), {length}, flags={flags})\n\
         m[0:4] = b'kept'\n\
         print(m[0:4].decode())"
    );
    SHARED.command("python3").args(["-c", &program]).text()
}

#[test]
fn files_map_synchronously_on_fsdax_and_not_in_memory() -> Outcome {
    for (dir, works) in [(FSDAX, true), ("/dev/shm", false)] {
        let file = format!("{dir}/mapped");
        SHARED.command("truncate").args(["-s", "1M", &file]).text()?;
        match map(&file, 1 << 20, true) {
            Ok(text) => assert!(works && text == "kept\n", "{file}: {text}"),
            Err(RigError::Failed { output, .. }) => {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(!works && said.contains("Operation not supported"), "{file}: {said}");
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[test]
fn the_devdax_device_maps() -> Outcome {
    assert_eq!(map(DEVDAX, 2 << 20, false)?, "kept\n");
    Ok(())
}
