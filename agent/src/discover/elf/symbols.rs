//! Where functions lie in a file.
//!
//! Names that a file exports are looked up by its hash table: a few reads of a few bytes. Names that it only has for
//! debuggers are not hashed, so for these its table is read from end to end, in pieces.

use super::{ReadAt, pieces, read, u16_at, u32_at, u64_at};

/// Program headers that a file may have; usual are a dozen.
const MAX_SEGMENTS: u16 = 64;
/// Bytes of the dynamic section that are looked at.
const MAX_DYNAMIC: u64 = 64 << 10;
/// Symbols of one chain of a hash table that are looked at.
const MAX_CHAIN: u32 = 4096;
/// Sections of which one is the table of symbols.
const MAX_SECTIONS: u16 = 1024;
/// Bytes of the table of symbols, and of their names, that are read.
const MAX_TABLE: u64 = 32 << 20;
/// Of these at once.
const PIECE: usize = 64 << 10;
/// Bytes of notes that are searched for the build id.
const MAX_NOTES: u64 = 4 << 10;

const SEGMENT_SIZE: usize = 56;
const SECTION_SIZE: usize = 64;
const SYMBOL_SIZE: usize = 24;
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_NOTE: u32 = 4;
const PF_X: u32 = 1;
const DT_HASH: u64 = 4;
const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;
const DT_GNU_HASH: u64 = 0x6fff_fef5;
const SHT_SYMTAB: u32 = 2;
const STT_OBJECT: u8 = 1;
const STT_FUNC: u8 = 2;
const NT_GNU_BUILD_ID: u32 = 3;
/// The same of Go's linker.
const NT_GO_BUILD_ID: u32 = 4;

/// A file of which functions can be looked up.
pub(crate) struct Functions<'a, F> {
    pub(super) file: &'a F,
    pub(super) header: Vec<u8>,
    segments: Vec<Segment>,
}

#[derive(Clone, Copy)]
struct Segment {
    kind: u32,
    flags: u32,
    offset: u64,
    address: u64,
    size: u64,
}

/// A symbol: where its name begins, what it names, and its address if that is defined here.
struct Symbol {
    name: u32,
    kind: u8,
    address: Option<u64>,
}

impl Symbol {
    fn of(bytes: &[u8]) -> Option<Self> {
        let is_defined = u16_at(bytes, 6)? != 0;
        let address = u64_at(bytes, 8)?;
        let kind = *bytes.get(4)? & 0xf;
        Some(Self { name: u32_at(bytes, 0)?, kind, address: (is_defined && address != 0).then_some(address) })
    }
}

impl<'a, F: ReadAt> Functions<'a, F> {
    /// `None` if the file is no little-endian ELF64 file.
    pub(crate) fn of(file: &'a F) -> Option<Self> {
        let header = read(file, 0, 64)?;
        (header.get(..6)? == b"\x7fELF\x02\x01").then_some(())?;
        let (table_offset, entry_size, count) = (u64_at(&header, 32)?, u16_at(&header, 54)?, u16_at(&header, 56)?);
        (usize::from(entry_size) == SEGMENT_SIZE && count <= MAX_SEGMENTS).then_some(())?;
        let table = read(file, table_offset, usize::from(count) * SEGMENT_SIZE)?;
        let segments = table.chunks_exact(SEGMENT_SIZE).filter_map(|entry| {
            Some(Segment {
                kind: u32_at(entry, 0)?,
                flags: u32_at(entry, 4)?,
                offset: u64_at(entry, 8)?,
                address: u64_at(entry, 16)?,
                size: u64_at(entry, 32)?,
            })
        });
        Some(Self { file, segments: segments.collect(), header })
    }

    /// What the linker has named this very build, if it has.
    pub(crate) fn build_id(&self) -> Option<Vec<u8>> {
        self.segments.iter().filter(|it| it.kind == PT_NOTE).find_map(|segment| {
            let notes = read(self.file, segment.offset, usize::try_from(segment.size.min(MAX_NOTES)).ok()?)?;
            let mut rest = notes.as_slice();
            loop {
                let (name_len, len) = (u32_at(rest, 0)? as usize, u32_at(rest, 4)? as usize);
                let name_end = 12_usize.checked_add(name_len.checked_next_multiple_of(4)?)?;
                let end = name_end.checked_add(len.checked_next_multiple_of(4)?)?;
                let note = (u32_at(rest, 8)?, rest.get(12..16)?);
                if [(NT_GNU_BUILD_ID, &b"GNU\0"[..]), (NT_GO_BUILD_ID, b"Go\0\0")].contains(&note) {
                    return Some(rest.get(name_end..name_end.checked_add(len)?)?.to_vec());
                }
                rest = rest.get(end..)?;
            }
        })
    }

