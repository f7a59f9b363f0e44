//! The memory that loading took.

/// Gives memory that was freed back to the system.
///
/// The types of the kernel, the object and the symbols of libraries take tens of megabytes for a moment. glibc keeps of that all
/// that lies below something which is still used: two thirds of what the agent has then.
#[cfg(target_env = "gnu")]
pub fn give_memory_back() {
    // SAFETY: it has no requirements.
    unsafe { libc::malloc_trim(0) };
}

/// Other C libraries have their own ways.
#[cfg(not(target_env = "gnu"))]
pub fn give_memory_back() {}
