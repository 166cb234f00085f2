//! What the C library does with freed memory.

/// Tells the C library of this process to keep freed memory instead of giving it back to the system, and to use one arena.
///
/// A training step frees and asks for the same hundreds of megabytes over and over; by default each round pays for
/// mapping and clearing fresh pages, a tenth of the step. For programs that do nothing but train; has no effect where the C
/// library is not glibc.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const M_TRIM_THRESHOLD: i32 = -1;
        const M_MMAP_THRESHOLD: i32 = -3;
        const M_ARENA_MAX: i32 = -8;
        // The largest value that glibc takes for the mapping threshold.
        const MMAP_THRESHOLD_MAX: i32 = 32 * 1024 * 1024;
        unsafe extern "C" {
            safe fn mallopt(parameter: i32, value: i32) -> i32;
        }
        mallopt(M_ARENA_MAX, 1);
        mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_MAX);
        mallopt(M_TRIM_THRESHOLD, i32::MAX);
    }
}
