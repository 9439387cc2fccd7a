//! The `egress-router` binary; everything is in the library.

fn main() -> std::process::ExitCode {
    egress_user::cli::main()
}
