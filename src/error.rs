//! What can be wrong with a call, by the Python exception it becomes.

use std::panic::resume_unwind;

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

/// What a call without memory unwinds with; it becomes a `MemoryError`.
pub struct NoMemory;

/// Ends the call for want of memory, from wherever it is. The standard library would end the process.
#[cold]
pub fn no_memory() -> ! {
    // A payload of no size takes no memory, and no panic is reported.
    resume_unwind(Box::new(NoMemory))
}

/// Collects as many items as an array has elements.
pub fn collected<T>(items: impl ExactSizeIterator<Item = T>) -> Vec<T> {
    let mut all = Vec::new();
    if all.try_reserve_exact(items.len()).is_err() {
        no_memory();
    }
    all.extend(items);
    all
}

/// A number as Python spells it, or nearly.
pub fn spelled(x: f64) -> String {
    if x.is_nan() { "nan".into() } else { format!("{x:?}") }
}

/// The result of something that may refuse a call.
pub type Result<T> = std::result::Result<T, Error>;
