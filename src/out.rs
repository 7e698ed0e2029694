//! What the commands write to standard output and standard error. A reader that has seen enough (`walrelay archive list | head`) ends the command,
//! as it ends any other; a file that cannot be written is said.

use std::fmt::Arguments;
use std::io::{self, Write};

use crate::progress::beside;

/// As a shell tells of a program that SIGPIPE has ended.
const NOBODY_READS: u8 = 128 + 13;
/// As `RelayError::System`.
const NOT_WRITTEN: u8 = 1;

/// `println!` of the commands.
macro_rules! say {
    ($($text:tt)*) => { $crate::out::write(format_args!("{}\n", format_args!($($text)*))) };
}
pub(crate) use say;

/// Writes to standard output; where that cannot be, ends the process with what is known of why.
pub fn write(text: Arguments<'_>) {
    let written = beside(|| {
        let mut out = io::stdout().lock();
        out.write_fmt(text).and_then(|()| out.flush())
    });
    if let Err(error) = written {
        if error.kind() != io::ErrorKind::BrokenPipe {
            tell(format_args!("walrelay: error: could not write to standard output: {error}\n"));
        }
        std::process::exit(code(&error).into());
    }
}

/// Writes to standard error, if somebody reads it.
pub fn tell(text: Arguments<'_>) {
    let _ = beside(|| io::stderr().lock().write_fmt(text));
}

fn code(error: &io::Error) -> u8 {
    if error.kind() == io::ErrorKind::BrokenPipe { NOBODY_READS } else { NOT_WRITTEN }
}
