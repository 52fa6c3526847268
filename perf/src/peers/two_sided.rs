//! Two-sided SEND, by the `ibverbs` crate: the receiver's processor takes part in every message.

use std::io;
use std::ops::RangeTo;
use std::time::Instant;

use hdrhistogram::Histogram;
use ibverbs::{CompletionQueue, MemoryRegion, QueuePair, ibv_qp_type, ibv_wc};

use crate::Outcome;
use crate::fabric::Port;
use crate::figures::round_of_times;

/// Its name in rows.
pub const NAME: &str = "ibverbs SEND";

const SENT: u64 = 1;
const RECEIVED: u64 = 2;

/// Nanoseconds from posting `size` bytes until an answer of one byte has been received, both ends here.
pub fn latency(port: &Port, size: usize, count: usize) -> Outcome<Histogram<u64>> {
    let devices = ibverbs::devices()?;
    let named =
        |d: &ibverbs::Device<'_>| d.name().is_some_and(|n| n.to_bytes() == port.chosen.device.as_bytes());
    let device = devices.iter().find(named).ok_or("the adapter is gone")?;
    let context = device.open()?;
    let (here, there) = (context.create_cq(16, 0)?, context.create_cq(16, 1)?);
    let domain = context.alloc_pd()?;
    let gid = u32::from(port.chosen.gid.index);
    let left = domain.create_qp(&here, &here, ibv_qp_type::IBV_QPT_RC).set_gid_index(gid).build()?;
    let right = domain.create_qp(&there, &there, ibv_qp_type::IBV_QPT_RC).set_gid_index(gid).build()?;
    let (at_left, at_right) = (left.endpoint(), right.endpoint());
    let mut left = End { pair: left.handshake(at_right)?, queue: &here, memory: domain.allocate(size)? };
    let mut right = End { pair: right.handshake(at_left)?, queue: &there, memory: domain.allocate(size)? };
    let mut answer = domain.allocate::<u8>(1)?;
    let mut times = round_of_times();
    for _ in 0..count {
        right.receive(size)?;
        // SAFETY: `answer` lives on, and its receive has ended when the loop comes here again.
        unsafe { left.pair.post_receive(&mut answer, .., RECEIVED) }?;
        let start = Instant::now();
        left.send(size)?;
        right.await_one(RECEIVED)?;
        right.send(1)?;
        left.await_both()?;
        times.saturating_record(start.elapsed().as_nanos() as u64);
        right.await_one(SENT)?;
    }
    Ok(times)
}

/// One end of the connection.
struct End<'r> {
    pair: QueuePair<'r>,
    queue: &'r CompletionQueue<'r>,
    memory: MemoryRegion<u8>,
}

impl End<'_> {
    fn send(&mut self, len: usize) -> io::Result<()> {
        let range: RangeTo<usize> = ..len;
        // SAFETY: the memory lives as long as the pair, and is not used again before this has ended.
        unsafe { self.pair.post_send(&mut self.memory, range, SENT) }
    }

    fn receive(&mut self, len: usize) -> io::Result<()> {
        let range: RangeTo<usize> = ..len;
        // SAFETY: as above.
        unsafe { self.pair.post_receive(&mut self.memory, range, RECEIVED) }
    }

    fn await_both(&self) -> Outcome<()> {
        let (mut sent, mut received) = (false, false);
        while !(sent && received) {
            let done = self.next()?;
            sent |= done == SENT;
            received |= done == RECEIVED;
        }
        Ok(())
    }

    fn await_one(&self, which: u64) -> Outcome<()> {
        match self.next()? {
            done if done == which => Ok(()),
            other => Err(format!("completion {other} instead of {which}").into()),
        }
    }

    fn next(&self) -> Outcome<u64> {
        let mut done = [ibv_wc::default()];
        loop {
            if let [one] = self.queue.poll(&mut done)? {
                return match one.error() {
                    None => Ok(one.wr_id()),
                    Some((status, _)) => Err(format!("a message failed: {status:?}").into()),
                };
            }
        }
    }
}
