//! Programs that the relay starts hear the signals that it holds back itself.

use nix::sys::signal::SigSet;
use tokio::process::Command;

/// Has it begin with no signal held back, as PostgreSQL's children do. A process has the mask of the thread that starts it, and
/// [`Command`] leaves it at that.
///
/// The mask of that thread is no place for it: a signal that waits there would end the relay.
#[allow(unsafe_code)]
pub(crate) fn hears_signals(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec only what is safe in a signal handler may be called. This is one call of `pthread_sigmask`,
    // which is; nothing is allocated or locked, and an error is a number.
    unsafe { command.pre_exec(|| Ok(SigSet::empty().thread_set_mask()?)) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use nix::sys::signal::Signal;

    use super::*;

    /// With signals that nobody who has called the tests ignores, as nohup does SIGHUP.
    #[tokio::test]
    async fn a_child_hears_what_is_held_back_here() {
        let held: SigSet = [Signal::SIGTERM, Signal::SIGUSR2].into_iter().collect();
        held.thread_block().unwrap();
        for signal in [Signal::SIGTERM, Signal::SIGUSR2] {
            let mut shell = Command::new("sh");
            shell.args(["-c", &format!("kill -{} $$; exit 0", signal as i32)]);
            let status = hears_signals(&mut shell).status().await.unwrap();
            assert_eq!(status.signal(), Some(signal as i32), "{status}");
        }
    }
}
