//! Two threads write one number without a lock.

struct Shared(*mut u64);

// SAFETY: there is none. This is the fault.
unsafe impl Sync for Shared {}

fn main() {
    let mut number = 0;
    let shared = &Shared(&raw mut number);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(move || {
                for _ in 0..1000 {
                    unsafe { shared.0.write_volatile(shared.0.read_volatile() + 1) };
                }
            });
        }
    });
    println!("{number}");
}
