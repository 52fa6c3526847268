//! `pmemha-perf`: what pmemha costs and how fast it is, its peers in the same run.
fn main() {}
