//! What a package brings beside the program: shell completions and manual pages, made from the command line's own description.

use std::io::{self, Write};
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::config::Cli;

/// Writes what makes the shell complete `walrelay`.
pub fn completions(shell: Shell, out: &mut dyn Write) {
    clap_complete::generate(shell, &mut Cli::command(), "walrelay", &mut &mut *out);
}

/// Writes `walrelay.1`, and one page for each command, into a directory.
///
/// # Errors
/// It cannot be written to.
pub fn man_pages(dir: &Path) -> io::Result<()> {
    clap_mangen::generate_to(Cli::command(), dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_completes_settings_and_commands() {
        for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
            let mut text = Vec::new();
            completions(shell, &mut text);
            let text = String::from_utf8(text).expect("shells read text");
            for word in ["wal-keep-size", "archive-cleanup", "check-config"] {
                assert!(text.contains(word), "{shell}: {word}");
            }
        }
    }

    #[test]
    fn there_is_a_page_for_the_relay_and_for_each_command() {
        let dir = tempfile::tempdir().unwrap();
        man_pages(dir.path()).unwrap();
        let page = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(page("walrelay.1").contains("WALRELAY_UPSTREAM"));
        assert!(page("walrelay-restore.1").contains("restore_command"));
        let commands = Cli::command();
        for command in commands.get_subcommands().filter(|command| !command.is_hide_set()) {
            page(&format!("walrelay-{}.1", command.get_name()));
        }
    }
}
