//! Threads: how a job is split over them, whose they are, and on which CPUs they run.

pub mod affinity;
pub mod caches;
pub mod driver;
pub mod pool;
pub mod process;
pub mod team;
