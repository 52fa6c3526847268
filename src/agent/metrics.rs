//! Serves the status document to Prometheus: `GET /metrics` by HTTP, at the address that the configuration names.
//!
//! Whoever can reach the address may read it, so it is to be one that only the monitoring reaches. Each answer is a status
//! gathered for it. A reader that does not take its answer keeps one of the threads that answer and nothing else.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;

use tiny_http::{Header, Method, Request, Response, Server, StatusCode};

use super::status::{Status, metrics};

/// Requests that are answered at a time.
const ANSWERING: usize = 4;

/// What is served, and by which version of the format.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The server. Dropped, it answers no further request.
pub struct Metrics(Arc<Server>);

impl Metrics {
    /// Listens at `listen`; who connects waits until [`Metrics::serve`].
    pub fn bind(listen: SocketAddr) -> io::Result<Metrics> {
        Ok(Metrics(Arc::new(Server::http(listen).map_err(io::Error::other)?)))
    }

    /// Answers with what `status` says at the moment: nothing once the agent is finishing.
    pub fn serve(self, status: impl Fn() -> Option<Status> + Clone + Send + 'static) -> io::Result<Metrics> {
        for _ in 0..ANSWERING {
            let (server, status) = (self.0.clone(), status.clone());
            let serve = move || server.incoming_requests().for_each(|request| answer(request, &status));
            thread::Builder::new().name("metrics".into()).spawn(serve)?;
        }
        Ok(self)
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        // The threads are left to themselves: one of them may be at a reader that does not take its answer.
        (0..ANSWERING).for_each(|_| self.0.unblock());
    }
}

fn answer(request: Request, status: &impl Fn() -> Option<Status>) {
    let asked = request.url().split('?').next() == Some("/metrics");
    let read = matches!(request.method(), Method::Get | Method::Head);
    let response = match status().filter(|_| asked && read) {
        Some(status) => {
            Response::from_string(metrics::render(&status)).with_header(content_type(CONTENT_TYPE))
        }
        None if !asked => refusal(404, "the metrics are at /metrics\n"),
        None if !read => refusal(405, "metrics can only be read\n"),
        None => refusal(503, "the agent is finishing\n"),
    };
    if let Err(error) = request.respond(response) {
        tracing::debug!(%error, "whoever asked for metrics went away");
    }
}

fn refusal(code: u16, why: &str) -> Response<io::Cursor<Vec<u8>>> {
    Response::from_string(why).with_status_code(StatusCode(code))
}

fn content_type(value: &str) -> Header {
    Header::from_bytes("Content-Type", value).expect("a header of letters")
}
