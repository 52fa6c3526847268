//! What a machine keeps when it is switched off.

use pmemha_rig::{DEVDAX, FSDAX, Machine, MachineSpec, RigError};

use crate::Outcome;

/// Writes `text` to persistent memory of both kinds, and to DRAM.
fn write(machine: &Machine, text: &str) -> Outcome {
    let script = format!(
        "set -e; echo {text} >{FSDAX}/file; sync {FSDAX}/file; echo {text} >/dev/shm/file; echo {text} >/var/tmp/rig
         printf '%-8s' {text} >{FSDAX}/raw
         python3 -c \"import mmap, os; m = mmap.mmap(os.open('{DEVDAX}', os.O_RDWR), 1 << 21); m[0:8] = open('{FSDAX}/raw', 'rb').read()\""
    );
    machine.command("sh").args(["-c", &script]).text().map(drop)
}

/// What there is on persistent memory of both kinds, and how many of the files in DRAM.
fn read(machine: &Machine) -> Result<String, RigError> {
    let script = format!(
        "cat {FSDAX}/file
         python3 -c \"import mmap, os; m = mmap.mmap(os.open('{DEVDAX}', os.O_RDWR), 1 << 21); print(m[0:8].decode())\"
         ls /dev/shm/file /var/tmp/rig 2>/dev/null | wc -l"
    );
    machine.command("sh").args(["-c", &script]).text()
}

#[test]
fn persistent_memory_outlives_power_cuts_and_crashes_and_nothing_else_does() -> Outcome {
    let machine = Machine::boot(MachineSpec::alone("power"))?;
    write(&machine, "first")?;
    assert_eq!(read(&machine)?, "first\nfirst   \n2\n");

    // A command that runs when the power goes is told so, and does not hang.
    let running = machine.command("sleep").arg("1000").spawn()?;
    let machine = machine.cut_power().boot()?;
    assert!(matches!(running.wait(), Err(RigError::Gone { .. })));
    assert_eq!(read(&machine)?, "first\nfirst   \n0\n");

    write(&machine, "second")?;
    let machine = machine.crash()?.boot()?;
    assert_eq!(read(&machine)?, "second\nsecond  \n0\n");
    let log = std::fs::read_to_string(machine.log()).expect("its log");
    assert!(log.contains("sysrq: Trigger a crash"), "the log holds what the kernel said before");
    Ok(())
}

#[test]
fn a_machine_that_cannot_boot_says_why_and_shows_its_log() {
    // Too small a device for a namespace.
    let spec = MachineSpec { fsdax_mib: 2, ..MachineSpec::alone("small") };
    let text = Machine::boot(spec).err().expect("it cannot boot").to_string();
    for wanted in ["machine small did not get ready: it switched itself off", "guest/start failed"] {
        assert!(text.contains(wanted), "{text}");
    }
}

#[test]
fn a_machine_whose_kernel_comes_to_nothing_is_booted_once_more() {
    // Too little DRAM for the kernel, which panics.
    let spec = MachineSpec { memory_mib: 96, ..MachineSpec::alone("tiny") };
    let error = Machine::boot(spec).err().expect("it cannot boot");
    let RigError::Boot { log, .. } = &error else { panic!("{error}") };
    let log = std::fs::read_to_string(log).expect("its log");
    assert_eq!(log.matches("Linux version").count(), 2, "{error}");
}
