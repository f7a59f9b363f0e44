//! `/proc/PID/maps`: the files from which a process runs code.

use std::collections::HashSet;

/// Names a file while something uses it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct FileId {
    /// Major and minor number of the device.
    device: (u32, u32),
    inode: u64,
}

/// A file from which a process runs code.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Mapped {
    pub(super) id: FileId,
    /// Name of the mapping in `/proc/PID/map_files`.
    pub(super) range: String,
    /// Where the mapping begins, in the process and in the file.
    pub(super) start: u64,
    pub(super) offset: u64,
    /// Path in the process's mount namespace, without the mark of a file that was replaced.
    pub(super) path: String,
}

/// The files, each once, in the order of their addresses. Lines that are not understood are left out.
pub(super) fn files(maps: &[u8]) -> Vec<Mapped> {
    let mut seen = HashSet::new();
    let lines = maps.split(|byte| *byte == b'\n').filter_map(|line| file(std::str::from_utf8(line).ok()?));
    lines.filter(|mapped| seen.insert(mapped.id)).collect()
}

/// `start-end permissions offset major:minor inode      path`, as in `proc_pid_maps(5)`.
fn file(line: &str) -> Option<Mapped> {
    let mut words = line.splitn(6, ' ');
    let (range, permissions, offset, device, inode, path) =
        (words.next()?, words.next()?, words.next()?, words.next()?, words.next()?, words.next()?);
    let path = path.trim_start();
    let is_code = permissions.get(2..3) == Some("x");
    let (major, minor) = device.split_once(':')?;
    let number = |text| u32::from_str_radix(text, 16).ok();
    let is_range = range.split_once('-').is_some_and(|(start, end)| {
        let is_hex = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_hex(start) && is_hex(end)
    });
    (is_code && is_range && path.starts_with('/')).then_some(())?;
    let address = |text| u64::from_str_radix(text, 16).ok();
    Some(Mapped {
        start: address(range.split_once('-')?.0)?,
        offset: address(offset)?,
        id: FileId { device: (number(major)?, number(minor)?), inode: inode.parse().ok().filter(|inode| *inode > 0)? },
        // Written without leading zeros there (`proc_map_files_readdir`, fs/proc/base.c).
        range: range.split('-').map(without_zeros).collect::<Vec<_>>().join("-"),
        path: path.strip_suffix(" (deleted)").unwrap_or(path).to_owned(),
    })
}

fn without_zeros(number: &str) -> &str {
    let trimmed = number.trim_start_matches('0');
    if trimmed.is_empty() { "0" } else { trimmed }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAPS: &str = "\
55d4a1c00000-55d4a1c2f000 r--p 00000000 fd:01 1234    /usr/sbin/nginx
55d4a1c2f000-55d4a1d00000 r-xp 0002f000 fd:01 1234    /usr/sbin/nginx
55d4a2000000-55d4a2100000 rw-p 00000000 00:00 0       [heap]
00400000-00500000 r-xp 00000000 fd:01 99 /opt/a b/x.so (deleted)
7f0000000000-7f0000100000 r-xp 00026000 0:2a 5678     /usr/lib/libssl.so.3
7f0000200000-7f0000300000 r-xp 00126000 0:2a 5678     /usr/lib/libssl.so.3
7f0000400000-7f0000500000 rwxp 00000000 00:00 0
7ffd00000000-7ffd00002000 r-xp 00000000 00:00 0       [vdso]
";

    #[test]
    fn files_with_code_are_found_once() {
        let found: Vec<_> = files(MAPS.as_bytes())
            .into_iter()
            .map(|it| (it.range, it.path, it.id.inode, it.start, it.offset))
            .collect();
        let expected = [
            ("55d4a1c2f000-55d4a1d00000", "/usr/sbin/nginx", 1234, 0x55d4_a1c2_f000, 0x2f000),
            ("400000-500000", "/opt/a b/x.so", 99, 0x40_0000, 0),
            ("7f0000000000-7f0000100000", "/usr/lib/libssl.so.3", 5678, 0x7f00_0000_0000, 0x26000),
        ];
        let expected =
            expected.map(|(range, path, inode, start, at)| (range.to_owned(), path.to_owned(), inode, start, at));
        assert_eq!(found, expected);
    }

    #[test]
    fn takes_every_prefix() {
        for length in 0..MAPS.len() {
            assert!(files(&MAPS.as_bytes()[..length]).len() <= 3);
        }
    }

    #[test]
    fn the_mappings_of_this_process_can_be_opened() {
        let maps = std::fs::read("/proc/self/maps").unwrap();
        let own = std::env::current_exe().unwrap();
        let mapped = files(&maps).into_iter().find(|it| own.to_str() == Some(&it.path)).unwrap();
        if let Err(error) = std::fs::File::open(format!("/proc/self/map_files/{}", mapped.range)) {
            assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
        }
    }

    proptest! {
        #[test]
        fn takes_any_line(line: String) {
            let _ = files(line.as_bytes());
        }
    }
}
