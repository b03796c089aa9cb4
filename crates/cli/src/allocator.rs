//! How the C library's allocator is set up, and what is said when it has nothing left.

#![expect(unsafe_code, reason = "allocators and signals have no safe form")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

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
    // SAFETY: called before any thread is started; both arguments are plain numbers, and a value
    // that is refused changes nothing.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_PAGES);
    }
}

/// Gives what is free and kept to the system.
pub(crate) fn return_free_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it only looks at memory that nobody has; the allocator locks itself.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The system's allocator, which remembers what it could not give.
struct Remembering;

#[global_allocator]
static ALLOCATOR: Remembering = Remembering;

/// The bytes that were asked for last and not given; 0 if all were.
static MISSED: AtomicUsize = AtomicUsize::new(0);

/// The bytes that this process could take when it began.
static FREE: AtomicUsize = AtomicUsize::new(0);

fn given(block: *mut u8, bytes: usize) -> *mut u8 {
    if block.is_null() {
        MISSED.store(bytes, Ordering::Relaxed);
    }
    block
}

// SAFETY: every call is passed on as it is.
unsafe impl GlobalAlloc for Remembering {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is passed on, here and below.
        given(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: see above.
        given(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: see above.
        given(unsafe { System.realloc(block, layout, size) }, size)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: see above.
        unsafe { System.dealloc(block, layout) }
    }
}

/// Makes an allocation that fails where nobody expects it end the process as a failure of the machine,
/// with what was asked for and what there was: the standard library aborts then, and says neither.
pub(crate) fn end_without_memory() {
    let free = runtime::free_memory().map_or(0, |free| usize::try_from(free).unwrap_or(usize::MAX));
    FREE.store(free, Ordering::Relaxed);
    #[cfg(unix)]
    // SAFETY: the handler calls nothing that a handler may not: atomics, `write` and `_exit`.
    unsafe {
        libc::signal(libc::SIGABRT, aborted as extern "C" fn(libc::c_int) as libc::sighandler_t);
    }
}

#[cfg(unix)]
extern "C" fn aborted(_: libc::c_int) {
    let (missed, free) = (MISSED.load(Ordering::Relaxed), FREE.load(Ordering::Relaxed));
    if missed == 0 {
        // Another abort is a bug; returning lets it go on.
        return;
    }
    let mut digits = [0; 20];
    say("error: there is no memory for ");
    say(decimal(missed, &mut digits));
    say(" bytes more; this process could take ");
    say(decimal(free, &mut digits));
    say(" when it began\nhint: a smaller model, or --kv-memory or --memory, takes less\n");
    // SAFETY: `_exit` takes a number.
    unsafe { libc::_exit(crate::failure::Code::Machine as libc::c_int) }
}

#[cfg(unix)]
fn say(text: &str) {
    // SAFETY: the text is as long as it says. If nobody can hear it, nothing is lost.
    unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
}

/// A number, without asking for memory.
#[cfg(unix)]
fn decimal(mut n: usize, digits: &mut [u8; 20]) -> &str {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    std::str::from_utf8(&digits[at..]).unwrap_or("?")
}
