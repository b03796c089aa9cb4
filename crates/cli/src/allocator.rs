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

/// What the system's allocator aligns every block to by itself, at least.
const NATURAL: usize = 16;

/// The layout in which a block is asked for that is aligned more strictly than [`NATURAL`]: with
/// room before it to say where it begins.
///
/// glibc before 2.38 finds no use for what an aligned block leaves when it is freed: it looks for
/// size and alignment together, and what is kept for long settles in the gap. A compilation then
/// grows with every block. Asked for like this, the next block of a size fits where the last was.
fn roomy(layout: Layout) -> Option<Layout> {
    Layout::from_size_align(layout.size().checked_add(layout.align())?, NATURAL).ok()
}

/// Aligns a block that [`roomy`] described, and notes before it where it begins.
///
/// # Safety
/// `block` is null, or was given for `roomy(layout)`.
unsafe fn aligned(block: *mut u8, layout: Layout) -> *mut u8 {
    if block.is_null() {
        return block;
    }
    let offset = layout.align() - block.addr() % layout.align();
    // SAFETY: the offset is at least `NATURAL`, since both are multiples of it, and at most the
    // alignment, which the block is longer than `layout`.
    unsafe {
        let start = block.add(offset);
        start.cast::<*mut u8>().sub(1).write(block);
        start
    }
}

// SAFETY: every call is passed on, those for strictly aligned blocks in a larger layout from which
// `aligned` cuts what was asked for.
unsafe impl GlobalAlloc for Remembering {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let block = match layout.align() > NATURAL {
            // SAFETY: the caller's promise is passed on, here and below.
            false => unsafe { System.alloc(layout) },
            true => match roomy(layout) {
                // SAFETY: the block was given for this.
                Some(roomy) => unsafe { aligned(System.alloc(roomy), layout) },
                None => std::ptr::null_mut(),
            },
        };
        given(block, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let block = match layout.align() > NATURAL {
            // SAFETY: see above.
            false => unsafe { System.alloc_zeroed(layout) },
            true => match roomy(layout) {
                // SAFETY: see above.
                Some(roomy) => unsafe { aligned(System.alloc_zeroed(roomy), layout) },
                None => std::ptr::null_mut(),
            },
        };
        given(block, layout.size())
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if layout.align() <= NATURAL {
            // SAFETY: see above.
            return given(unsafe { System.realloc(block, layout, size) }, size);
        }
        // SAFETY: the caller promises that the size can be rounded up to the alignment; both blocks
        // hold what is copied.
        unsafe {
            let moved = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !moved.is_null() {
                moved.copy_from_nonoverlapping(block, layout.size().min(size));
                self.dealloc(block, layout);
            }
            moved
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match roomy(layout).filter(|_| layout.align() > NATURAL) {
            // SAFETY: see above.
            None => unsafe { System.dealloc(block, layout) },
            // SAFETY: `aligned` noted where it begins.
            Some(roomy) => unsafe { System.dealloc(block.cast::<*mut u8>().sub(1).read(), roomy) },
        }
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
