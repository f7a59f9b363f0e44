//! Coati's kernel programs: filter, recognise, count, tell.
//!
//! `hooks` are the programs; what they share lies in the other modules, in the order in which a call's bytes
//! pass them: [`sock`] finds the connection, [`iov`] and [`frames`] read the bytes, [`exchange`] changes the connection's state,
//! [`tell`] makes the record, [`emit`] writes it. [`tls`] is between the hooks and the state machine where the bytes are those of
//! a TLS library. [`cuda`] has nothing to do with bytes: it counts calls.
#![no_std]
#![no_main]
// One instruction and the hiding of one value from the optimiser; see `emit` and `kread`.
#![feature(asm_experimental_arch)]

mod call;
mod caller;
mod closing;
mod cuda;
mod emit;
mod event_loop;
mod exchange;
mod filter;
mod frames;
mod globals;
mod goroutine;
mod hooks {
    mod cuda;
    mod event_loops;
    mod go;
    pub mod kprobes;
    mod process;
    mod python;
    mod state;
    mod syscalls;
    mod trampolines;
    mod unix;
    mod uprobes;
}
mod iov;
mod kread;
mod maps;
mod node;
mod notes;
mod python;
mod scratch;
mod sock;
mod strand;
mod tail;
mod tell;
mod tls;
mod uvloop;

/// The helpers that read kernel memory are lent to programs under the GPL only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // No program has a path that panics: the verifier would refuse the endless loop.
    loop {}
}
