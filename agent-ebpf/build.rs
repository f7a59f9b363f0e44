//! Settings of the linker, which is the code generator here.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Without it every clearing of a few bytes becomes a call of a loop over single bytes.
    println!("cargo:rustc-link-arg-bins=--disable-expand-memcpy-in-order");
}
