//! What lies on a simulated disk: the live image and the durable one, and what a crash makes of both.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Component, Path};
use std::sync::Arc;

use super::Random;
use crate::disk::Metadata;

/// What is lost or kept as a whole, bytes.
pub(super) const BLOCK: u64 = 4096;
/// What is written as a whole, bytes.
const SECTOR: usize = 512;
/// The root's number.
const ROOT: u64 = 1;

type Block = Arc<[u8; BLOCK as usize]>;

/// Files and directories by number. Those without a name stay as long as a crash may bring it back.
#[derive(Clone, Debug)]
pub(super) struct Image {
    files: BTreeMap<u64, FileNode>,
    dirs: BTreeMap<u64, DirNode>,
    next: u64,
    /// Counts changes; stands for the time.
    tick: i64,
    device: u64,
    /// Blocks there are; `None` for no end of them.
    capacity: Option<u64>,
}

#[derive(Clone, Debug, Default)]
struct FileNode {
    live: Content,
    durable: Content,
    /// Blocks that differ, for the next sync to write.
    unsynced: BTreeSet<u64>,
    /// Blocks that differ, and that a failed sync has taken for clean.
    lost: BTreeSet<u64>,
    /// Blocks that were reserved, from the start.
    reserved: u64,
    handles: u32,
    is_locked: bool,
    changed: i64,
}

/// Blocks that are missing are zeros.
#[derive(Clone, Debug, Default)]
struct Content {
    len: u64,
    blocks: BTreeMap<u64, Block>,
}

#[derive(Clone, Debug, Default)]
struct DirNode {
    live: BTreeMap<String, u64>,
    durable: BTreeMap<String, u64>,
    /// What makes the durable names the live ones, in order.
    pending: Vec<Change>,
    changed: i64,
    durable_changed: i64,
}

/// A change of names that happens whole or not at all.
#[derive(Clone, Debug)]
struct Change {
    sets: Vec<(String, Option<u64>)>,
    /// A failed sync has taken it for durable.
    is_stuck: bool,
}

/// How much of what was not synced there is after a crash.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    Nothing,
    Everything,
    Mixed,
}

impl Outcome {
    /// The extremes are what is met most.
    fn any(random: &mut Random) -> Outcome {
        match random.below(4) {
            0 => Outcome::Nothing,
            1 => Outcome::Everything,
            _ => Outcome::Mixed,
        }
    }
}

impl Image {
    pub(super) fn new() -> Image {
        Image {
            files: BTreeMap::new(),
            dirs: BTreeMap::from([(ROOT, DirNode::default())]),
            next: ROOT + 1,
            tick: 0,
            device: 1,
            capacity: None,
        }
    }

    // --- names

    /// The number of what the path leads to.
    pub(super) fn resolve(&self, path: &Path) -> io::Result<u64> {
        let mut at = ROOT;
        for part in path.components() {
            match part {
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
                Component::ParentDir => return Err(error(libc::EINVAL)),
                Component::Normal(name) => {
                    let dir = self.dirs.get(&at).ok_or_else(|| error(libc::ENOTDIR))?;
                    let found = name.to_str().and_then(|name| dir.live.get(name));
                    at = *found.ok_or_else(|| error(libc::ENOENT))?;
                }
            }
        }
        Ok(at)
    }

