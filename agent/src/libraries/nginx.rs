//! Where the probe goes in nginx.
//!
//! Its executables export their functions, for the modules that they load. A request's fields lie elsewhere in each build; the
//! only one that is needed and is not among the first is read from the code that looks at it.

use std::fs::File;

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

use super::library::{Probes, Runtime};
use crate::{
    discover::elf::Functions,
    ebpf::{LoopCall, ProbePoint},
};

/// What sends to upstream servers, and what asks at its beginning whether the request came on an HTTP/2 stream.
const FUNCTIONS: [&str; 2] = ["ngx_chain_writer", "ngx_http_upstream_init"];

/// Bytes of the latter in which that is.
const LOOKED_AT: usize = 96;
/// Where a request's fields begin that are not the same in each build.
const VARYING: u64 = 0x100;
/// Where they have ended long ago.
const TOO_FAR: u64 = 0x2000;

/// `None` if it is not nginx.
pub(super) fn probes(file: &File, functions: &Functions<'_, File>) -> Option<Probes> {
    let [send, init] = functions.exported(FUNCTIONS);
    let (offset, init) = (send?, init?);
    let mut code = [0; LOOKED_AT];
    let is_read = std::os::unix::fs::FileExt::read_exact_at(file, &mut code, init).is_ok();
    let stream = if cfg!(target_arch = "x86_64") && is_read { stream(&code) } else { None };
    let points = vec![ProbePoint { call: LoopCall::NginxSend.into(), offset }];
    Some(Probes { points, runtime: Some(Runtime::Nginx { stream: stream.unwrap_or(0) }) })
}

/// Where `ngx_http_request_t` has its `stream`: what `ngx_http_upstream_init(r)` compares with null first.
fn stream(code: &[u8]) -> Option<u32> {
    let mut decoder = Decoder::new(64, code, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    // Registers that have the argument.
    let mut requests = vec![Register::RDI];
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        if instruction.is_invalid() || [Mnemonic::Call, Mnemonic::Ret].contains(&instruction.mnemonic()) {
            return None;
        }
        let is_of_request = (0..instruction.op_count()).any(|index| instruction.op_kind(index) == OpKind::Memory)
            && requests.contains(&instruction.memory_base())
            && instruction.memory_index() == Register::None;
        let place = instruction.memory_displacement64();
        if is_of_request && (VARYING..TOO_FAR).contains(&place) && is_of_pointer(&instruction) {
            return u32::try_from(place).ok();
        }
        let only_reads = [Mnemonic::Cmp, Mnemonic::Test, Mnemonic::Push].contains(&instruction.mnemonic());
        if instruction.op0_kind() == OpKind::Register && !only_reads {
            let copies = instruction.mnemonic() == Mnemonic::Mov
                && instruction.op1_kind() == OpKind::Register
                && requests.contains(&instruction.op1_register());
            let written = instruction.op0_register();
            requests.retain(|register| *register != written);
            if copies {
                requests.push(written);
            }
        }
    }
    None
}

/// It compares eight bytes of memory with zero, or loads them.
const fn is_of_pointer(instruction: &Instruction) -> bool {
    match instruction.code() {
        Code::Cmp_rm64_imm8 => instruction.immediate8() == 0,
        Code::Mov_r64_rm64 => true,
        _ => false,
    }
}

/// Looks at code, for the fuzz target.
pub(crate) fn fuzz(code: &[u8]) {
    let _ = stream(code);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    /// The beginning of `ngx_http_upstream_init` in Debian's nginx 1.22.1.
    const DEBIAN: &[u8] = b"\x41\x54\x55\x53\x48\x8b\x6f\x08\x48\x89\xfb\x48\x8b\x75\x50\x48\xf7\x06\x00\x01\x00\x00\
        \x0f\x85\xa4\x00\x00\x00\x48\x83\xbb\xf8\x04\x00\x00\x00\x75\x3f";

    #[rstest]
    #[case::debian(DEBIAN, Some(0x4f8))]
    // mov rax, [rdi + 0x510]; test rax, rax
    #[case::loaded(b"\x48\x8b\x87\x10\x05\x00\x00\x48\x85\xc0", Some(0x510))]
    // cmp qword [rdi + 0x510], 0
    #[case::at_once(b"\x48\x83\xbf\x10\x05\x00\x00\x00", Some(0x510))]
    // mov rbp, [rdi + 8]; cmp qword [rbp + 0x510], 0: it is another object
    #[case::of_another(b"\x48\x8b\x6f\x08\x48\x83\xbd\x10\x05\x00\x00\x00", None)]
    // mov rdi, [rdi + 8]; cmp qword [rdi + 0x510], 0
    #[case::not_any_more(b"\x48\x8b\x7f\x08\x48\x83\xbf\x10\x05\x00\x00\x00", None)]
    // cmp dword [rdi + 0x510], 0
    #[case::no_pointer(b"\x83\xbf\x10\x05\x00\x00\x00", None)]
    // ret
    #[case::nothing(b"\xc3\x48\x83\xbf\x10\x05\x00\x00\x00", None)]
    fn the_place_of_a_stream_is_read_from_code(#[case] code: &[u8], #[case] expected: Option<u32>) {
        assert_eq!(stream(code), expected);
    }

    #[test]
    fn takes_every_prefix() {
        for length in 0..DEBIAN.len() {
            assert!([None, Some(0x4f8)].contains(&stream(&DEBIAN[..length])), "{length}");
        }
    }

    proptest! {
        #[test]
        fn takes_any_code(code in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = stream(&code);
        }
    }
}
