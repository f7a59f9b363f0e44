#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| coati_agent::fuzz::nginx_code(bytes));
