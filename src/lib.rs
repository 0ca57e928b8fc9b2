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
//! | [`halves`] | half precisions, and their conversion |
//! | [`driver`] | splits a job into blocks over threads, each behind the door of the instruction set |
//! | [`process`] | what belongs to the process: its level, its threads, and what happens to them at `fork` |
//! | [`pool`], [`team`], [`affinity`] | the threads that help: our own, or OpenMP's; on which CPUs they run |
//! | [`caches`] | how large the machine's caches are |
//! | [`reduce`] | sums of a fixed order |
//! | [`math`] | functions of vectors: exponential, logarithm |
//! | [`simd`] | vectors and views of memory, per instruction set; the other home of unsafe code |

pub mod affinity;
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
pub mod process;
#[cfg(feature = "python")]
mod python;
pub mod reduce;
pub mod simd;
pub mod softmax;
pub mod team;
pub mod tiles;
