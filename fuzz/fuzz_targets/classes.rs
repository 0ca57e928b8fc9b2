#![no_main]
//! See `xentrs_fuzz::classes`.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| xentrs_fuzz::classes(bytes));
