//! A call: its arrays (types and strides), its target and its options. They are checked once, here.

pub mod batch;
pub mod coefficients;
pub mod convert;
pub mod dtype;
pub mod layout;
pub mod options;
pub mod place;
