//! The little that is read of an executable: which toolchain made it.
//!
//! The file belongs to a process that may be hostile, so everything is bounded and nothing in it is trusted. Debug
//! builds have hundreds of megabytes; only the header, the section table and the names of the sections are read.

mod go;
mod returns;
mod symbols;

use std::{fs::File, io, os::unix::fs::FileExt};

#[cfg(test)]
pub(crate) use go::tests::program;
pub(crate) use go::{GoFunctions, go_minor};
pub(crate) use symbols::Functions;
#[cfg(test)]
pub(crate) use symbols::tests::library;

/// Toolchains that leave a mark in their executables, stripped or not.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Toolchain {
    /// The section `.go.buildinfo`.
    Go,
    /// `rustc version …` in the section `.comment`.
    Rust,
}

/// Sections that a table may have; the Linux kernel's modules with a section per function have more, programs do not.
const MAX_SECTIONS: u16 = 1024;
/// Bytes of section names that are looked at.
const MAX_NAMES: u64 = 64 << 10;
/// Bytes of `.comment` that are looked at; it has one short line per compiler.
const MAX_COMMENT: u64 = 4 << 10;

const HEADER_SIZE: usize = 64;
const SECTION_HEADER_SIZE: u16 = 64;

/// The toolchain that made the executable, `None` if it is another one or the file is no little-endian ELF64 file.
pub(crate) fn toolchain(file: &impl ReadAt) -> Option<Toolchain> {
    let sections = sections(file)?;
    if sections.find(".go.buildinfo").is_some() {
        return Some(Toolchain::Go);
    }
    let comment = sections.find(".comment")?;
    let comment = read(file, comment.offset, usize::try_from(comment.size.min(MAX_COMMENT)).ok()?)?;
    comment.windows(b"rustc version".len()).any(|window| window == b"rustc version").then_some(Toolchain::Rust)
}

/// The sections of a little-endian ELF64 file.
fn sections(file: &impl ReadAt) -> Option<Sections> {
    let header = read(file, 0, HEADER_SIZE)?;
    (header.get(..6)? == b"\x7fELF\x02\x01").then_some(())?;
    let table_offset = u64_at(&header, 40)?;
    let entry_size = u16_at(&header, 58)?;
    let count = u16_at(&header, 60)?;
    let names_index = u16_at(&header, 62)?;
    (entry_size == SECTION_HEADER_SIZE && count <= MAX_SECTIONS).then_some(())?;

    let table = read(file, table_offset, usize::from(count) * usize::from(entry_size))?;
    let names = section(&table, names_index)?;
    let names = read(file, names.offset, usize::try_from(names.size.min(MAX_NAMES)).ok()?)?;
    Some(Sections { table, count, names })
}

/// A table of sections, and their names.
struct Sections {
    table: Vec<u8>,
    count: u16,
    names: Vec<u8>,
}

impl Sections {
    /// The first with a name.
    fn find(&self, name: &str) -> Option<Section> {
        let mut all = (0..self.count).filter_map(|index| section(&self.table, index));
        all.find(|it| name_at(&self.names, it.name) == Some(name.as_bytes()))
    }
}

/// Something that can be read at an offset; a file, or bytes in tests.
pub(crate) trait ReadAt {
    /// Fills `buffer` from `offset`, or fails.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for File {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }
}

struct Section {
    name: u32,
    address: u64,
    offset: u64,
    size: u64,
}

fn section(table: &[u8], index: u16) -> Option<Section> {
    let start = usize::from(index) * usize::from(SECTION_HEADER_SIZE);
    let entry = table.get(start..start + usize::from(SECTION_HEADER_SIZE))?;
    Some(Section {
        name: u32_at(entry, 0)?,
        address: u64_at(entry, 16)?,
        offset: u64_at(entry, 24)?,
        size: u64_at(entry, 32)?,
    })
}

fn name_at(names: &[u8], offset: u32) -> Option<&[u8]> {
    names.get(usize::try_from(offset).ok()?..)?.split(|byte| *byte == 0).next()
}

fn read(file: &impl ReadAt, offset: u64, size: usize) -> Option<Vec<u8>> {
    let mut buffer = vec![0; size];
    file.read_exact_at(&mut buffer, offset).ok()?;
    Some(buffer)
}

