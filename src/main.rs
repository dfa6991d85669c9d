//! Starts the program; everything is in the library.

fn main() -> std::process::ExitCode {
    lifeboat::cli::main().into()
}