    /// Where in the file the exported functions with these names begin.
    pub(crate) fn exported<const N: usize>(&self, names: [&str; N]) -> [Option<u64>; N] {
        match self.dynamic() {
            Some(dynamic) => names.map(|name| self.file_offset(dynamic.find(self, name, STT_FUNC)?)),
            None => [None; N],
        }
    }

    /// The addresses at which the exported data with these names is to lie.
    pub(crate) fn exported_data<const N: usize>(&self, names: [&str; N]) -> [Option<u64>; N] {
        match self.dynamic() {
            Some(dynamic) => names.map(|name| dynamic.find(self, name, STT_OBJECT)),
            None => [None; N],
        }
    }

    /// The first bytes of the data at `address`, as they are in the file.
    pub(crate) fn data(&self, address: u64) -> Option<[u8; 8]> {
        read(self.file, self.place(address)?, 8)?.try_into().ok()
    }

    /// Where in the file the code begins, and at which address it is to lie.
    pub(crate) fn code_start(&self) -> Option<(u64, u64)> {
        let code = self.segments.iter().find(|it| it.is_code())?;
        Some((code.offset, code.address))
    }

    /// The same of functions that are named for debuggers only.
    pub(crate) fn local<const N: usize>(&self, names: [&str; N]) -> [Option<u64>; N] {
        self.find_local(names).unwrap_or([None; N])
    }

    /// Where in the file the instruction at `address` lies.
    pub(super) fn file_offset(&self, address: u64) -> Option<u64> {
        self.segments.iter().filter(|it| it.is_code()).find_map(|segment| segment.place(address))
    }

    /// Where in the file the byte at `address` lies.
    fn place(&self, address: u64) -> Option<u64> {
        self.segments.iter().filter(|it| it.kind == PT_LOAD).find_map(|segment| segment.place(address))
    }

    fn dynamic(&self) -> Option<Dynamic> {
        let segment = self.segments.iter().find(|it| it.kind == PT_DYNAMIC)?;
        let section = read(self.file, segment.offset, usize::try_from(segment.size.min(MAX_DYNAMIC)).ok()?)?;
        let entry = |tag| {
            let mut entries = section.chunks_exact(16);
            entries.find(|entry| u64_at(entry, 0) == Some(tag)).and_then(|entry| self.place(u64_at(entry, 8)?))
        };
        Some(Dynamic {
            symbols: entry(DT_SYMTAB)?,
            names: entry(DT_STRTAB)?,
            gnu_hash: entry(DT_GNU_HASH),
            hash: entry(DT_HASH),
        })
    }

    fn find_local<const N: usize>(&self, names: [&str; N]) -> Option<[Option<u64>; N]> {
        let (offset, entry_size, count) =
            (u64_at(&self.header, 40)?, u16_at(&self.header, 58)?, u16_at(&self.header, 60)?);
        (usize::from(entry_size) == SECTION_SIZE && count <= MAX_SECTIONS).then_some(())?;
        let table = read(self.file, offset, usize::from(count) * SECTION_SIZE)?;
        let mut sections = table.chunks_exact(SECTION_SIZE);
        let symbols = sections.clone().find(|section| u32_at(section, 4) == Some(SHT_SYMTAB))?;
        let strings = sections.nth(u32_at(symbols, 40)? as usize)?;
        let places = self.places_of_names(u64_at(strings, 24)?, u64_at(strings, 32)?.min(MAX_TABLE), names)?;
        if places.iter().all(Vec::is_empty) {
            return None;
        }
        let mut found = [None; N];
        let size = u64_at(symbols, 32)?.min(MAX_TABLE);
        let mut take = |_, piece: &[u8]| {
            let symbols = piece.chunks_exact(SYMBOL_SIZE).filter_map(Symbol::of);
            for symbol in symbols.filter(|symbol| symbol.kind == STT_FUNC) {
                let Some(address) = symbol.address else { continue };
                for (found, places) in found.iter_mut().zip(&places) {
                    if places.contains(&symbol.name) {
                        *found = found.or_else(|| self.file_offset(address));
                    }
                }
            }
        };
        let piece = PIECE / SYMBOL_SIZE * SYMBOL_SIZE;
        pieces(self.file, u64_at(symbols, 24)?, size, SYMBOL_SIZE, piece, &mut take)?;
        Some(found)
    }

