//! How the C library's allocator is set up.

/// Blocks of this size and more come from the system one by one.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const OWN_PAGES: i32 = 1 << 20;

/// Makes large blocks go back to the system when they are freed.
///
/// glibc learns from the first large block that is freed to keep such blocks, up to 32 MB each, and
/// what it keeps is too fragmented for the next matrix of another shape: a compilation then takes a
/// third more memory than it uses. What is set here holds for the whole process; it changes no
/// result.
pub(crate) fn return_large_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "the setting has no safe form")]
    // SAFETY: called before any thread is started; both arguments are plain numbers, and a value
    // that is refused changes nothing.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_PAGES);
    }
}

/// Gives what is free and kept to the system.
pub(crate) fn return_free_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "the call has no safe form")]
    // SAFETY: it only looks at memory that nobody has; the allocator locks itself.
    unsafe {
        libc::malloc_trim(0);
    }
}
