//! Cross-entropy, exact and fast: loss, gradient and Hessian diagonal of arrays of logits.
//!
//! The way of a call, from top to bottom. Each layer imports from those below it only:
//!
//! | layer | knows |
//! |---|---|
//! | `python` | Python and NumPy: arrays in, errors and arrays out. Nothing else does |
//! | [`losses`] | the list of losses; one file a loss: its formula and which kernel it takes |
//! | [`softmax`] | the kernels of softmax losses: a row at a time, or many rows of few classes |
//! | [`elements`] | the loop of losses that are computed number by number |
//! | [`tiles`] | arrays that are not contiguous rows: a tile of samples at a time |
//! | [`call`] | a call's arrays, targets and options, checked |
//! | [`parallel`] | splits a job into blocks over threads, each at the process's instruction set |
//! | [`reduce`] | sums of a fixed order |
//! | [`math`] | functions of vectors: exponential, logarithm |
//! | [`simd`] | vectors and views of memory, per instruction set; the home of unsafe code |
//! | [`error`] | what is refused, and why |

pub mod call;
pub mod elements;
pub mod error;
pub mod losses;
pub mod math;
pub mod parallel;
#[cfg(feature = "python")]
mod python;
pub mod reduce;
pub mod simd;
pub mod softmax;
pub mod tiles;
