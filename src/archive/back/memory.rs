//! A source in memory, for tests: it can be down, slow or wrong.

use std::collections::HashMap;
use std::sync::Mutex;

use bytes::Bytes;
use tokio::sync::watch;

use super::source::{FetchError, Fetching, Look, Source, show_whole};
use crate::archive::repo::name::FileName;
use crate::pulse::Pulse;

#[derive(Debug)]
pub(crate) struct Memory {
    name: &'static str,
    files: Mutex<HashMap<String, Bytes>>,
    asked: Mutex<Vec<String>>,
    /// Answers are given while this is true.
    open: watch::Sender<bool>,
    down: watch::Sender<bool>,
    /// A file that cannot be had.
    down_for: Mutex<Option<String>>,
    /// When it was asked for the one file, it becomes another.
    finished: Mutex<Option<(String, Bytes)>>,
    pulse: Pulse,
}

impl Memory {
    pub(crate) fn new(name: &'static str) -> Memory {
        Memory {
            name,
            files: Mutex::default(),
            asked: Mutex::default(),
            open: watch::Sender::new(true),
            down: watch::Sender::new(false),
            down_for: Mutex::default(),
            finished: Mutex::default(),
            pulse: Pulse::default(),
        }
    }

    pub(crate) fn put(&self, name: &str, content: impl Into<Bytes>) {
        self.files.lock().unwrap().insert(name.to_owned(), content.into());
    }

    pub(crate) fn remove(&self, name: &str) {
        self.files.lock().unwrap().remove(name).unwrap();
    }

    pub(crate) fn set_down(&self, down: bool) {
        self.down.send_replace(down);
    }

    pub(crate) fn set_down_for(&self, name: &str) {
        *self.down_for.lock().unwrap() = Some(name.to_owned());
    }

    /// Lets questions wait for their answers, or answers them.
    pub(crate) fn set_open(&self, open: bool) {
        self.open.send_replace(open);
    }

    /// Finishes a segment as soon as it was asked for, and answered that it is not there.
    pub(crate) fn finish_when_asked(&self, segment: &str, content: impl Into<Bytes>) {
        *self.finished.lock().unwrap() = Some((segment.to_owned(), content.into()));
    }

    /// How often a file was asked for.
    pub(crate) fn asked(&self, name: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|asked| *asked == name).count()
    }

    async fn get(&self, name: &str) -> Result<Option<Bytes>, FetchError> {
        self.asked.lock().unwrap().push(name.to_owned());
        let _ = self.open.subscribe().wait_for(|open| *open).await;
        self.pulse.beat();
        if *self.down.borrow() || self.down_for.lock().unwrap().as_deref() == Some(name) {
            return Err(FetchError::Unreachable {
                place: self.name.to_owned(),
                reason: "it is down".to_owned(),
            });
        }
        let mut files = self.files.lock().unwrap();
        let found = files.get(name).cloned();
        if let Some((segment, content)) =
            self.finished.lock().unwrap().take_if(|(segment, _)| segment == name)
        {
            files.remove(&format!("{segment}.partial"));
            files.insert(segment, content);
        }
        Ok(found)
    }
}

impl Source for Memory {
    fn name(&self) -> &str {
        self.name
    }

    fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    fn read<'a>(&'a self, file: &'a str) -> Fetching<'a, Option<Bytes>> {
        Box::pin(self.get(file))
    }

    fn read_branch<'a>(&'a self, segment: &'a str) -> Fetching<'a, Option<Bytes>> {
        Box::pin(async move { self.get(&format!("{segment}.branch")).await })
    }

    fn later<'a>(&'a self, segment: &'a str) -> Fetching<'a, Vec<FileName>> {
        Box::pin(async move {
            self.get("").await?;
            let files = self.files.lock().unwrap();
            let named = |name: &String| FileName::parse(name.strip_suffix(".partial").unwrap_or(name));
            let mut later: Vec<_> =
                files.keys().filter_map(named).filter(|file| file.as_str() > segment).collect();
            later.sort();
            Ok(later)
        })
    }

    fn show<'a>(&'a self, file: &'a str, _size: u64, look: Look) -> Fetching<'a, bool> {
        Box::pin(show_whole(self.read(file), look))
    }

    fn read_unfinished<'a>(&'a self, segment: &'a str) -> Fetching<'a, Vec<Bytes>> {
        Box::pin(async move {
            let found = match self.get(&format!("{segment}.partial")).await? {
                None => self.files.lock().unwrap().get(segment).cloned(),
                found => found,
            };
            Ok(found.into_iter().collect())
        })
    }
}
