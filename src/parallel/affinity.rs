//! The CPUs that threads run on: known and chosen on Linux, left to the system elsewhere.

#[cfg(target_os = "linux")]
mod linux {
    use std::mem::{size_of, zeroed};

    use libc::{CPU_CLR, CPU_COUNT, CPU_EQUAL, cpu_set_t, pid_t};

    /// The CPU that this thread runs on.
    #[inline]
    pub fn current_cpu() -> Option<usize> {
        // SAFETY: takes nothing and changes nothing.
        usize::try_from(unsafe { libc::sched_getcpu() }).ok()
    }

    /// A thread, as the system numbers it.
    #[derive(Clone, Copy, Debug)]
    pub struct Task(pid_t);

    /// The CPUs that a thread had before it was kept away from some, and gets back afterwards.
    pub struct Restriction {
        before: cpu_set_t,
        during: cpu_set_t,
    }

    impl Task {
        /// This thread.
        pub fn current() -> Self {
            // SAFETY: takes nothing and changes nothing.
            // By its number: the function is younger than the oldest glibc that a wheel may meet.
            Task(unsafe { libc::syscall(libc::SYS_gettid) } as pid_t)
        }

        /// The CPUs that it may run on.
        fn mask(self) -> Option<cpu_set_t> {
            // SAFETY: a set of no CPU is all zeros.
            let mut mask: cpu_set_t = unsafe { zeroed() };
            // SAFETY: the system writes at most the set's size. It fails where there are more CPUs.
            let failed =
                unsafe { libc::sched_getaffinity(self.0, size_of::<cpu_set_t>(), &mut mask) };
            (failed == 0).then_some(mask)
        }

        fn set_mask(self, mask: &cpu_set_t) -> bool {
            // SAFETY: the system reads the set, and refuses a set that is not valid.
            unsafe { libc::sched_setaffinity(self.0, size_of::<cpu_set_t>(), mask) == 0 }
        }

        /// Lets the thread run on those of its CPUs only that are not `busy`, until it lifts the
        /// restriction itself. `None`, and nothing changed, where none would be left.
        pub fn keep_away(self, busy: impl Iterator<Item = usize>) -> Option<Restriction> {
            let before = self.mask()?;
            let mut during = before;
            for cpu in busy.filter(|&cpu| cpu < libc::CPU_SETSIZE as usize) {
                // SAFETY: the CPU's number is below the set's size.
                unsafe { CPU_CLR(cpu, &mut during) };
            }
            // SAFETY: both are sets.
            let useful = unsafe { CPU_COUNT(&during) > 0 && !CPU_EQUAL(&before, &during) };
            (useful && self.set_mask(&during)).then_some(Restriction { before, during })
        }
    }

    impl Restriction {
        /// Gives this thread its CPUs back, unless somebody else has chosen others meanwhile.
        pub fn lift(self) {
            let this = Task(0); // this thread, without asking for its number
            // SAFETY: both are sets.
            if this.mask().is_some_and(|mask| unsafe { CPU_EQUAL(&mask, &self.during) }) {
                this.set_mask(&self.before);
            }
        }
    }
}

/// Elsewhere the system alone chooses the CPUs.
#[cfg(not(target_os = "linux"))]
mod other {
    /// The CPU that this thread runs on: not known.
    pub fn current_cpu() -> Option<usize> {
        None
    }

    /// A thread.
    #[derive(Clone, Copy, Debug)]
    pub struct Task;

    /// There is none.
    pub struct Restriction;

    impl Task {
        /// This thread.
        pub fn current() -> Self {
            Task
        }

        /// Changes nothing.
        pub fn keep_away(self, _: impl Iterator<Item = usize>) -> Option<Restriction> {
            None
        }
    }

    impl Restriction {
        /// Changes nothing.
        pub fn lift(self) {}
    }
}

#[cfg(target_os = "linux")]
pub use linux::{Restriction, Task, current_cpu};
#[cfg(not(target_os = "linux"))]
pub use other::{Restriction, Task, current_cpu};

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn restricted_and_back() {
        let count = || std::thread::available_parallelism().unwrap().get();
        let (all, here) = (count(), current_cpu().unwrap());
        let restriction = Task::current().keep_away([here].into_iter());
        if all == 1 {
            assert!(restriction.is_none());
            return;
        }
        assert_ne!(current_cpu(), Some(here));
        let everything = Task::current().keep_away(0..libc::CPU_SETSIZE as usize);
        assert!(everything.is_none());
        restriction.unwrap().lift();
        assert!(Task::current().keep_away([usize::MAX].into_iter()).is_none());
        // CPUs that somebody else has chosen meanwhile stay.
        let first = Task::current().keep_away([here].into_iter()).unwrap();
        let second = Task::current().keep_away([usize::MAX].into_iter());
        assert!(second.is_none());
        first.lift();
        assert_eq!(count(), all);
    }
}
