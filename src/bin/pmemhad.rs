//! `pmemhad`: the agent of a node.
fn main() {}
