//! What fuzzing does with some bytes: it makes a call of them, and holds the results against plain formulas.
//!
//! | target | what is called | held against |
//! |---|---|---|
//! | [`classes`] | each loss of samples by classes: any type, axis, strides, kind of target, options, outputs | formulas in float64, a second run, the run without a gradient |
//! | [`elements`] | each binary loss: any type of values and labels, weights that repeat, elements left out | the same |
//! | [`sums`] | exact sums: any numbers and products, cuts and orders | sums in 128-bit integers, other orders and cuts |
//!
//! `make fuzz` runs them with libFuzzer and AddressSanitizer. `tests/fuzz_corpus.rs` of the crate runs the bytes in
//! `corpus/` on the stable compiler, with `cargo test`.
#![allow(unsafe_code, reason = "makes views to write to, as a kernel's caller does")]

mod classes;
mod elements;
mod formulas;
mod inputs;
mod sums;

pub use classes::classes;
pub use elements::elements;
pub use sums::sums;
