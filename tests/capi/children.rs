//! Misuse in forked children, which have the handles of their parents and sessions of their own.

use std::ptr::{null, null_mut};

use pmemha::capi::pmemha_rc::*;
use pmemha::capi::*;
use pmemha::session::wire::Request;
use pmemha_testkit::test_agent::{Setup, TestAgent};

use crate::errors::{LSN_NEVER, Rig, SIZE, c, close, expect, message};

/// Runs `body` in a forked child and returns its result, which is an exit status. It must not panic: locks of the test harness may
/// be held in the child for ever.
fn in_child(body: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child does what the library allows there, and ends without running anything of the harness.
    unsafe {
        let pid = libc::fork();
        assert!(pid >= 0);
        if pid == 0 {
            libc::_exit(body());
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(pid, &mut status, 0), pid);
        assert!(libc::WIFEXITED(status), "the child ended with {status:#x}");
        libc::WEXITSTATUS(status)
    }
}

#[test]
fn a_forked_child_that_misuses_its_handles_hears_of_it_and_its_parent_does_not() {
    let agent = TestAgent::start();
    let rig = Rig::new(&agent);
    // SAFETY: as in the parent.
    let persist = |n| unsafe { pmemha_persist(rig.mapped, rig.memory, n, null_mut()) };
    let said = in_child(|| {
        let all = [
            (persist(8), PMEMHA_OK),
            (persist(SIZE + 1), PMEMHA_E_RANGE),
            (pmemha_wait(rig.session, LSN_NEVER, 1, -1), PMEMHA_E_UNPUBLISHED),
            (close(rig.session), PMEMHA_OK),
            (persist(8), PMEMHA_E_CLOSED),
            (close(rig.session), PMEMHA_E_CLOSED),
        ];
        all.iter().position(|(got, want)| got != want).map_or(0, |at| at as i32 + 1)
    });
    assert_eq!(said, 0, "the number of the call that was wrong");
    expect(pmemha_wait(rig.session, rig.persist(), 3, -1), PMEMHA_OK, "", "the parent goes on");
}

#[test]
fn a_session_too_many_is_refused_and_the_agent_is_told_that_it_is_over() {
    let mut setup = Setup::default();
    setup.spec.appenders = 128;
    let agent = TestAgent::with(setup);
    let socket = c(&agent.socket());
    let refused = in_child(|| {
        loop {
            let mut session = null_mut();
            // SAFETY: valid pointers.
            match unsafe { pmemha_open(socket.as_ptr(), null(), &mut session) } {
                PMEMHA_OK => {}
                rc if session.is_null() && message().contains("64 sessions") => return rc as i32,
                _ => return 99,
            }
        }
    });
    assert_eq!(refused, PMEMHA_E_LIMIT as i32);
    let goodbyes = agent.requests().iter().filter(|r| matches!(r, Request::Goodbye { .. })).count();
    assert_eq!(goodbyes, 1, "of the one that was refused");
}
