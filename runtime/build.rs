//! Has the linker put what a start executes side by side (`start.ld`), in releases.

fn main() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/start.ld");
    println!("cargo::rerun-if-changed={script}");
    if std::env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{script}");
    }
}
