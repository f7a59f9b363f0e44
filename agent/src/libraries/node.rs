//! Where probes go in Node.js, in its executable or in `libnode.so`, which export its functions for native modules; and where its
//! objects have their async ids, which is read from the code that looks at them.

use std::{fs::File, os::unix::fs::FileExt as _};

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Register};

use super::library::{Probes, Runtime};
use crate::{
    discover::elf::Functions,
    ebpf::{LoopCall, ProbePoint},
};

/// `node::LibuvStreamWrap::OnUvRead(ssize_t, const uv_buf_t *)`, which calls back what was received.
const READ: &str = "_ZN4node15LibuvStreamWrap8OnUvReadElPK8uv_buf_t";
/// `node::AsyncWrap::GetAsyncId(const FunctionCallbackInfo<Value>&)`, which gives the async id of an object.
const GET_ASYNC_ID: &str = "_ZN4node9AsyncWrap10GetAsyncIdERKN2v820FunctionCallbackInfoINS1_5ValueEEE";

/// Bytes of the latter in which it loads that.
const LOOKED_AT: usize = 192;
/// Where an object's fields may begin, behind its table of functions, and where the first few of them have ended.
const FIELDS: std::ops::Range<u64> = 0x10..0x100;

/// `None` if it is not Node.js.
pub(super) fn probes(file: &File, functions: &Functions<'_, File>) -> Option<Probes> {
    let [read, get] = functions.exported([READ, GET_ASYNC_ID]);
    let points = vec![ProbePoint { call: LoopCall::NodeRead.into(), offset: read? }];
    let mut code = [0; LOOKED_AT];
    let is_read = get.is_some_and(|get| file.read_exact_at(&mut code, get).is_ok());
    let async_id = if cfg!(target_arch = "x86_64") && is_read { async_id(&code) } else { None };
    Some(Probes { points, runtime: Some(Runtime::Node { async_id: async_id.unwrap_or(0) }) })
}

/// Where `AsyncWrap` has its `async_id_`: the first number of floating point that is loaded of an object.
fn async_id(code: &[u8]) -> Option<u32> {
    let mut decoder = Decoder::new(64, code, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        if instruction.is_invalid() {
            return None;
        }
        let is_load = [Code::Movsd_xmm_xmmm64, Code::VEX_Vmovsd_xmm_m64].contains(&instruction.code());
        let is_of_object = ![Register::RIP, Register::RSP, Register::RBP, Register::None]
            .contains(&instruction.memory_base())
            && instruction.memory_index() == Register::None;
        let place = instruction.memory_displacement64();
        if is_load && is_of_object && FIELDS.contains(&place) && place % 8 == 0 {
            return u32::try_from(place).ok();
        }
    }
    None
}

/// Looks at code, for the fuzz target.
pub(crate) fn fuzz(code: &[u8]) {
    let _ = async_id(code);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    /// movsd xmm0, [rip + 0x100]; mov rdi, [rdi]; movsd xmm0, [rax + 0x38]
    const LIKE_NODE: &[u8] = b"\xf2\x0f\x10\x05\x00\x01\x00\x00\x48\x8b\x3f\xf2\x0f\x10\x40\x38";

    #[rstest]
    #[case::like_22(LIKE_NODE, Some(0x38))]
    // movsd xmm0, [rax + 0x28]
    #[case::like_20(b"\xf2\x0f\x10\x40\x28", Some(0x28))]
    // movsd xmm0, [rsp + 0x28]
    #[case::of_the_stack(b"\xf2\x0f\x10\x44\x24\x28", None)]
    // movsd [rax + 0x28], xmm0
    #[case::a_store(b"\xf2\x0f\x11\x40\x28", None)]
    // movsd xmm0, [rax]
    #[case::no_field(b"\xf2\x0f\x10\x00", None)]
    fn the_place_of_an_async_id_is_read_from_code(#[case] code: &[u8], #[case] expected: Option<u32>) {
        assert_eq!(async_id(code), expected);
    }

    #[test]
    fn takes_every_prefix() {
        for length in 0..LIKE_NODE.len() {
            assert_eq!(async_id(&LIKE_NODE[..length]), None, "{length}");
        }
    }

    /// In its executable, or in Debian's library.
    #[test]
    fn a_real_node_is_understood() {
        let paths =
            ["/usr/bin/node", "/usr/lib/x86_64-linux-gnu/libnode.so.108", "/usr/lib/x86_64-linux-gnu/libnode.so.115"];
        let found = paths.iter().filter_map(|path| File::open(path).ok()).find_map(|file| {
            let functions = Functions::of(&file)?;
            probes(&file, &functions)
        });
        let Some(found) = found else {
            println!("SKIPPED: no Node.js; not covered: where its objects have their async ids");
            return;
        };
        let Some(Runtime::Node { async_id }) = found.runtime else { panic!("{found:?}") };
        assert!([0x28, 0x38].contains(&async_id), "{found:?}");
    }

    proptest! {
        #[test]
        fn takes_any_code(code in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = async_id(&code);
        }
    }
}
