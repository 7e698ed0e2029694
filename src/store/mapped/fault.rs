//! SIGBUS, explained: a page of a mapped file cannot be read, because somebody has truncated the file or its disk has failed.
//!
//! There is no going on from it. The load that failed cannot return without bytes, and bytes that are not the file's
//! must not be archived. So the process ends as if it had been killed, which it is made for, but says which file it was
//! and has an exit code of its own.
//!
//! What runs in the handler is async-signal-safe: system calls and the stack, no locks and no memory from the heap. The
//! file's name is found in `/proc/self/maps`, so nobody has to keep a table of maps.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use rustix::fs::{Mode, OFlags};

/// A line of `/proc/self/maps`, as far as it is kept.
const LINE: usize = 1024;
/// How long the reader of standard error is waited for, milliseconds.
const PATIENCE: libc::c_int = 1000;

static EXIT_CODE: AtomicI32 = AtomicI32::new(0);
static AS_JSON: AtomicBool = AtomicBool::new(false);
static DYING: AtomicBool = AtomicBool::new(false);

/// From now on SIGBUS ends the process with this exit code and words on standard error, as JSON if so wished.
///
/// # Errors
/// The system takes no handler.
pub fn explain_bus_errors(exit_code: u8, as_json: bool) -> io::Result<()> {
    EXIT_CODE.store(exit_code.into(), Ordering::Relaxed);
    AS_JSON.store(as_json, Ordering::Relaxed);
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_bus_error;
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: all zeros is a `sigaction` without flags. The handler has the signature that SA_SIGINFO asks for, and keeps
    // to what is async-signal-safe. It runs on the stack of the thread that has loaded: that has room, for a stack that
    // has none is SIGSEGV.
    let set = unsafe {
        let action = action.assume_init_mut();
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, action, std::ptr::null_mut())
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

extern "C" fn on_bus_error(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel hands over a `siginfo_t`, which for a fault has the address.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    if code <= 0 {
        // Somebody has sent it: what was ordered happens when this returns.
        // SAFETY: both are async-signal-safe.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
        return;
    }
    if DYING.swap(true, Ordering::Relaxed) {
        // Another thread is just saying it.
        loop {
            // SAFETY: waits for a signal.
            unsafe { libc::pause() };
        }
    }
    let mut words = Words::new(AS_JSON.load(Ordering::Relaxed));
    words.say(address);
    words.write();
    // SAFETY: ends the process without running anything of it.
    unsafe { libc::_exit(EXIT_CODE.load(Ordering::Relaxed)) }
}

/// The last words, put together without memory from the heap.
struct Words {
    text: [u8; LINE + 512],
    len: usize,
    as_json: bool,
}

impl Words {
    fn new(as_json: bool) -> Words {
        Words { text: [0; LINE + 512], len: 0, as_json }
    }

    fn say(&mut self, address: usize) {
        let mut line = Line::default();
        let found = open_maps().and_then(|maps| line.find(address, |buffer| rustix::io::read(&maps, buffer)));
        self.put(if self.as_json { b"{\"level\":\"ERROR\",\"message\":\"" } else { b"walrelay: error: " });
        match found {
            Some(place) => {
                self.put_text(b"could not reach byte ");
                self.put_number(place.offset);
                self.put_text(b" of mapped file \"");
                self.put_text(line.path());
                self.put_text(b"\"");
            }
            None => self.put_text(b"could not reach memory that is no known file's"),
        }
        self.put_text(b" (SIGBUS): it was truncated by somebody else, or its disk has failed");
        const HINT: &[u8] =
            b"Look at the disk, and check the data directory with \"walrelay verify\". Of what was confirmed, \
                              only what lay in that file may be lost. The relay can be started again.";
        self.put(if self.as_json { b"\",\"hint\":\"" } else { b"\nHINT:  " });
        self.put_text(HINT);
        if self.as_json {
            self.put(b"\",\"exit_code\":");
            self.put_number(EXIT_CODE.load(Ordering::Relaxed).unsigned_abs() as usize);
            self.put(b"}");
        }
        self.put(b"\n");
    }

    fn put(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if let Some(place) = self.text.get_mut(self.len) {
                *place = byte;
                self.len += 1;
            }
        }
    }

    /// What may have to be escaped. (A newline in a name is, in the list of maps.)
    fn put_text(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if self.as_json && matches!(byte, b'"' | b'\\') {
                self.put(b"\\");
            }
            self.put(&[*byte]);
        }
    }

    fn put_number(&mut self, mut number: usize) {
        let (mut digits, mut at) = ([0; 20], 20);
        while at == 20 || number > 0 {
            at -= 1;
            digits[at] = b'0' + (number % 10) as u8;
            number /= 10;
        }
        self.put(&digits[at..]);
    }

    /// A reader who does not read holds up no end.
    fn write(&self) {
        let mut stderr = libc::pollfd { fd: libc::STDERR_FILENO, events: libc::POLLOUT, revents: 0 };
        // SAFETY: one descriptor is asked for, and there is one.
        let ready = unsafe { libc::poll(&mut stderr, 1, PATIENCE) };
        if ready > 0 {
            let _ = rustix::io::write(io::stderr().as_fd(), &self.text[..self.len]);
        }
    }
}

