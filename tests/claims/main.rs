//! What each mechanism must show, as statements that a test decides: one module a mechanism, one test a claim.

mod s1;
mod s2;
mod s3;
mod s4;
mod s5;
mod s6;

use pmemha_testkit::node::Binaries;

const BINARIES: Binaries =
    Binaries { agent: env!("CARGO_BIN_EXE_pmemhad"), cli: env!("CARGO_BIN_EXE_pmemha") };
