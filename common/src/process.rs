//! What is known of a process: value of the `PROCESSES` map, so that one look-up tells what need not be looked for.

/// It is not watched.
pub const SKIPPED: u8 = 1;
/// It is written in Go, and it is known where goroutines have their numbers.
pub const GO: u8 = 2;
/// It runs Python, and it is known where the interpreter has its threads.
pub const PYTHON: u8 = 4;

/// The place of a process in the `SKIPPED` map, which it may share with others.
#[inline]
#[must_use]
pub const fn skipped_place(tgid: u32) -> u32 {
    tgid & (crate::limits::SKIPPED - 1)
}
