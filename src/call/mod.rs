//! A call: its arrays (types and strides), its target and its options. They are checked once, here.

pub mod batch;
pub mod coefficients;
pub mod halves;
pub mod layout;
pub mod options;
pub mod place;
