//! The errors of a call, by the Python exception that they become.

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

/// The payload of a panic for want of memory. The bindings turn it into a `MemoryError`.
pub struct NoMemory;

/// Ends the call for want of memory, by unwinding. The standard library would abort the process.
#[cold]
pub fn no_memory() -> ! {
    // The payload has no size, so nothing is allocated. `resume_unwind` prints no panic message.
    resume_unwind(Box::new(NoMemory))
}

/// Collects items into a vector; ends the call by [`no_memory`] where there is none.
pub fn collected<T>(items: impl ExactSizeIterator<Item = T>) -> Vec<T> {
    let mut all = room(items.len());
    all.extend(items);
    all
}

/// An empty vector with room for `n` items; ends the call by [`no_memory`] where there is none.
pub fn room<T>(n: usize) -> Vec<T> {
    let mut all = Vec::new();
    if all.try_reserve_exact(n).is_err() {
        no_memory();
    }
    all
}

/// A number, spelled nearly as Python does.
pub fn spelled(x: f64) -> String {
    if x.is_nan() { "nan".into() } else { format!("{x:?}") }
}

/// The result of a function that may refuse a call.
pub type Result<T> = std::result::Result<T, Error>;
