//! The `walrelay` command.

fn main() {}
