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

/// The result of something that may refuse a call.
pub type Result<T> = std::result::Result<T, Error>;
