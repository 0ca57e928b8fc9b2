#![no_main]
//! See `xentrs_fuzz::elements`.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| xentrs_fuzz::elements(bytes));
