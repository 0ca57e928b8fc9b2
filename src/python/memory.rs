//! The memory of new tensors. The last large block that was freed is kept and reused.
//!
//! In training, the gradient of the logits has the same size in each step, and lives from the forward pass to the
//! end of the backward pass. The page faults of fresh memory would cost more than the kernel that fills it.

use std::alloc::{Layout, alloc, dealloc};
use std::ptr::NonNull;
use std::sync::Mutex;

use crate::error::no_memory;

/// The least size, in bytes, of memory that is kept and reused.
const LARGE: usize = 1 << 20;

/// The least size, in bytes, of memory that gets huge pages.
const HUGE: usize = 4 << 20;
/// The size of a huge page, in bytes.
const PAGE: usize = 2 << 20;

/// Below this size, in bytes, memory has the allocator's usual alignment: more would cost a tiny call too much.
const SMALL: usize = 1 << 10;

/// The last large block that was freed.
// Only ever `try_lock`: after a fork, a thread that does not exist in the child may hold the lock.
static SPARE: Mutex<Option<Allocation>> = Mutex::new(None);

/// A block of memory, which is freed when this value is dropped.
struct Allocation {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: allocated memory is not tied to a thread.
unsafe impl Send for Allocation {}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

impl Allocation {
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
            // SAFETY: the block is ours. The advice changes none of its bytes, and may fail.
            unsafe { libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
        }
        Allocation { start, layout }
    }
}

/// The memory of a tensor.
pub struct Memory(Option<Allocation>);

impl Memory {
    /// Allocates so many bytes, uninitialised.
    pub fn new(bytes: usize) -> Self {
        let spare =
            if bytes < LARGE { None } else { SPARE.try_lock().ok().and_then(|mut s| s.take()) };
        // A spare block that does not fit is freed: there is never more than one.
        let fits = |block: &Allocation| (bytes..=2 * bytes).contains(&block.layout.size());
        Memory(Some(spare.filter(fits).unwrap_or_else(|| Allocation::new(bytes))))
    }

    /// The address of the first byte.
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
