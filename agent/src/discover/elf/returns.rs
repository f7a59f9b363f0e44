//! Where a function of x86-64 returns, which is found by following its code: compilers put rare parts elsewhere, and jump into
//! the function that is called last.

use std::collections::BTreeSet;

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind};

use super::{Functions, ReadAt, read};

/// Instructions that are looked at, and returns that there may be: what is asked for has dozens and a few.
const MAX_INSTRUCTIONS: usize = 512;
const MAX_RETURNS: usize = 8;
/// Bytes that are read at once; an instruction has no more than 15.
const PIECE: usize = 128;
const LONGEST: usize = 15;

impl<F: ReadAt> Functions<'_, F> {
    /// Where in the file the instructions lie with which the function returns that begins at `start` there. `None` if not all of
    /// its code is understood, or it is too much.
    pub(crate) fn returns(&self, start: u64) -> Option<BTreeSet<u64>> {
        let (mut seen, mut returns, mut ahead) = (BTreeSet::new(), BTreeSet::new(), vec![start]);
        while let Some(mut at) = ahead.pop() {
            // Until the code goes on elsewhere, or where it was already.
            while let Some(next) = self.follow(at, &mut seen, &mut returns, &mut ahead)? {
                at = next;
            }
        }
        (1..=MAX_RETURNS).contains(&returns.len()).then_some(returns)
    }

    /// Follows the code at `at` for a piece; where it goes on straight ahead, if it does.
    #[expect(clippy::option_option, reason = "not understood is not the same as over")]
    fn follow(
        &self,
        at: u64,
        seen: &mut BTreeSet<u64>,
        returns: &mut BTreeSet<u64>,
        ahead: &mut Vec<u64>,
    ) -> Option<Option<u64>> {
        let code = read(self.file, at, PIECE)?;
        let mut decoder = Decoder::with_ip(64, &code, at, DecoderOptions::NONE);
        let mut instruction = Instruction::default();
        while decoder.position() + LONGEST <= PIECE {
            decoder.decode_out(&mut instruction);
            if instruction.is_invalid() || seen.len() >= MAX_INSTRUCTIONS {
                return None;
            }
            if !seen.insert(instruction.ip()) {
                return Some(None);
            }
            let is_branch = instruction.op0_kind() == OpKind::NearBranch64;
            match (instruction.mnemonic(), instruction.code()) {
                (Mnemonic::Call, _) => {}
                (Mnemonic::Jmp, _) if is_branch => return Some(Some(instruction.near_branch_target())),
                (_, Code::Retnq) => {
                    returns.insert(instruction.ip());
                    return Some(None);
                }
                // It does not come back.
                (Mnemonic::Ud2 | Mnemonic::Int3 | Mnemonic::Hlt, _) => return Some(None),
                (Mnemonic::Jmp | Mnemonic::Ret | Mnemonic::Retf | Mnemonic::Iretq, _) => return None,
                _ if is_branch => ahead.push(instruction.near_branch_target()),
                _ => {}
            }
        }
        Some(Some(decoder.ip()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;
    use crate::discover::elf::library;

    /// Where in the file of a test code is put, behind all else.
    fn returns(code: &[u8]) -> Option<Vec<u64>> {
        let mut file = library();
        let start = file.len() as u64;
        file.extend_from_slice(code);
        file.extend_from_slice(&[0xcc; PIECE]);
        let found = Functions::of(&file).unwrap().returns(start)?;
        Some(found.into_iter().map(|at| at - start).collect())
    }

    #[rstest]
    #[case::at_once(&[0xc3], Some(vec![0]))]
    // test rax, rax; je +1; ret; xor eax, eax; ret
    #[case::of_two_ways(&[0x48, 0x85, 0xc0, 0x74, 1, 0xc3, 0x31, 0xc0, 0xc3], Some(vec![5, 8]))]
    // jmp +2; ret; ret; ret
    #[case::by_a_jump(&[0xeb, 2, 0xc3, 0xc3, 0xc3], Some(vec![4]))]
    // call +0; ret
    #[case::behind_a_call(&[0xe8, 0, 0, 0, 0, 0xc3], Some(vec![5]))]
    // push rax; test eax, eax; jne -5; ret
    #[case::behind_a_loop(&[0x50, 0x85, 0xc0, 0x75, 0xfb, 0xc3], Some(vec![5]))]
    // je +2; ret; nop; ud2
    #[case::one_way_ends_it(&[0x74, 2, 0xc3, 0x90, 0x0f, 0x0b], Some(vec![2]))]
    // jmp [rip]
    #[case::not_known_where_to(&[0xff, 0x25, 0, 0, 0, 0], None)]
    // jmp -2
    #[case::never(&[0xeb, 0xfe], None)]
    #[case::no_code(&[0x06], None)]
    fn returns_are_found(#[case] code: &[u8], #[case] expected: Option<Vec<u64>>) {
        assert_eq!(returns(code), expected);
    }

    #[test]
    fn code_is_followed_across_pieces() {
        let code = [vec![0x90; 3 * PIECE], vec![0xc3]].concat();
        assert_eq!(returns(&code), Some(vec![3 * PIECE as u64]));
        assert_eq!(returns(&[vec![0x90; MAX_INSTRUCTIONS], vec![0xc3]].concat()), None);
    }

    #[test]
    fn takes_every_prefix() {
        let code = [0x48, 0x85, 0xc0, 0x74, 1, 0xc3, 0x31, 0xc0, 0xc3];
        for length in 0..code.len() {
            let _ = returns(&code[..length]);
        }
    }

    proptest! {
        #[test]
        fn takes_any_code(code in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = returns(&code);
        }
    }
}
