//! A call: its arrays, their places and types, its target and its options, checked once.

pub mod batch;
pub mod coefficients;
pub mod halves;
pub mod layout;
pub mod options;
pub mod place;
