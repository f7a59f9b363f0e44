#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| coati_backend::fuzz::span_names(bytes));
