//! Cross-entropy, exact and fast: loss, gradient and Hessian diagonal of arrays of logits.
//!
//! The way of a call, each layer importing from those below it only:
//!
//! | layer | knows |
//! |---|---|
//! | `python` | Python and NumPy: arrays in, errors and arrays out; nothing else does |
//! | [`losses`] | which kernel a loss takes; one file a loss |
//! | [`softmax`] | the kernels of softmax losses: a row at a time, or many rows of few classes |
//! | [`tiles`] | batches that are not rows: a tile of samples at a time |
//! | [`coefficients`] | how targets weigh the classes |
//! | [`batch`], [`layout`], [`options`], [`error`] | a call's arrays and options, checked |
//! | [`caches`] | how large the machine's caches are |
//! | [`halves`] | half precisions, and their conversion |
//! | [`driver`], [`pool`], [`team`] | threads: splits a job into blocks, each behind the door of the instruction set |
//! | [`reduce`] | sums of a fixed order |
//! | [`math`] | functions of vectors: exponential, logarithm |
//! | [`simd`] | vectors and views of memory, per instruction set; the other home of unsafe code |

pub mod batch;
pub mod caches;
pub mod coefficients;
pub mod driver;
pub mod error;
pub mod halves;
pub mod layout;
pub mod losses;
pub mod math;
pub mod options;
pub mod pool;
#[cfg(feature = "python")]
mod python;
pub mod reduce;
pub mod simd;
pub mod softmax;
pub mod team;
pub mod tiles;