    /// Where in a table of strings each of these names stands, alone or as the end of another.
    fn places_of_names<const N: usize>(&self, offset: u64, size: u64, names: [&str; N]) -> Option<[Vec<u32>; N]> {
        let mut places = [const { Vec::new() }; N];
        let longest = names.iter().map(|name| name.len() + 1).max()?;
        // Mostly one: all functions of a library begin alike.
        let mut first: Vec<u8> = names.iter().filter_map(|name| name.bytes().next()).collect();
        first.dedup();
        let mut take = |at, piece: &[u8]| {
            for (start, _) in piece.iter().enumerate().filter(|(_, byte)| first.contains(byte)) {
                let Some(string) = piece.get(start..) else { continue };
                for (name, places) in names.iter().zip(&mut places) {
                    let is_it = string.starts_with(name.as_bytes()) && string.get(name.len()) == Some(&0);
                    if let (true, Ok(place)) = (is_it, u32::try_from(at + start as u64)) {
                        places.push(place);
                    }
                }
            }
        };
        pieces(self.file, offset, size, longest, PIECE, &mut take)?;
        for places in &mut places {
            places.dedup();
        }
        Some(places)
    }
}

impl Segment {
    const fn is_code(&self) -> bool {
        self.kind == PT_LOAD && self.flags & PF_X != 0
    }

    fn place(&self, address: u64) -> Option<u64> {
        let within = address.checked_sub(self.address)?;
        (within < self.size).then_some(())?;
        self.offset.checked_add(within)
    }
}

/// Where the tables of exported names lie in the file.
struct Dynamic {
    symbols: u64,
    names: u64,
    gnu_hash: Option<u64>,
    hash: Option<u64>,
}

impl Dynamic {
    /// The address of what is exported with this name, if it is of this kind.
    fn find<F: ReadAt>(&self, functions: &Functions<'_, F>, name: &str, kind: u8) -> Option<u64> {
        match (self.gnu_hash, self.hash) {
            (Some(table), _) => self.by_gnu_hash(functions.file, table, name, kind),
            (None, Some(table)) => self.by_hash(functions.file, table, name, kind),
            (None, None) => None,
        }
    }

    fn by_gnu_hash(&self, file: &impl ReadAt, table: u64, name: &str, kind: u8) -> Option<u64> {
        let hash = name.bytes().fold(5381_u32, |hash, byte| hash.wrapping_mul(33).wrapping_add(byte.into()));
        let header = read(file, table, 16)?;
        let (buckets, first, words) = (u32_at(&header, 0)?, u32_at(&header, 4)?, u32_at(&header, 8)?);
        let bucket_at = table.checked_add(16 + u64::from(words) * 8)?;
        let bucket = bucket_at.checked_add(u64::from(hash.checked_rem(buckets)?) * 4)?;
        let chains = bucket_at.checked_add(u64::from(buckets) * 4)?;
        let start = u32_at(&read(file, bucket, 4)?, 0)?;
        for index in start..start.saturating_add(MAX_CHAIN) {
            let entry = read(file, chains.checked_add(u64::from(index.checked_sub(first)?) * 4)?, 4)?;
            let entry = u32_at(&entry, 0)?;
            if entry | 1 == hash | 1
                && let Some(address) = self.is(file, index, name, kind)
            {
                return Some(address);
            }
            if entry & 1 != 0 {
                break;
            }
        }
        None
    }

    fn by_hash(&self, file: &impl ReadAt, table: u64, name: &str, kind: u8) -> Option<u64> {
        let hash = name.bytes().fold(0_u32, |hash, byte| {
            let hash = (hash << 4).wrapping_add(byte.into());
            let high = hash & 0xf000_0000;
            (hash ^ (high >> 24)) & !high
        });
        let header = read(file, table, 8)?;
        let buckets = u32_at(&header, 0)?;
        let word = |index: u64| u32_at(&read(file, table.checked_add(8 + index * 4)?, 4)?, 0);
        let mut index = word(hash.checked_rem(buckets)?.into())?;
        for _ in 0..MAX_CHAIN {
            if index == 0 {
                return None;
            }
            if let Some(address) = self.is(file, index, name, kind) {
                return Some(address);
            }
            index = word(u64::from(buckets) + u64::from(index))?;
        }
        None
    }

