//! Commands whose output nobody takes.

use std::fs::File;
use std::process::{Command, Stdio};

use walrelay_testkit::{Scratch, tied_command};

use crate::walrelay;

fn completions() -> Command {
    let mut command = tied_command(walrelay());
    command.args(["completions", "bash"]);
    command
}

/// The writing end of a pipe whose reader is gone.
fn pipe_to_nobody() -> Stdio {
    std::io::pipe().expect("a pipe").1.into()
}

#[test]
fn a_reader_that_has_seen_enough_ends_the_command_without_a_word() {
    let said = completions().stdout(pipe_to_nobody()).stderr(Stdio::piped()).output().expect("it can be run");
    assert_eq!((said.status.code(), String::from_utf8_lossy(&said.stderr).as_ref()), (Some(141), ""));
}

#[test]
fn output_that_finds_no_room_is_an_error() {
    let full = File::options().write(true).open("/dev/full").expect("Linux has it");
    let said = completions().stdout(full).stderr(Stdio::piped()).output().expect("it can be run");
    let text = String::from_utf8_lossy(&said.stderr).into_owned();
    assert_eq!(said.status.code(), Some(1), "{text}");
    assert!(text.contains("could not write to standard output: No space left on device"), "{text}");
}

/// By its exit code a server decides whether it ends: a fault in saying something would be another one.
#[test]
fn a_restore_whose_words_nobody_hears_gives_the_same_answer() {
    let scratch = Scratch::new("output");
    let source = format!("file://{}", scratch.join("missing").display());
    let mut restore = tied_command(walrelay());
    restore.args(["restore", "--timeout", "100ms", "--from", &source, "000000010000000000000001"]);
    restore.arg(scratch.join("to"));
    let heard = restore.stderr(Stdio::piped()).output().expect("it can be run");
    assert!(!heard.stderr.is_empty());
    let unheard = restore.stderr(pipe_to_nobody()).output().expect("it can be run");
    assert_eq!(unheard.status.code(), heard.status.code(), "{}", String::from_utf8_lossy(&heard.stderr));
}
