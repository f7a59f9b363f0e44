use std::fs::File;

use proptest::prelude::*;
use rstest::rstest;

use super::*;

const READ: &str = "crypto/tls.(*Conn).Read";
const NOTHING: &str = "crypto/tls.(*Conn).Nothing";
/// Where its code begins, in memory and in the file.
const TEXT: u64 = 0x40_1000;
const TEXT_AT: u64 = 0x1000;

/// Where a program says that its code begins.
#[derive(Clone, Copy, Debug)]
enum Says {
    /// Before Go 1.26.
    InHeader,
    /// Since.
    InModule,
    /// With a program that can be moved.
    Nowhere,
}

/// A program that has `functions`, one after the other.
fn made(magic: u32, says: Says, functions: &[(&str, &[u8])]) -> Vec<u8> {
    let mut names = b"go:buildid\0".to_vec();
    let (mut places, mut descriptions, mut code) = (Vec::new(), Vec::new(), Vec::new());
    let descriptions_at = (functions.len() * ENTRY_SIZE + 4) as u32;
    for (name, body) in functions {
        let start = code.len() as u32;
        places.extend([start, descriptions_at + descriptions.len() as u32]);
        descriptions.extend([start, names.len() as u32, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()));
        names.extend_from_slice(name.as_bytes());
        names.push(0);
        code.extend_from_slice(body);
    }
    places.push(code.len() as u32);
    let text = |is_here: bool| if is_here { TEXT } else { 0 };
    let header = [
        functions.len() as u64,
        0,
        text(matches!(says, Says::InHeader)),
        HEADER_SIZE as u64,
        (HEADER_SIZE + names.len()) as u64,
        0,
        0,
        (HEADER_SIZE + names.len()) as u64,
    ];
    let mut table = magic.to_le_bytes().to_vec();
    table.extend([0, 0, 1, 8]);
    table.extend(header.iter().flat_map(|word| word.to_le_bytes()));
    table.extend(&names);
    table.extend(places.iter().flat_map(|word| word.to_le_bytes()));
    table.extend(&descriptions);
    let mut module = vec![0; MODULE_TEXT as usize + 8];
    module[MODULE_TEXT as usize..].copy_from_slice(&text(matches!(says, Says::InModule)).to_le_bytes());
    place(&[(".text", &code), (".gopclntab", &table), (".go.module", &module), (".go.buildinfo", BUILD_INFO)])
}

/// An ELF file with one segment, and its sections behind its code.
fn place(sections: &[(&str, &[u8])]) -> Vec<u8> {
    let mut file = vec![0; TEXT_AT as usize];
    let (mut names, mut table) = (vec![0], vec![0; 64]);
    for (name, content) in sections.iter().copied().chain([(".shstrtab", &[][..])]) {
        let name_at = names.len() as u32;
        names.extend_from_slice(name.as_bytes());
        names.push(0);
        let content = if name == ".shstrtab" { &names[..] } else { content };
        let mut entry = vec![0; 64];
        entry[..4].copy_from_slice(&name_at.to_le_bytes());
        let address = TEXT + file.len() as u64 - TEXT_AT;
        for (at, value) in [(16, address), (24, file.len() as u64), (32, content.len() as u64)] {
            entry[at..at + 8].copy_from_slice(&u64::to_le_bytes(value));
        }
        file.extend_from_slice(content);
        table.extend(entry);
    }
    let sections_at = file.len() as u64;
    file.extend_from_slice(&table);
    let size = file.len() as u64 - TEXT_AT;
    file[..6].copy_from_slice(b"\x7fELF\x02\x01");
    let count = (table.len() / 64) as u16;
    for (at, value) in [(18, MACHINE_X86_64), (54, 56), (56, 1), (58, 64), (60, count), (62, count - 1)] {
        file[at..at + 2].copy_from_slice(&u16::to_le_bytes(value));
    }
    // One segment of code.
    for (at, value) in [(32, 64), (40, sections_at), (64, 1 | 5 << 32), (72, TEXT_AT), (80, TEXT), (96, size)] {
        file[at..at + 8].copy_from_slice(&u64::to_le_bytes(value));
    }
    file
}

/// A program of Go 1.26 that has these functions.
pub(crate) fn program(functions: &[(&str, &[u8])]) -> Vec<u8> {
    made(MAGIC[1], Says::InModule, functions)
}

/// What is in `.go.buildinfo` of a program of Go 1.26.
const BUILD_INFO: &[u8] = b"\xff Go buildinf:\x08\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x08go1.26.5";

const FUNCTIONS: [(&str, &[u8]); 4] =
    [("runtime.text", b"\x90"), (READ, b"code"), ("crypto/tls.(*Conn).Reader", b"more"), ("main.main", b"\xc3")];

/// Where in the file the function with this name lies, and its code.
fn found(file: &Vec<u8>, name: &str) -> Option<(u64, Vec<u8>)> {
    let functions = Functions::of(file)?;
    let program = GoFunctions::of(file, &functions)?;
    let [function] = program.find([name])?;
    program.texts().iter().find_map(|text| program.code(*text, function?))
}