    /// The directory that the path lies in, and the name in it.
    pub(super) fn parent_of(&self, path: &Path) -> io::Result<(u64, String)> {
        let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| error(libc::EINVAL))?;
        let parent = self.resolve(path.parent().unwrap_or(Path::new("/")))?;
        if !self.dirs.contains_key(&parent) {
            return Err(error(libc::ENOTDIR));
        }
        Ok((parent, name.to_owned()))
    }

    pub(super) fn is_dir(&self, inode: u64) -> bool {
        self.dirs.contains_key(&inode)
    }

    pub(super) fn names(&self, dir: u64) -> io::Result<Vec<String>> {
        let dir = self.dirs.get(&dir).ok_or_else(|| error(libc::ENOTDIR))?;
        Ok(dir.live.keys().cloned().collect())
    }

    pub(super) fn lookup(&self, dir: u64, name: &str) -> io::Result<u64> {
        let found = self.dirs.get(&dir).and_then(|dir| dir.live.get(name));
        found.copied().ok_or_else(|| error(libc::ENOENT))
    }

    /// A file, for a name that is not there yet.
    pub(super) fn create(&mut self, dir: u64, name: &str) -> io::Result<u64> {
        // An entry takes no block of its own.
        let inode = self.number();
        self.tick += 1;
        self.files.insert(inode, FileNode { changed: self.tick, ..FileNode::default() });
        self.change(dir, vec![(name.to_owned(), Some(inode))]);
        Ok(inode)
    }

    pub(super) fn make_dir(&mut self, dir: u64, name: &str) -> io::Result<()> {
        if self.lookup(dir, name).is_ok() {
            return Err(error(libc::EEXIST));
        }
        let inode = self.number();
        self.dirs.insert(inode, DirNode::default());
        self.change(dir, vec![(name.to_owned(), Some(inode))]);
        Ok(())
    }

    pub(super) fn remove(&mut self, dir: u64, name: &str) -> io::Result<()> {
        let inode = self.lookup(dir, name)?;
        if self.is_dir(inode) {
            return Err(error(libc::EISDIR));
        }
        self.change(dir, vec![(name.to_owned(), None)]);
        Ok(())
    }

    pub(super) fn rename(&mut self, from: (u64, &str), to: (u64, &str)) -> io::Result<()> {
        let inode = self.lookup(from.0, from.1)?;
        let there = self.lookup(to.0, to.1).ok();
        if self.is_dir(inode) || there.is_some_and(|there| self.is_dir(there)) {
            return Err(error(libc::EISDIR));
        }
        if there == Some(inode) {
            return Ok(());
        }
        let (taken, given) = ((from.1.to_owned(), None), (to.1.to_owned(), Some(inode)));
        if from.0 == to.0 {
            self.change(from.0, vec![taken, given]);
        } else {
            self.change(to.0, vec![given]);
            self.change(from.0, vec![taken]);
        }
        Ok(())
    }

    pub(super) fn exchange(&mut self, dir: u64, one: &str, other: &str) -> io::Result<()> {
        let inodes = (self.lookup(dir, one)?, self.lookup(dir, other)?);
        self.change(dir, vec![(one.to_owned(), Some(inodes.1)), (other.to_owned(), Some(inodes.0))]);
        Ok(())
    }

    pub(super) fn sync_dir(&mut self, inode: u64) {
        if let Some(dir) = self.dirs.get_mut(&inode) {
            dir.sync();
            self.forget_unreachable();
        }
    }

    pub(super) fn lose_dir(&mut self, inode: u64) {
        if let Some(dir) = self.dirs.get_mut(&inode) {
            dir.pending.iter_mut().for_each(|change| change.is_stuck = true);
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    fn change(&mut self, dir: u64, sets: Vec<(String, Option<u64>)>) {
        self.tick += 1;
        let tick = self.tick;
        let Some(dir) = self.dirs.get_mut(&dir) else { return };
        dir.changed = tick;
        set(&mut dir.live, &sets);
        dir.pending.push(Change { sets, is_stuck: false });
    }

    /// Forgets files that nobody has open and no crash brings back.
    fn forget_unreachable(&mut self) {
        let mut named: BTreeSet<u64> = BTreeSet::new();
        for dir in self.dirs.values() {
            named.extend(dir.live.values().chain(dir.durable.values()));
            let pending = dir.pending.iter().flat_map(|change| &change.sets);
            named.extend(pending.filter_map(|(_, inode)| *inode));
        }
        self.files.retain(|inode, file| file.handles > 0 || named.contains(inode));
        self.dirs.retain(|inode, _| *inode == ROOT || named.contains(inode));
    }

    // --- files

    pub(super) fn open(&mut self, inode: u64) {
        if let Some(file) = self.files.get_mut(&inode) {
            file.handles += 1;
        }
    }

    pub(super) fn close(&mut self, inode: u64, had_lock: bool) {
        if let Some(file) = self.files.get_mut(&inode) {
            file.handles = file.handles.saturating_sub(1);
            file.is_locked &= !had_lock;
        }
    }

    /// Whether it could be locked.
    pub(super) fn lock(&mut self, inode: u64) -> bool {
        self.files.get_mut(&inode).is_some_and(|file| !std::mem::replace(&mut file.is_locked, true))
    }

    pub(super) fn empty(&mut self, inode: u64) -> io::Result<()> {
        let file = self.files.get_mut(&inode).ok_or_else(|| error(libc::EISDIR))?;
        if file.live.len > 0 {
            let there = file.live.blocks.keys().chain(file.durable.blocks.keys());
            file.unsynced.extend(there);
            file.live = Content::default();
            file.reserved = 0;
        }
        Ok(())
    }

    pub(super) fn metadata(&self, inode: u64) -> io::Result<Metadata> {
        let of = |len, is_dir, changed| Metadata {
            len,
            is_dir,
            inode: (self.device, inode),
            changed: (changed, 0),
        };
        if let Some(dir) = self.dirs.get(&inode) {
            return Ok(of(BLOCK, true, dir.changed));
        }
        let file = self.files.get(&inode).ok_or_else(|| error(libc::ENOENT))?;
        Ok(of(file.live.len, false, file.changed))
    }

    pub(super) fn read(&self, inode: u64, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let file = self.files.get(&inode).ok_or_else(|| error(libc::EISDIR))?;
        let len = buffer.len().min(usize::try_from(file.live.len.saturating_sub(at)).unwrap_or(usize::MAX));
        let mut done = 0;
        while done < len {
            let (block, offset) = place(at + done as u64);
            let piece = (BLOCK as usize - offset).min(len - done);
            let into = &mut buffer[done..done + piece];
            match file.live.blocks.get(&block) {
                Some(content) => into.copy_from_slice(&content[offset..offset + piece]),
                None => into.fill(0),
            }
            done += piece;
        }
        Ok(len)
    }

    /// Whether no block of the range was ever written.
    pub(super) fn is_hole(&self, inode: u64, range: Range<u64>) -> bool {
        let Some(file) = self.files.get(&inode).filter(|file| range.end <= file.live.len) else {
            return false;
        };
        file.live.blocks.range(range.start / BLOCK..range.end.div_ceil(BLOCK)).next().is_none()
    }

    pub(super) fn write(&mut self, inode: u64, bytes: &[u8], at: u64) -> io::Result<()> {
        let end = at + bytes.len() as u64;
        let room = self.free_blocks();
        self.tick += 1;
        let tick = self.tick;
        let file = self.files.get_mut(&inode).ok_or_else(|| error(libc::EISDIR))?;
        let touched = at / BLOCK..end.div_ceil(BLOCK);
        let is_new = |block: &u64| *block >= file.reserved && !file.live.blocks.contains_key(block);
        let needed = touched.clone().filter(is_new).count() as u64;
        if room.is_some_and(|room| needed > room) {
            return Err(error(libc::ENOSPC));
        }
        let mut done = 0;
        while done < bytes.len() {
            let (block, offset) = place(at + done as u64);
            let piece = (BLOCK as usize - offset).min(bytes.len() - done);
            let bytes = &bytes[done..done + piece];
            done += piece;
            // Zeros where there is nothing but zeros are reserved already, or counted as a block.
            if block < file.reserved && !file.live.blocks.contains_key(&block) && is_zero(bytes) {
                continue;
            }
            let content = file.live.blocks.entry(block).or_insert_with(|| Arc::new([0; BLOCK as usize]));
            Arc::make_mut(content)[offset..offset + piece].copy_from_slice(bytes);
        }
        for block in touched {
            file.lost.remove(&block);
            file.unsynced.insert(block);
        }
        file.live.len = file.live.len.max(end);
        file.changed = tick;
        Ok(())
    }

    pub(super) fn allocate(&mut self, inode: u64, len: u64) -> io::Result<()> {
        let room = self.free_blocks();
        let file = self.files.get_mut(&inode).ok_or_else(|| error(libc::EISDIR))?;
        let blocks = len.div_ceil(BLOCK);
        let needed = blocks.saturating_sub(file.blocks());
        if room.is_some_and(|room| needed > room) {
            return Err(error(libc::ENOSPC));
        }
        file.reserved = file.reserved.max(blocks);
        file.live.len = file.live.len.max(len);
        Ok(())
    }

    pub(super) fn sync_file(&mut self, inode: u64) {
        if let Some(file) = self.files.get_mut(&inode) {
            file.sync();
        }
    }

    pub(super) fn lose_file(&mut self, inode: u64) {
        if let Some(file) = self.files.get_mut(&inode) {
            file.lose();
        }
    }

    // --- all of it

    pub(super) fn sync_all(&mut self) {
        self.files.values_mut().for_each(FileNode::sync);
        self.dirs.values_mut().for_each(DirNode::sync);
        self.forget_unreachable();
    }

    pub(super) fn lose_all(&mut self) {
        self.files.values_mut().for_each(FileNode::lose);
    }

    pub(super) fn set_free_space(&mut self, bytes: Option<u64>) {
        self.capacity = bytes.map(|bytes| self.used_blocks() + bytes / BLOCK);
    }

    /// Bytes.
    pub(super) fn free_space(&self) -> u64 {
        self.free_blocks().map_or(u64::MAX, |blocks| blocks * BLOCK)
    }

    fn free_blocks(&self) -> Option<u64> {
        self.capacity.map(|capacity| capacity.saturating_sub(self.used_blocks()))
    }

    fn used_blocks(&self) -> u64 {
        let named: BTreeSet<u64> = self.dirs.values().flat_map(|dir| dir.live.values().copied()).collect();
        let there = |(inode, file): &(&u64, &FileNode)| file.handles > 0 || named.contains(inode);
        self.files.iter().filter(there).map(|(_, file)| file.blocks()).sum()
    }

    /// What is found when power comes back.
    pub(super) fn after_crash(&self, random: &mut Random) -> Image {
        let (content, names) = (Outcome::any(random), Outcome::any(random));
        let mut found = self.clone();
        for dir in found.dirs.values_mut() {
            dir.crash(names, random, &mut found.tick);
        }
        for file in found.files.values_mut() {
            file.crash(content, random);
        }
        found.forget_all_without_name();
        // Numbers of devices may change with a boot.
        if random.percent(25) {
            found.device += 1;
        }
        found
    }

    /// What the next process finds.
    pub(super) fn after_restart(&self, random: &mut Random) -> Image {
        let mut found = self.clone();
        for file in found.files.values_mut() {
            (file.handles, file.is_locked) = (0, false);
            file.drop_lost(random);
        }
        found.forget_unreachable();
        found
    }

    fn forget_all_without_name(&mut self) {
        let mut named = BTreeSet::from([ROOT]);
        let mut look = vec![ROOT];
        while let Some(dir) = look.pop() {
            let inside = self.dirs.get(&dir).into_iter().flat_map(|dir| dir.live.values().copied());
            look.extend(inside.filter(|inode| named.insert(*inode)));
        }
        self.files.retain(|inode, _| named.contains(inode));
        self.dirs.retain(|inode, _| named.contains(inode));
    }
}

impl FileNode {
    /// Blocks that it takes.
    fn blocks(&self) -> u64 {
        let beyond = self.live.blocks.range(self.reserved..).count() as u64;
        self.reserved + beyond
    }

    fn sync(&mut self) {
        for block in std::mem::take(&mut self.unsynced) {
            match self.live.blocks.get(&block) {
                Some(content) => self.durable.blocks.insert(block, content.clone()),
                None => self.durable.blocks.remove(&block),
            };
        }
        self.durable.len = self.live.len;
    }

    fn lose(&mut self) {
        self.lost.append(&mut self.unsynced);
    }

    fn crash(&mut self, outcome: Outcome, random: &mut Random) {
        let mut blocks = std::mem::take(&mut self.durable.blocks);
        let len = match outcome {
            Outcome::Nothing => self.durable.len,
            Outcome::Everything => self.live.len,
            Outcome::Mixed if random.percent(50) => self.durable.len,
            Outcome::Mixed => self.live.len,
        };
        let unsynced = std::mem::take(&mut self.unsynced);
        for block in unsynced.union(&std::mem::take(&mut self.lost)) {
            let (old, new) = (blocks.get(block), self.live.blocks.get(block));
            let found = match outcome {
                Outcome::Nothing => continue,
                Outcome::Everything => new.cloned(),
                Outcome::Mixed => match random.below(3) {
                    0 => continue,
                    1 => new.cloned(),
                    _ => Some(torn(old, new, random)),
                },
            };
            match found {
                Some(content) => blocks.insert(*block, content),
                None => blocks.remove(block),
            };
        }
        let mut content = Content { len, blocks };
        content.cut();
        let changed = self.changed;
        *self = FileNode {
            reserved: self.reserved.min(len.div_ceil(BLOCK)),
            live: content.clone(),
            durable: content,
            changed,
            ..FileNode::default()
        };
    }

    /// What a failed sync has taken for clean may make room for something else at any time.
    fn drop_lost(&mut self, random: &mut Random) {
        let outcome = Outcome::any(random);
        for block in self.lost.clone() {
            let is_dropped = match outcome {
                Outcome::Nothing => true,
                Outcome::Everything => false,
                Outcome::Mixed => random.percent(50),
            };
            if is_dropped {
                self.lost.remove(&block);
                match self.durable.blocks.get(&block) {
                    Some(content) => self.live.blocks.insert(block, content.clone()),
                    None => self.live.blocks.remove(&block),
                };
            }
        }
    }
}

impl Content {
    /// Drops what lies behind the end.
    fn cut(&mut self) {
        let (last, offset) = place(self.len);
        self.blocks.retain(|block, _| *block < last || (*block == last && offset > 0));
        if let Some(content) = self.blocks.get_mut(&last) {
            Arc::make_mut(content)[offset..].fill(0);
        }
    }
}

impl DirNode {
    fn sync(&mut self) {
        let (stuck, changes): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.pending).into_iter().partition(|change| change.is_stuck);
        self.pending = stuck;
        for change in changes {
            set(&mut self.durable, &change.sets);
            // What a name is now does not depend any more on what it was.
            let is_newer = |name: &String| change.sets.iter().any(|(newer, _)| newer == name);
            for earlier in &mut self.pending {
                earlier.sets.retain(|(name, _)| !is_newer(name));
            }
        }
        self.pending.retain(|change| !change.sets.is_empty());
        self.durable_changed = self.changed;
    }

    fn crash(&mut self, outcome: Outcome, random: &mut Random, tick: &mut i64) {
        let mut pending = std::mem::take(&mut self.pending);
        let all = pending.len();
        match outcome {
            Outcome::Nothing => pending.clear(),
            Outcome::Everything => {}
            Outcome::Mixed => {
                pending.truncate(random.below(all + 1));
                if !pending.is_empty() && random.percent(50) {
                    pending.remove(random.below(pending.len()));
                }
            }
        }
        pending.iter().for_each(|change| set(&mut self.durable, &change.sets));
        self.changed = match pending.len() {
            0 => self.durable_changed,
            kept if kept == all => self.changed,
            _ => {
                *tick += 1;
                *tick
            }
        };
        self.durable_changed = self.changed;
        self.live = self.durable.clone();
    }
}

fn set(names: &mut BTreeMap<String, u64>, sets: &[(String, Option<u64>)]) {
    for (name, inode) in sets {
        match inode {
            Some(inode) => names.insert(name.clone(), *inode),
            None => names.remove(name),
        };
    }
}

/// Each sector from one or the other.
fn torn(old: Option<&Block>, new: Option<&Block>, random: &mut Random) -> Block {
    let zeros = [0; BLOCK as usize];
    let mut found = old.map_or(zeros, |old| **old);
    let new = new.map_or(zeros, |new| **new);
    for sector in (0..BLOCK as usize).step_by(SECTOR) {
        if random.percent(50) {
            found[sector..sector + SECTOR].copy_from_slice(&new[sector..sector + SECTOR]);
        }
    }
    Arc::new(found)
}

fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<64>();
    words.iter().all(|word| *word == [0; 64]) && rest.iter().all(|byte| *byte == 0)
}

/// Block and offset in it.
fn place(at: u64) -> (u64, usize) {
    (at / BLOCK, (at % BLOCK) as usize)
}

pub(super) fn error(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}
