//! The types of numbers that arrays hold.

use crate::simd::Half;

/// A type of numbers in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// `bool`, in a byte.
    Bool,
    /// A signed integer of so many bytes.
    Int(usize),
    /// An unsigned integer of so many bytes.
    Uint(usize),
    /// Half precision.
    Half(Half),
    /// `float32`
    F32,
    /// `float64`
    F64,
}

impl Dtype {
    /// Bytes of a number.
    pub fn size(self) -> usize {
        match self {
            Dtype::Bool => 1,
            Dtype::Int(size) | Dtype::Uint(size) => size,
            Dtype::Half(_) => 2,
            Dtype::F32 => 4,
            Dtype::F64 => 8,
        }
    }
}
