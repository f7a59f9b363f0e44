//! Where functions lie in a program written in Go, stripped or not: the runtime needs the table of all functions to walk
//! stacks, so every program has it (`.gopclntab`). Of Go 1.18 and later; the layout is `pcHeader`, `functab` and `_func` of
//! src/runtime/symtab.go and runtime2.go in Go's sources.
//!
//! It is read in pieces: first the names, then the entries of those that have one of the wanted names.

use super::{Functions, ReadAt, pieces, read, sections, u16_at, u32_at, u64_at};

/// Go 1.18 and 1.19, and all since: the functions' places in them differ in nothing that is read here.
const MAGIC: [u32; 2] = [0xffff_fff0, 0xffff_fff1];
const HEADER_SIZE: usize = 72;
/// Before Go 1.26 where the code begins; and offsets of the tables.
const TEXT_START: usize = 24;
const NAMES: usize = 32;
const UNITS: usize = 40;
const ENTRIES: usize = 64;
/// `moduledata.text`, where Go 1.26 and later say where the code begins; in `.go.module`.
const MODULE_TEXT: u64 = 176;
/// Sections that the table is in; the second where all of the program can be moved.
const TABLES: [&str; 2] = [".gopclntab", ".data.rel.ro.gopclntab"];
/// An entry of the table of places: where the function begins and where its description lies.
const ENTRY_SIZE: usize = 8;
/// What is read of a description: where the function begins, and where its name lies.
const DESCRIPTION_SIZE: usize = 8;

/// Functions that a program may have; Kubernetes' have a hundred thousand.
const MAX_FUNCTIONS: u64 = 1 << 20;
/// Bytes of names, and of descriptions, that are read.
const MAX_TABLE: u64 = 128 << 20;
/// Of these at once.
const PIECE: usize = 64 << 10;
/// Bytes of code that one function may have.
const MAX_CODE: u32 = 64 << 10;
const MACHINE_X86_64: u16 = 62;

/// The table of a program's functions.
pub(crate) struct GoFunctions<'a, F> {
    file: &'a F,
    functions: &'a Functions<'a, F>,
    names: Table,
    entries: Table,
    count: u64,
    texts: Vec<u64>,
}

/// Bytes of the file.
#[derive(Clone, Copy)]
struct Table {
    offset: u64,
    size: u64,
}

/// A function's code, counted from where the program's begins.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct GoFunction {
    start: u32,
    size: u32,
}

impl<'a, F: ReadAt> GoFunctions<'a, F> {
    /// `None` if the file is not a program for x86-64 that Go 1.18 or a later one has made.
    pub(crate) fn of(file: &'a F, functions: &'a Functions<'a, F>) -> Option<Self> {
        (u16_at(&functions.header, 18)? == MACHINE_X86_64).then_some(())?;
        let sections = sections(file)?;
        let table = TABLES.iter().find_map(|name| sections.find(name))?;
        let header = read(file, table.offset, HEADER_SIZE)?;
        let is_known = MAGIC.contains(&u32_at(&header, 0)?) && header.get(4..8)? == [0, 0, 1, 8];
        let count = u64_at(&header, 8)?;
        (is_known && count <= MAX_FUNCTIONS && table.size <= MAX_TABLE).then_some(())?;
        let part = |from: u64, to: u64| {
            let size = to.checked_sub(from)?;
            (to <= table.size).then_some(Table { offset: table.offset.checked_add(from)?, size })
        };
        let names = part(u64_at(&header, NAMES)?, u64_at(&header, UNITS)?)?;
        let entries = part(u64_at(&header, ENTRIES)?, table.size)?;
        // What the loader fills in may be zero in the file. Then the code begins with the section, unless a linker of C has
        // put other code before it.
        let module = sections.find(".go.module").and_then(|module| {
            let place = module.offset.checked_add(MODULE_TEXT)?;
            u64_at(&read(file, place, 8)?, 0)
        });
        let text = sections.find(".text").map(|text| text.address);
        let mut texts: Vec<u64> = [u64_at(&header, TEXT_START), module, text].into_iter().flatten().collect();
        texts.retain(|text| *text != 0);
        texts.dedup();
        Some(Self { file, functions, names, entries, count, texts })
    }

    /// Where the code may begin, the likeliest first: whoever reads it sees whether there is a function.
    pub(crate) fn texts(&self) -> &[u64] {
        &self.texts
    }

