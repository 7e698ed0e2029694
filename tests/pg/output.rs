//! Commands whose output nobody takes, and what they show to who sits at a terminal.

use std::fs::{self, File};
use std::net::TcpListener;
use std::process::{Command, Stdio};

use walrelay_testkit::{Cluster, Scratch, Server, on_one_version, tied_command, wait_until};

use crate::{relay_below, walrelay};

on_one_version!(who_sits_at_a_terminal_sees_how_far_it_is_and_a_program_does_not);

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

/// The command at a terminal of its own, whose text is the standard output of this one (util-linux).
pub(crate) fn at_a_terminal(args: &[&str]) -> Command {
    let words =
        [walrelay().display().to_string()].into_iter().chain(args.iter().map(|&word| word.to_owned()));
    let words: Vec<_> = words.map(|word| format!("'{word}'")).collect();
    let mut command = tied_command("script");
    command.args(["--quiet", "--return", "--command", &words.join(" "), "/dev/null"]);
    command.env("TERM", "xterm").stdin(Stdio::null()).stderr(Stdio::null());
    command
}

fn who_sits_at_a_terminal_sees_how_far_it_is_and_a_program_does_not(server: &Server) {
    let (scratch, primary) = (Scratch::new("progress"), Cluster::builder(server).seg_mb(1).start());
    let archive = scratch.dir("wal");
    let url = format!("file://{}", archive.display());
    let mut relay = relay_below(&primary).arg("--archive").arg(&url).start();
    primary.pgbench_init(1);
    let last = primary.switch_wal();
    wait_until(format_args!("{last} in the archive"), || archive.join(&last).exists());
    relay.terminate();
    let data = relay.data_dir().display().to_string();
    let (data, url) = (data.as_str(), url.as_str());
    let restored = scratch.join("restored").display().to_string();
    let commands: [(&[&str], &str); 5] = [
        (&["verify", data], "verifying: ["),
        (&["archive", "verify", "--from", url], "verifying "),
        (&["archive", "list", "--from", url], "reading "),
        (&["branch", "list", "--data-dir", data], "reading branches: "),
        (&["archive-cleanup", "--from", url, &last], "removing from "),
    ];
    for (args, bar) in commands {
        let shown = at_a_terminal(args).output().expect("there is a script");
        let text = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert!(shown.status.success() && text.contains(bar), "{args:?}: {text:?}");
        let piped = tied_command(walrelay()).args(args).output().expect("it can be run");
        let text = String::from_utf8_lossy(&[piped.stdout, piped.stderr].concat()).into_owned();
        assert!(piped.status.success(), "{args:?}: {text}");
        assert!(!text.contains(bar) && !text.contains('\x1b') && !text.contains('\r'), "{args:?}: {text:?}");
    }
    // Where others are waited for there is a sign of life, and what is quick shows nothing.
    let quick =
        at_a_terminal(&["restore", "--from", url, &last, &restored]).output().expect("there is a script");
    assert_eq!((quick.status.code(), quick.stdout), (Some(0), Vec::new()));
    for command in ["status", "fence"] {
        let silent = TcpListener::bind("127.0.0.1:0").expect("there are ports");
        let port = silent.local_addr().expect("it has one").port();
        let conninfo = format!("host=127.0.0.1 port={port} user=x sslmode=disable gssencmode=disable");
        let place: &[&str] = if command == "fence" { &["fence", "--relay"] } else { &["status"] };
        let shown = scratch.join(command);
        let mut waiting = at_a_terminal(&[place, &[&conninfo]].concat())
            .stdout(File::create(&shown).expect("the directory is ours"))
            .spawn()
            .expect("there is a script");
        wait_until("a sign of life", || {
            String::from_utf8_lossy(&fs::read(&shown).unwrap_or_default()).contains("asking the relay")
        });
        drop(silent);
        assert!(!waiting.wait().expect("it ends").success());
    }
}
