//! Manifests, configs and indexes.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| coracle_image::fuzz::manifest(bytes));