    /// The functions with these names, with their packages' paths before them.
    pub(crate) fn find<const N: usize>(&self, names: [&str; N]) -> Option<[Option<GoFunction>; N]> {
        let places = self.places_of(names)?;
        let table_size = usize::try_from(self.count).ok()?.checked_mul(ENTRY_SIZE)?.checked_add(4)?;
        (table_size as u64 <= self.entries.size).then_some(())?;
        let table = read(self.file, self.entries.offset, table_size)?;
        let mut found = [None; N];
        let mut descriptions = Window { file: self.file, table: self.entries, start: 0, bytes: Vec::new() };
        for at in (0..table_size - 4).step_by(ENTRY_SIZE) {
            let (start, place, end) = (u32_at(&table, at)?, u32_at(&table, at + 4)?, u32_at(&table, at + ENTRY_SIZE)?);
            let description = descriptions.get(place.into())?;
            let name = u32_at(description, 4)?;
            if let Some(index) = places.iter().position(|place| *place == Some(name))
                && u32_at(description, 0)? == start
                && let Some(size) = end.checked_sub(start)
                && let Some(found) = found.get_mut(index)
            {
                *found = Some(GoFunction { start, size });
            }
        }
        Some(found)
    }

    /// The code of a function, and where in the file it lies, if the program's code begins at `text`.
    pub(crate) fn code(&self, text: u64, function: GoFunction) -> Option<(u64, Vec<u8>)> {
        (function.size <= MAX_CODE).then_some(())?;
        let offset = self.functions.file_offset(text.checked_add(function.start.into())?)?;
        Some((offset, read(self.file, offset, function.size as usize)?))
    }

    /// Where in the table of names each of these stands.
    fn places_of<const N: usize>(&self, names: [&str; N]) -> Option<[Option<u32>; N]> {
        let mut places = [None; N];
        let longest = names.iter().map(|name| name.len() + 2).max()?;
        let mut take = |at: u64, piece: &[u8]| {
            // Each name ends with a zero, so each but the first comes behind one.
            let ends = piece.iter().enumerate().filter(|(_, byte)| **byte == 0).map(|(index, _)| index + 1);
            for start in (at == 0).then_some(0).into_iter().chain(ends) {
                let Some(string) = piece.get(start..) else { continue };
                for (name, place) in names.iter().zip(&mut places) {
                    let is_it = string.starts_with(name.as_bytes()) && string.get(name.len()) == Some(&0);
                    if is_it && place.is_none() {
                        *place = u32::try_from(at + start as u64).ok();
                    }
                }
            }
        };
        pieces(self.file, self.names.offset, self.names.size, longest, PIECE, &mut take)?;
        Some(places)
    }
}

/// Bytes of `.go.buildinfo` that are read: the version stands at the start of what follows its header.
const MAX_BUILD_INFO: u64 = 128;
/// Where the version's length lies, and the flag that says so (src/debug/buildinfo/buildinfo.go).
const VERSION: usize = 32;
const IS_INLINE: u8 = 2;

/// The second number of the version of Go that has made the program: 26 of `go1.26.5`. `None` if it is not known.
pub(crate) fn go_minor(file: &impl ReadAt) -> Option<u32> {
    let section = sections(file)?.find(".go.buildinfo")?;
    let info = read(file, section.offset, usize::try_from(section.size.min(MAX_BUILD_INFO)).ok()?)?;
    (info.starts_with(b"\xff Go buildinf:") && info.get(15)? & IS_INLINE != 0).then_some(())?;
    // Lengths of versions have one byte; one of development begins with `devel go1.`.
    let len = usize::from(*info.get(VERSION)?);
    let version = info.get(VERSION + 1..)?;
    let version = std::str::from_utf8(version.get(..len.min(version.len()))?).ok()?;
    let minor = version.split_once("go1.")?.1;
    minor.get(..minor.find(|it: char| !it.is_ascii_digit()).unwrap_or(minor.len()))?.parse().ok()
}

/// What is read from a table in the order in which it lies there, as far as possible in pieces.
struct Window<'a, F> {
    file: &'a F,
    table: Table,
    start: u64,
    bytes: Vec<u8>,
}

impl<F: ReadAt> Window<'_, F> {
    /// The description at `place`.
    fn get(&mut self, place: u64) -> Option<&[u8]> {
        let is_here = place >= self.start && place + DESCRIPTION_SIZE as u64 <= self.start + self.bytes.len() as u64;
        if !is_here {
            let left = self.table.size.checked_sub(place)?;
            let len = usize::try_from(left).ok()?.min(PIECE);
            self.bytes = read(self.file, self.table.offset.checked_add(place)?, len)?;
            self.start = place;
        }
        let at = usize::try_from(place - self.start).ok()?;
        self.bytes.get(at..at + DESCRIPTION_SIZE)
    }
}

#[cfg(test)]
pub(crate) mod tests;
