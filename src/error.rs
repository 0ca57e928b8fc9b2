//! What can be wrong with a call, by the Python exception it becomes.

/// A refused call. The message names the argument, its value and what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// `TypeError`
    Type(String),
    /// `ValueError`
    Value(String),
    /// `IndexError`
    Index(String),
}

/// A number as Python spells it, or nearly.
pub fn spelled(x: f64) -> String {
    if x.is_nan() { "nan".into() } else { format!("{x:?}") }
}

/// The result of something that may refuse a call.
pub type Result<T> = std::result::Result<T, Error>;