    /// The address of the symbol, if it has this name and is of this kind.
    fn is(&self, file: &impl ReadAt, index: u32, name: &str, kind: u8) -> Option<u64> {
        let place = self.symbols.checked_add(u64::from(index) * SYMBOL_SIZE as u64)?;
        let symbol = Symbol::of(&read(file, place, SYMBOL_SIZE)?)?;
        let found = read(file, self.names.checked_add(symbol.name.into())?, name.len() + 1)?;
        let is_it = found.strip_suffix(&[0]) == Some(name.as_bytes());
        symbol.address.filter(|_| is_it && symbol.kind == kind)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs::File;

    use proptest::prelude::*;

    use super::*;

    const NAMES: [&str; 3] = ["SSL_read", "SSL_write", "gnutls_nothing"];

    /// A file that exports `SSL_read` and `SSL_write`.
    pub(crate) fn library() -> Vec<u8> {
        file(Hash::Gnu)
    }

    /// Which table of exported names a made-up file has.
    #[derive(Clone, Copy)]
    enum Hash {
        Gnu,
        SysV,
    }

    /// A file whose exported functions `SSL_read` and `SSL_write` lie at 0x40 and 0x80 of a segment that is loaded at
    /// 0x1000 and begins at byte 0x400; its local ones are the same with 8 more.
    fn file(hash: Hash) -> Vec<u8> {
        let strings = b"\0not_SSL_read\0SSL_write\0other\0";
        let (read, write) = (5_u32, 14_u32);
        let symbol = |name: u32, kind: u8, address: u64| {
            let mut bytes = name.to_le_bytes().to_vec();
            bytes.extend([kind, 0, 1, 0]);
            bytes.extend(address.to_le_bytes());
            bytes.extend(8_u64.to_le_bytes());
            bytes
        };
        let symbols = |plus: u64| {
            [symbol(0, 0, 0), symbol(24, 1, 0x1000), symbol(write, 2, 0x1080 + plus), symbol(read, 2, 0x1040 + plus)]
                .concat()
        };
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
        let hashes = ["other", "SSL_write", "SSL_read"]
            .map(|name| name.bytes().fold(5381_u32, |hash, byte| hash.wrapping_mul(33).wrapping_add(byte.into())));
        let (tag, table) = match hash {
            // One bucket: symbols 1 to 3, of which the last ends the chain.
            Hash::Gnu => (DT_GNU_HASH, words(&[1, 1, 1, 0, 0, 0, 1, hashes[0] & !1, hashes[1] & !1, hashes[2] | 1])),
            Hash::SysV => (DT_HASH, words(&[1, 4, 3, 0, 0, 1, 2])),
        };
        let dynamic = |entries: &[(u64, u64)]| {
            entries
                .iter()
                .flat_map(|(tag, value)| [tag.to_le_bytes(), value.to_le_bytes()].concat())
                .collect::<Vec<_>>()
        };
        // Data is loaded where it lies.
        let mut file = vec![0; 64 + 4 * SEGMENT_SIZE];
        let mut place = |content: &[u8]| {
            let offset = file.len() as u64;
            file.extend_from_slice(content);
            offset
        };
        let strings_at = place(strings);
        let symbols_at = place(&symbols(0));
        let local_at = place(&symbols(8));
        let table_at = place(&table);
        let entries = dynamic(&[(DT_SYMTAB, symbols_at), (DT_STRTAB, strings_at), (tag, table_at), (0, 0)]);
        let dynamic_at = place(&entries);
        let note = [&words(&[4, 5, 3])[..], b"GNU\0", b"build\0\0\0"].concat();
        let note_at = place(&note);
        let section = |kind: u32, link: u32, offset: u64, size: usize| {
            let mut bytes = vec![0; SECTION_SIZE];
            bytes[4..8].copy_from_slice(&kind.to_le_bytes());
            bytes[24..32].copy_from_slice(&offset.to_le_bytes());
            bytes[32..40].copy_from_slice(&(size as u64).to_le_bytes());
            bytes[40..44].copy_from_slice(&link.to_le_bytes());
            bytes
        };
        let sections = [
            section(0, 0, 0, 0),
            section(SHT_SYMTAB, 2, local_at, 4 * SYMBOL_SIZE),
            section(3, 0, strings_at, strings.len()),
        ]
        .concat();
        let sections_at = place(&sections);
        let end = file.len();
        let segments = [
            (PT_LOAD, 4, 0, 0, end as u64),
            (PT_LOAD, 5, 0x400, 0x1000, 0x100),
            (PT_DYNAMIC, 4, dynamic_at, dynamic_at, entries.len() as u64),
            (PT_NOTE, 4, note_at, note_at, note.len() as u64),
        ];
        for (index, (kind, flags, offset, address, size)) in segments.into_iter().enumerate() {
            let entry = &mut file[64 + index * SEGMENT_SIZE..][..SEGMENT_SIZE];
            entry[..4].copy_from_slice(&u32::to_le_bytes(kind));
            entry[4..8].copy_from_slice(&u32::to_le_bytes(flags));
            for (at, value) in [(8, offset), (16, address), (32, size)] {
                entry[at..at + 8].copy_from_slice(&u64::to_le_bytes(value));
            }
        }
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[32..40].copy_from_slice(&64_u64.to_le_bytes());
        file[40..48].copy_from_slice(&sections_at.to_le_bytes());
        for (at, value) in [(54, SEGMENT_SIZE as u16), (56, 4), (58, SECTION_SIZE as u16), (60, 3)] {
            file[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        file
    }

    /// Exported functions, others, and the build id.
    type Everything = ([Option<u64>; 3], [Option<u64>; 3], Option<Vec<u8>>);

    fn everything(file: &Vec<u8>) -> Option<Everything> {
        let functions = Functions::of(file)?;
        Some((functions.exported(NAMES), functions.local(NAMES), functions.build_id()))
    }

    #[rstest::rstest]
    #[case::gnu(Hash::Gnu)]
    #[case::sysv(Hash::SysV)]
    fn functions_are_found(#[case] hash: Hash) {
        let (exported, local, build_id) = everything(&file(hash)).unwrap();
        assert_eq!(exported, [Some(0x440), Some(0x480), None]);
        assert_eq!(local, [Some(0x448), Some(0x488), None]);
        assert_eq!(build_id.as_deref(), Some(&b"build"[..]));
    }

    /// What is cut is not found, and whatever is found is right.
    #[rstest::rstest]
    #[case::gnu(Hash::Gnu)]
    #[case::sysv(Hash::SysV)]
    fn takes_every_prefix(#[case] hash: Hash) {
        let file = file(hash);
        for length in 0..file.len() {
            let Some((exported, local, _)) = everything(&file[..length].to_vec()) else { continue };
            assert!(
                [None, Some(0x440)].contains(&exported[0]) && [None, Some(0x480)].contains(&exported[1]),
                "{length}"
            );
            assert_eq!(local, [None; 3], "{length}");
        }
    }

    /// A name that lies in two pieces of the table.
    #[test]
    fn names_are_found_across_pieces() {
        let table_at = 64;
        let mut bytes = vec![0; 64];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[54..56].copy_from_slice(&(SEGMENT_SIZE as u16).to_le_bytes());
        bytes.resize(table_at + PIECE - 3, b'x');
        bytes.extend_from_slice(b"SSL_read\0");
        let functions = Functions::of(&bytes).unwrap();
        let size = (bytes.len() - table_at) as u64;
        let places = functions.places_of_names(table_at as u64, size, NAMES).unwrap();
        assert_eq!(places, [vec![PIECE as u32 - 3], vec![], vec![]]);
    }

    /// Another reader finds the same.
    #[test]
    fn the_functions_of_a_real_library_are_found() {
        let path = "/lib/x86_64-linux-gnu/libssl.so.3";
        let Ok(library) = File::open(path) else {
            println!("SKIPPED: no {path}; not covered: symbols of a real library");
            return;
        };
        let functions = Functions::of(&library).unwrap();
        let [read, write, nothing] = functions.exported(NAMES);
        assert!(read.is_some() && write.is_some() && nothing.is_none() && read != write);
        let Ok(output) = std::process::Command::new("nm").args(["-D", path]).output() else {
            println!("SKIPPED: no nm; not covered: that symbols are those which it shows");
            return;
        };
        let text = String::from_utf8(output.stdout).unwrap();
        // Its code lies in the file where it is loaded.
        for (name, offset) in NAMES.into_iter().zip([read, write]) {
            let line = text.lines().find(|line| line.contains(&format!(" T {name}@"))).unwrap();
            assert_eq!(u64::from_str_radix(line.split(' ').next().unwrap(), 16).ok(), offset, "{name}");
        }
    }

    proptest! {
        #[test]
        fn takes_any_damage(position in 0_usize..900, value: u8, is_gnu: bool) {
            let mut file = file(if is_gnu { Hash::Gnu } else { Hash::SysV });
            let length = file.len();
            file[position % length] = value;
            let _ = everything(&file);
        }
    }
}
