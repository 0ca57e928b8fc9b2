//! Runs the bytes that fuzzing keeps in `fuzz/corpus`: see `fuzz/src/lib.rs`. `make fuzz` finds more.

use std::path::Path;

#[path = "../fuzz/src/lib.rs"]
mod fuzz;

/// Runs each file of a folder, and some bytes that are drawn.
fn replay(name: &str, target: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let files: Vec<_> = std::fs::read_dir(&folder).expect("the corpus is there").collect();
    assert!(files.len() > 20, "the corpus of {name} is nearly empty");
    for file in files {
        let path = file.expect("the folder can be read").path();
        let bytes = std::fs::read(&path).expect("the file can be read");
        if std::panic::catch_unwind(|| target(&bytes)).is_err() {
            panic!("{} fails: `cargo fuzz run {name} {0}` in fuzz/ runs it alone", path.display());
        }
    }
    // SplitMix64, the same in every run.
    let mut state = 0u64;
    for number in 0..300 {
        let bytes: Vec<u8> = (0..8 * (1 + number % 200))
            .map(|_| {
                state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
                let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
                ((mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB) >> 56) as u8
            })
            .collect();
        target(&bytes);
    }
}

#[test]
fn classes() {
    replay("classes", fuzz::classes);
}

#[test]
fn elements() {
    replay("elements", fuzz::elements);
}

#[test]
fn sums() {
    replay("sums", fuzz::sums);
}
