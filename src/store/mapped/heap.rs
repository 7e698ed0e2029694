//! Large blocks of memory, in maps of their own.
//!
//! glibc maps what is larger than a threshold, and gives it back when it is freed. But each such block that is freed raises
//! the threshold, to 32 MB in the end: then buffers of megabytes come out of the heaps of whatever threads ask for
//! them, and stay there. A relay that archives and fetches back keeps three times the memory that way (docs/RELIABILITY.md).

/// From this size on, bytes.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 256 << 10;

/// From now on large blocks are mapped, whatever was freed before. Tells whether that is so; other allocators than glibc's do as
/// they do.
pub fn map_large_blocks() -> bool {
    #[cfg(target_env = "gnu")]
    // SAFETY: changes a number of the allocator, under its lock.
    let done = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE) } == 1;
    #[cfg(not(target_env = "gnu"))]
    let done = false;
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_env = "gnu")]
    fn the_allocator_takes_it() {
        assert!(map_large_blocks());
    }
}