fn open_maps() -> Option<std::os::fd::OwnedFd> {
    rustix::fs::open(c"/proc/self/maps", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()
}

/// A line of the list of maps: `start-end perms offset device inode   path`.
struct Line {
    text: [u8; LINE],
    len: usize,
    path: usize,
}

impl Default for Line {
    fn default() -> Line {
        Line { text: [0; LINE], len: 0, path: 0 }
    }
}

/// A byte of a mapped file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    offset: usize,
}

impl Line {
    /// Reads lines until there is one whose map has the address in it; then this is that line.
    fn find(
        &mut self,
        address: usize,
        mut read: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>,
    ) -> Option<Place> {
        let mut buffer = [0; LINE];
        loop {
            let count = read(&mut buffer).ok().filter(|count| *count > 0)?;
            for &byte in &buffer[..count] {
                if byte != b'\n' {
                    self.push(byte);
                } else if let Some(place) = self.place_of(address) {
                    return Some(place);
                } else {
                    self.len = 0;
                }
            }
        }
    }

    fn push(&mut self, byte: u8) {
        if let Some(place) = self.text.get_mut(self.len) {
            *place = byte;
            self.len += 1;
        }
    }

    fn place_of(&mut self, address: usize) -> Option<Place> {
        let line = &self.text[..self.len];
        let (start, rest) = hex(line);
        let (end, rest) = hex(rest.strip_prefix(b"-")?);
        if !(start..end).contains(&address) {
            return None;
        }
        let (offset, rest) = hex(field(field(rest)));
        // Behind device and inode.
        let path = field(field(field(rest)));
        if !path.starts_with(b"/") {
            return None;
        }
        self.path = self.len - path.len();
        Some(Place { offset: offset + (address - start) })
    }

    fn path(&self) -> &[u8] {
        &self.text[self.path..self.len]
    }
}

/// The number at the beginning, and what follows.
fn hex(text: &[u8]) -> (usize, &[u8]) {
    let digits = text.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let value = |byte: &u8| (*byte as char).to_digit(16).unwrap_or(0) as usize;
    let number = text[..digits].iter().fold(0usize, |number, byte| number.wrapping_mul(16) + value(byte));
    (number, &text[digits..])
}

/// What begins behind the next spaces.
fn field(text: &[u8]) -> &[u8] {
    let word = text.iter().position(|&byte| byte == b' ').unwrap_or(text.len());
    let rest = &text[word..];
    &rest[rest.iter().position(|&byte| byte != b' ').unwrap_or(rest.len())..]
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55d5c0000000-55d5c0021000 r--p 00000000 fd:00 131 /usr/bin/walrelay
7f0000000000-7f0000100000 r--s 00000000 fd:01 77                 /var/lib/wal \"relay\"/pg_wal/000000010000000000000003
7f0000200000-7f0000300000 r--s 00001000 fd:01 78   /w/recalled/x (deleted)
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                  [stack]
7ffd00021000-7ffd00022000 rw-p 00000000 00:00 0 
";

    /// What is found if the list comes in pieces of so many bytes.
    fn found(address: usize, piece: usize) -> Option<(usize, String)> {
        let (mut line, mut rest) = (Line::default(), MAPS.as_bytes());
        let place = line.find(address, |buffer| {
            let count = piece.min(rest.len());
            buffer[..count].copy_from_slice(&rest[..count]);
            rest = &rest[count..];
            Ok(count)
        })?;
        Some((place.offset, String::from_utf8(line.path().to_vec()).unwrap()))
    }

    #[test]
    fn the_file_of_an_address_is_found() {
        for piece in [1, 7, 64, LINE] {
            let wal = "/var/lib/wal \"relay\"/pg_wal/000000010000000000000003".to_owned();
            assert_eq!(found(0x7f00_0000_0000, piece), Some((0, wal.clone())));
            assert_eq!(found(0x7f00_000f_ffff, piece), Some((0xf_ffff, wal)));
            assert_eq!(found(0x7f00_0020_0010, piece), Some((0x1010, "/w/recalled/x (deleted)".to_owned())));
            for nobodys in [0x7f00_0010_0000, 0x7ffd_0000_0010, 0x7ffd_0002_1000, 0, usize::MAX] {
                assert_eq!(found(nobodys, piece), None, "{nobodys:x}");
            }
        }
    }

    #[test]
    fn the_real_list_is_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 16).unwrap();
        // SAFETY: the file is ours and keeps its size.
        let map = unsafe { memmap2::Mmap::map(file.as_file()) }.unwrap();
        let (mut line, maps) = (Line::default(), open_maps().unwrap());
        let place = line.find(map.as_ptr() as usize + 5000, |buffer| rustix::io::read(&maps, buffer));
        assert_eq!(place, Some(Place { offset: 5000 }));
        assert_eq!(line.path(), file.path().as_os_str().as_encoded_bytes());
    }

    #[test]
    fn words_fit_and_are_escaped() {
        let mut words = Words::new(true);
        words.put_text(b"a \"b\" \\c ");
        words.put_number(0);
        words.put_number(1_234_567);
        assert_eq!(&words.text[..words.len], b"a \\\"b\\\" \\\\c 01234567");
        words.put_text(&[b'x'; 2 * LINE]);
        assert_eq!(words.len, LINE + 512);
    }
}
