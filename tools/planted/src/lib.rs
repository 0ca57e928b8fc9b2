//! Reads one number past the end of an array, as a kernel with a wrong length would.

use std::hint::black_box;

/// The sum of `n` numbers and the number after them.
///
/// # Safety
/// There are `n` numbers. The number after them is the fault.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn over_read(numbers: *const f32, n: usize) -> f32 {
    (0..=n).map(|i| unsafe { black_box(numbers).add(i).read() }).sum()
}