#[rstest]
fn functions_are_found_by_their_whole_names(
    #[values(MAGIC[0], MAGIC[1])] magic: u32,
    #[values(Says::InHeader, Says::InModule, Says::Nowhere)] says: Says,
) {
    let file = made(magic, says, &FUNCTIONS);
    assert_eq!(found(&file, READ), Some((TEXT_AT + 1, b"code".to_vec())));
    assert_eq!(found(&file, "main.main"), Some((TEXT_AT + 9, b"\xc3".to_vec())));
    assert_eq!(found(&file, NOTHING), None);
    assert_eq!(found(&file, "crypto/tls.(*Conn)"), None);
}

#[test]
fn other_programs_have_none() {
    assert_eq!(found(&made(0xffff_fffa, Says::InHeader, &FUNCTIONS), READ), None, "Go 1.17");
    let mut arm = program(&FUNCTIONS);
    arm[18] = 183;
    assert_eq!(found(&arm, READ), None);
}

/// Names and descriptions of which a part lies in the next piece.
#[test]
fn functions_are_found_across_pieces() {
    let long = "x".repeat(997);
    let mut functions: Vec<(String, &[u8])> =
        (0..20_000).map(|index| (if index < 200 { long.clone() } else { index.to_string() }, &b"\xc3"[..])).collect();
    functions.push((READ.to_owned(), b"code"));
    let functions: Vec<_> = functions.iter().map(|(name, code)| (name.as_str(), *code)).collect();
    assert_eq!(found(&program(&functions), READ), Some((TEXT_AT + 20_000, b"code".to_vec())));
}

/// What is cut is not found, and whatever is found is right.
#[test]
fn takes_every_prefix() {
    let file = program(&FUNCTIONS);
    for length in 0..file.len() {
        assert_eq!(found(&file[..length].to_vec(), READ), None, "{length}");
    }
}

/// The names, of course, can be what they like.
#[test]
fn a_huge_table_is_refused() {
    let file = program(&FUNCTIONS);
    let table = file.windows(4).position(|bytes| bytes == MAGIC[1].to_le_bytes()).unwrap();
    for at in [8, NAMES, UNITS, ENTRIES] {
        for value in [u64::MAX, MAX_FUNCTIONS + 1, u64::MAX / 2] {
            let mut file = file.clone();
            file[table + at..table + at + 8].copy_from_slice(&value.to_le_bytes());
            assert_eq!(found(&file, READ), None, "{at} {value}");
        }
    }
}

#[rstest]
#[case::release(b"go1.26.5", Some(26))]
#[case::without_a_third_number(b"go1.19", Some(19))]
#[case::candidate(b"go1.27rc1", Some(27))]
#[case::of_development(b"devel go1.24-abcdef Mon Jan 1", Some(24))]
#[case::with_experiments(b"go1.25.1 X:jsonv2", Some(25))]
#[case::another(b"gccgo 12", None)]
#[case::empty(b"", None)]
fn the_version_is_known(#[case] version: &[u8], #[case] minor: Option<u32>) {
    let mut info = b"\xff Go buildinf:\x08\x02".to_vec();
    info.resize(VERSION, 0);
    info.push(version.len() as u8);
    info.extend(version);
    let file = place(&[(".go.buildinfo", &info)]);
    assert_eq!(go_minor(&file), minor);
    for length in 0..file.len() {
        assert!(go_minor(&file[..length].to_vec()).is_none());
    }
}

/// Another reader finds the same.
#[test]
fn the_functions_of_a_real_program_are_found() {
    let go = coati_tests::tools::tools().join("python/lib/python3.11/site-packages/go/bin/go");
    let Ok(program) = File::open(&go) else {
        println!("SKIPPED: no {} (`cargo xtask setup`); not covered: the functions of a real Go program", go.display());
        return;
    };
    let functions = Functions::of(&program).unwrap();
    let names = ["crypto/tls.(*Conn).Read", "crypto/tls.(*Conn).Write", NOTHING];
    let found = GoFunctions::of(&program, &functions).unwrap();
    let [read, write, nothing] = found.find(names).unwrap();
    assert_eq!(nothing, None);
    let symbols = functions.local(["SSL_none"]);
    assert_eq!(symbols, [None]);
    let text = found.texts()[0];
    for function in [read, write] {
        let (offset, code) = found.code(text, function.unwrap()).unwrap();
        // Each begins with the comparison of its stack pointer, or with room for a large frame.
        assert!(code.starts_with(b"\x49\x3b\x66\x10") || code.starts_with(b"\x4c\x8d\x64\x24"), "{offset:#x}");
    }
}

proptest! {
    #[test]
    fn takes_any_damage(position in 0_usize..2000, value: u8) {
        let mut file = program(&FUNCTIONS);
        // The headers, or what is behind the code.
        let at = if position < 128 { position } else { TEXT_AT as usize + position - 128 };
        let length = file.len();
        file[at % length] = value;
        let _ = found(&file, READ);
    }

    #[test]
    fn whatever_has_a_name_is_found(names in prop::collection::hash_set("[a-z/.()*]{1,40}", 1..40)) {
        let names: Vec<_> = names.into_iter().collect();
        let bodies: Vec<_> = (0..names.len()).map(|index| vec![index as u8; index + 1]).collect();
        let functions: Vec<_> = names.iter().zip(&bodies).map(|(name, body)| (name.as_str(), body.as_slice())).collect();
        let file = program(&functions);
        for (name, body) in functions {
            prop_assert_eq!(found(&file, name).map(|(_, code)| code), Some(body.to_vec()));
        }
    }
}
