//! The archives of layers.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| coracle_image::fuzz::layer(bytes));
