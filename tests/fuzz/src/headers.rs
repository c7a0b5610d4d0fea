//! Registries' headers, and names of images.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| coracle_image::fuzz::headers(bytes));
