//! The least that tcp costs: bytes there, and one byte back, over loopback, both ends asleep between.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::Instant;

use hdrhistogram::Histogram;

use crate::Outcome;
use crate::figures::round_of_times;

/// Its name in rows.
pub const NAME: &str = "tcp round trip";

/// Nanoseconds until the answer to `size` bytes.
pub fn latency(size: usize, count: usize) -> Outcome<Histogram<u64>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut stream = TcpStream::connect(listener.local_addr()?)?;
    stream.set_nodelay(true)?;
    let echo = answer(listener, size, count);
    let (mut times, message) = (round_of_times(), vec![1; size]);
    for _ in 0..count {
        let start = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut [0])?;
        times.saturating_record(start.elapsed().as_nanos() as u64);
    }
    echo.join().expect("the answering thread does not panic")?;
    Ok(times)
}

fn answer(listener: TcpListener, size: usize, count: usize) -> JoinHandle<std::io::Result<()>> {
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut message = vec![0; size];
        for _ in 0..count {
            stream.read_exact(&mut message)?;
            stream.write_all(&[1])?;
        }
        Ok(())
    })
}
