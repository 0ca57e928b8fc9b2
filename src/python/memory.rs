//! The memory of new tensors, which for a large one is that of a large one that was freed.
//!
//! In training the gradient of the logits lives from one forward to the end of one backward and has the
//! same size each time. The page faults of fresh memory cost more than the kernel that fills it.

use std::alloc::{Layout, alloc, dealloc};
use std::ptr::NonNull;
use std::sync::Mutex;

use crate::error::no_memory;

/// From here on, in bytes, memory is used again.
const LARGE: usize = 1 << 20;

/// From here on huge pages are asked for, and their size.
const HUGE: usize = 4 << 20;
const PAGE: usize = 2 << 20;

/// Below, memory is aligned as all memory is: to ask for more takes a good part of a tiny call.
const SMALL: usize = 1 << 10;

/// The last large memory that was freed.
// Never waited for: a child process may find it locked by a thread that is not there.
static SPARE: Mutex<Option<Block>> = Mutex::new(None);

/// Memory that is freed with this value.
struct Block {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: memory belongs to no thread.
unsafe impl Send for Block {}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

impl Block {
    fn new(bytes: usize) -> Self {
        let align = match bytes {
            ..SMALL => 16,
            SMALL..HUGE => 64,
            HUGE.. => PAGE,
        };
        let layout = Layout::from_size_align(bytes.max(1), align);
        let layout = layout.unwrap_or_else(|_| no_memory());
        // SAFETY: the layout's size is not zero.
        let Some(start) = NonNull::new(unsafe { alloc(layout) }) else { no_memory() };
        #[cfg(target_os = "linux")]
        if bytes >= HUGE {
            // SAFETY: this is memory of our own; the advice changes nothing in it, and may fail.
            unsafe { libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
        }
        Block { start, layout }
    }
}

/// The memory of a tensor.
pub struct Memory(Option<Block>);

impl Memory {
    /// So many bytes, whatever is in them.
    pub fn new(bytes: usize) -> Self {
        let spare =
            if bytes < LARGE { None } else { SPARE.try_lock().ok().and_then(|mut s| s.take()) };
        // What does not fit goes: at rest there is at most one.
        let fits = |block: &Block| (bytes..=2 * bytes).contains(&block.layout.size());
        Memory(Some(spare.filter(fits).unwrap_or_else(|| Block::new(bytes))))
    }

    /// Where it begins.
    pub fn start(&self) -> *mut u8 {
        self.0.as_ref().expect("there until it is dropped").start.as_ptr()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let block = self.0.take();
        if block.as_ref().is_some_and(|block| block.layout.size() >= LARGE)
            && let Ok(mut spare) = SPARE.try_lock()
        {
            let old = std::mem::replace(&mut *spare, block);
            drop(spare);
            drop(old);
        }
    }
}
