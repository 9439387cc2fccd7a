//! Every chore of the project is `cargo xtask <verb>`.
fn main() {}
