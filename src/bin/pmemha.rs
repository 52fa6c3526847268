//! `pmemha`: the operator's command.
fn main() {}
