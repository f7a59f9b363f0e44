//! Where probes go in a program written in Go.
//!
//! A function is probed behind the check of its stack, which starts it anew when it has grown that, and on each instruction
//! with which it returns.

use std::fs::File;

use coati_common::go::Layout;
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

use super::{
    Habits,
    library::{Probes, Runtime, Unusable},
};
use crate::{
    discover::elf::{Functions, GoFunctions, go_minor},
    ebpf::{GoCall, ProbePoint},
};

/// A function that is probed: at its entry, and where it returns.
type Probed = (&'static str, GoCall, Option<GoCall>);

/// Both directions; half of an exchange is none.
const TLS: [Probed; 2] = [
    ("crypto/tls.(*Conn).Read", GoCall::TlsRead, Some(GoCall::TlsWasRead)),
    ("crypto/tls.(*Conn).Write", GoCall::TlsWrite, Some(GoCall::TlsWritten)),
];
/// What need not be there: the linker leaves out what a program does not use. A client's handshake tells nothing: where its
/// requests begin is known when it sends them.
const TLS_TOO: [Probed; 2] = [
    ("crypto/tls.(*Conn).serverHandshake", GoCall::TlsHandshake, Some(GoCall::TlsShaken)),
    ("crypto/tls.(*Conn).Close", GoCall::TlsClose, None),
];

/// What sends a request of HTTP/1 and who has asked for it: both, or nothing is known.
const CLIENT: [Probed; 2] = [
    ("net/http.(*persistConn).roundTrip", GoCall::RoundTrip, None),
    ("net/http.persistConnWriter.Write", GoCall::RoundTripWrite, None),
];
/// What asks for a request of HTTP/2, and what answers one, wherever the package was copied to.
const HTTP2: [Probed; 7] = [
    ("net/http.(*http2ClientConn).roundTrip", GoCall::Ask, None),
    ("net/http.(*http2ClientConn).RoundTrip", GoCall::Ask, None),
    ("net/http/internal/http2.(*ClientConn).roundTrip", GoCall::Ask, None),
    ("golang.org/x/net/http2.(*ClientConn).roundTrip", GoCall::Ask, None),
    ("net/http.(*http2serverConn).runHandler", GoCall::Handle, None),
    ("golang.org/x/net/http2.(*serverConn).runHandler", GoCall::Handle, None),
    ("net/http/internal/http2.(*serverConn).runHandler", GoCall::HandleInternal, None),
];

/// `runtime.g.stackguard0`, with which functions compare their stack pointer: the third word of every goroutine.
const STACK_GUARD: u64 = 16;
/// Instructions at the start of a function among which the check is.
const CHECK_WITHIN: usize = 4;

/// Where goroutines have their numbers in programs of Go 1.`minor`; `None` if that is not known. Read from the debug information
/// of programs of each of these versions but 1.18 and 1.20.
const fn layout(minor: u32) -> Option<Layout> {
    Some(match minor {
        18..=20 => Layout { number: 152, creator: 0 },
        21 | 22 | 25 => Layout { number: 152, creator: 272 },
        23 | 24 => Layout { number: 160, creator: 280 },
        26 | 27 => Layout { number: 152, creator: 280 },
        _ => return None,
    })
}

/// Where the probes for `crypto/tls` and `net/http` go: the former in a program that speaks TLS, the latter in one that asks others.
pub(super) fn probes(file: &File, functions: &Functions<'_, File>, habits: Habits) -> Result<Probes, Unusable> {
    let program = GoFunctions::of(file, functions).ok_or(Unusable::NoFunctions)?;
    let layout = go_minor(file).and_then(layout);
    if !habits.speaks_tls && !habits.asks {
        return Ok(Probes { points: Vec::new(), runtime: layout.map(Runtime::Go) });
    }
    let [read, write] = TLS;
    let [server, close] = TLS_TOO;
    let [ask, send] = CLIENT;
    let [first, second, third, fourth, fifth, sixth, seventh] = HTTP2;
    let wanted = [read, write, server, close, ask, send, first, second, third, fourth, fifth, sixth, seventh];
    let mut found = program.find(wanted.map(|(name, ..)| name)).ok_or(Unusable::Unreadable)?;
    let [read, write, server, close, ask, send, http2 @ ..] = &mut found;
    if read.is_none() || write.is_none() || !habits.speaks_tls {
        for function in [read, write, server, close] {
            *function = None;
        }
    }
    if ask.is_none() || send.is_none() || layout.is_none() || !habits.asks {
        (*ask, *send) = (None, None);
    }
    if layout.is_none() || !habits.asks {
        http2.fill(None);
    }
    if let [Some(_), outer, ..] = http2 {
        // The outer one only calls it.
        *outer = None;
    }
    if found.iter().all(Option::is_none) {
        return Err(Unusable::NoFunctions);
    }
    let at = |text| {
        let mut points = Vec::new();
        for ((_, entry, exit), function) in wanted.into_iter().zip(found) {
            let Some(function) = function else { continue };
            let (offset, code) = program.code(text, function)?;
            let places = Places::of(&code)?;
            let point = |call: GoCall, at: u64| Some(ProbePoint { call: call.into(), offset: offset.checked_add(at)? });
            if let Some(exit) = exit {
                points.extend(places.returns.iter().filter_map(|at| point(exit, *at)));
            }
            points.push(point(entry, places.entry)?);
        }
        Some(points)
    };
    let points = program.texts().iter().find_map(|text| at(*text)).ok_or(Unusable::NoFunctions)?;
    Ok(Probes { points, runtime: layout.map(Runtime::Go) })
}

/// Places in a function's code, in bytes from its start.
#[derive(Debug, Eq, PartialEq)]
struct Places {
    /// Behind the check of the stack: the arguments are still in their registers there.
    entry: u64,
    /// Instructions with which it returns.
    returns: Vec<u64>,
}

impl Places {
    /// `None` if this is not the code of a function that checks its stack and returns.
    fn of(code: &[u8]) -> Option<Self> {
        let mut decoder = Decoder::new(64, code, DecoderOptions::NONE);
        let (mut entry, mut returns, mut has_compared, mut count) = (None, Vec::new(), false, 0);
        let mut instruction = Instruction::default();
        while decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            if instruction.is_invalid() {
                return None;
            }
            if count < CHECK_WITHIN && entry.is_none() {
                if has_compared && instruction.mnemonic() == Mnemonic::Jbe {
                    entry = Some(instruction.next_ip());
                }
                has_compared |= compares_stack(&instruction);
            }
            match instruction.code() {
                Code::Retnq => returns.push(instruction.ip()),
                // A function that returns in another way is none of Go's.
                Code::Retnq_imm16 | Code::Retfq | Code::Iretq => return None,
                _ => {}
            }
            count += 1;
        }
        let entry = entry.filter(|_| !returns.is_empty())?;
        Some(Self { entry, returns })
    }
}

/// `cmp rsp, [r14+16]`, or the same with `r12` where much stack is needed.
fn compares_stack(instruction: &Instruction) -> bool {
    instruction.mnemonic() == Mnemonic::Cmp
        && instruction.op0_kind() == OpKind::Register
        && [Register::RSP, Register::R12].contains(&instruction.op0_register())
        && instruction.op1_kind() == OpKind::Memory
        && instruction.memory_base() == Register::R14
        && instruction.memory_displacement64() == STACK_GUARD
}

/// Looks at code, for the fuzz target.
pub(crate) fn fuzz(code: &[u8]) {
    let _ = Places::of(code);
}

#[cfg(test)]
mod tests;
