//! Cross-entropy, exact and fast: loss, gradient and Hessian diagonal of arrays of logits.
//!
//! A call passes these layers from top to bottom. Each imports only from those below it:
//!
//! | layer | what it holds |
//! |---|---|
//! | `python` | the bindings: NumPy arrays and PyTorch tensors in, arrays and exceptions out |
//! | [`losses`] | the list of losses, and a file for each: its formula, and which kernel it takes |
//! | [`softmax`] | the kernels of softmax losses: vectors along a row of many classes, or a lane for each sample |
//! | [`divergence`] | the kernel of the divergences of two softmaxes |
//! | [`elements`] | the kernel of losses that are computed element by element |
//! | [`tiles`] | arrays of any strides, copied to contiguous rows a tile of samples at a time |
//! | [`call`] | the arrays, the target and the options of a call, checked once |
//! | [`parallel`] | splits a job over threads, and chooses the instruction set |
//! | [`exact`] | exact sums of many numbers |
//! | [`reduce`] | sums whose order, and so whose bits, do not depend on the number of threads |
//! | [`math`] | functions of vectors: exponential, logarithm, power |
//! | [`simd`] | vectors for each instruction set, and views of memory: all unsafe code of the kernels |
//! | [`error`] | the errors of a call |

pub mod call;
pub mod divergence;
pub mod elements;
pub mod error;
pub mod exact;
pub mod losses;
pub mod math;
#[allow(unsafe_code, reason = "calls the operating system")]
pub mod parallel;
#[cfg(feature = "python")]
#[allow(unsafe_code, reason = "calls CPython and NumPy")]
mod python;
pub mod reduce;
#[allow(unsafe_code, reason = "vector instructions and views of memory")]
pub mod simd;
pub mod softmax;
pub mod tiles;
