//! Log files of the processes under test.

use std::path::{Path, PathBuf};

use crate::wait::wait_until;

/// A log file that a process appends to.
#[derive(Debug, Clone)]
pub struct Log {
    path: PathBuf,
}

/// A place in a log: what was written before it does not count.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mark(usize);

impl Log {
    pub(crate) fn at(path: PathBuf) -> Log {
        Log { path }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Everything written so far.
    pub fn text(&self) -> String {
        std::fs::read(&self.path)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The present end.
    pub fn mark(&self) -> Mark {
        let len = std::fs::metadata(&self.path).map_or(0, |file| file.len());
        Mark(usize::try_from(len).expect("a file that can be read whole"))
    }

    /// Lines written after `mark` that contain `part`.
    pub fn lines_with(&self, part: &str, mark: Mark) -> Vec<String> {
        let text = self.text();
        let rest = text.get(mark.0..).unwrap_or_default();
        rest.lines().filter(|line| line.contains(part)).map(str::to_owned).collect()
    }

    /// Waits for a line containing `part` anywhere in the log.
    #[track_caller]
    pub fn wait_for(&self, part: &str) {
        self.wait_for_after(Mark::default(), part);
    }

    /// Waits for a line containing `part` after `mark`.
    #[track_caller]
    pub fn wait_for_after(&self, mark: Mark, part: &str) {
        wait_until(format_args!("\"{part}\" in {}", self.path.display()), || {
            !self.lines_with(part, mark).is_empty()
        });
    }

    /// The last lines, for a failure's message.
    pub fn tail(&self) -> String {
        let text = self.text();
        let lines: Vec<&str> = text.lines().collect();
        let last = lines.len().saturating_sub(25);
        format!(
            "--- end of {}\n{}\n---",
            self.path.display(),
            lines.get(last..).unwrap_or_default().join("\n")
        )
    }
}