/// Reads `size` bytes in pieces that overlap by one item less a byte, unless a piece is a number of whole items; `None` if they
/// cannot be read.
fn pieces(
    file: &impl ReadAt,
    offset: u64,
    size: u64,
    item: usize,
    piece: usize,
    take: &mut dyn FnMut(u64, &[u8]),
) -> Option<()> {
    let is_aligned = piece.is_multiple_of(item);
    let mut at = 0;
    while at < size {
        let len = usize::try_from((size - at).min(piece as u64)).ok()?;
        take(at, &read(file, offset.checked_add(at)?, len)?);
        let overlap = if is_aligned || len < piece { 0 } else { item - 1 };
        at += (len - overlap) as u64;
    }
    Some(())
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(offset..offset + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(offset..offset + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(offset..offset + 8)?.try_into().ok()?))
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    impl ReadAt for Vec<u8> {
        fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            let start = usize::try_from(offset).map_err(io::Error::other)?;
            let bytes = start.checked_add(buffer.len()).and_then(|end| self.get(start..end));
            buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        }
    }

    /// A small ELF64 file with the given sections, the table of names last.
    pub(in crate::discover) fn elf(sections: &[(&str, &[u8])]) -> Vec<u8> {
        let mut file = vec![0; HEADER_SIZE];
        let mut names = vec![0];
        let mut table = Vec::new();
        for (name, content) in sections.iter().copied().chain([(".shstrtab", &[][..])]) {
            let name_offset = u32::try_from(names.len()).unwrap();
            names.extend_from_slice(name.as_bytes());
            names.push(0);
            let content = if name == ".shstrtab" { &names[..] } else { content };
            let mut entry = vec![0; usize::from(SECTION_HEADER_SIZE)];
            entry[0..4].copy_from_slice(&name_offset.to_le_bytes());
            entry[24..32].copy_from_slice(&(file.len() as u64).to_le_bytes());
            entry[32..40].copy_from_slice(&(content.len() as u64).to_le_bytes());
            file.extend_from_slice(content);
            table.extend_from_slice(&entry);
        }
        let count = u16::try_from(table.len()).unwrap() / SECTION_HEADER_SIZE;
        let table_offset = file.len() as u64;
        file.extend_from_slice(&table);
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[40..48].copy_from_slice(&table_offset.to_le_bytes());
        file[58..60].copy_from_slice(&SECTION_HEADER_SIZE.to_le_bytes());
        file[60..62].copy_from_slice(&count.to_le_bytes());
        file[62..64].copy_from_slice(&(count - 1).to_le_bytes());
        file
    }

    #[rstest]
    #[case::go(&[(".text", &b"code"[..]), (".go.buildinfo", b"\xff Go buildinf:")], Some(Toolchain::Go))]
    #[case::rust(&[(".comment", &b"GCC: (Debian) 12.2.0\0rustc version 1.95.0\0"[..])], Some(Toolchain::Rust))]
    #[case::c(&[(".comment", &b"GCC: (Debian) 12.2.0\0"[..])], None)]
    #[case::stripped_of_everything(&[(".text", &b"code"[..])], None)]
    fn tells_toolchains_apart(#[case] sections: &[(&str, &[u8])], #[case] expected: Option<Toolchain>) {
        assert_eq!(toolchain(&elf(sections)), expected);
    }

    #[test]
    fn knows_the_program_that_runs_this_test() {
        let file = File::open("/proc/self/exe").unwrap();
        assert_eq!(toolchain(&file), Some(Toolchain::Rust));
    }

    #[test]
    fn takes_every_prefix() {
        let file = elf(&[(".text", b"code"), (".go.buildinfo", b"\xff Go buildinf:")]);
        for length in 0..file.len() {
            assert_eq!(toolchain(&file[..length].to_vec()), None, "{length}");
        }
    }

    #[test]
    fn a_huge_section_table_is_refused() {
        let mut file = elf(&[(".go.buildinfo", b"")]);
        file[60..62].copy_from_slice(&u16::MAX.to_le_bytes());
        assert_eq!(toolchain(&file), None);
    }

    proptest! {
        #[test]
        fn takes_any_damage(position in 0_usize..300, value: u8) {
            let mut file = elf(&[(".comment", b"rustc version 1.95.0"), (".text", b"code")]);
            let length = file.len();
            file[position % length] = value;
            let _ = toolchain(&file);
        }
    }
}
