#![no_main]
//! See `xentrs_fuzz::sums`.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| xentrs_fuzz::sums(bytes));
