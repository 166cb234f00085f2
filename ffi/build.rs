//! How the shared library is linked.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux") {
        return;
    }
    for argument in [
        // Its threads' code and what it registered for forks must still be there after the host's dlclose().
        "-Wl,-z,nodelete",
        // Tables of addresses are filled when the library is loaded, and cannot be written afterwards.
        "-Wl,-z,relro,-z,now",
        "-Wl,-z,noexecstack",
    ] {
        println!("cargo:rustc-cdylib-link-arg={argument}");
    }
    // A symbol that no library has is found here, not in the host. A fuzz target brings those of its sanitizer.
    if std::env::var_os("CARGO_CFG_FUZZING").is_none() {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-z,defs");
    }
}
