//! Where probes go in CPython, and where a process of it keeps what its threads do.
//!
//! Everything that makes a context ends in one of three exported functions. They are probed on each instruction with which they
//! return.

use std::fs::File;

use coati_common::python::Interpreter;

use super::maps::Mapped;
use crate::{
    discover::elf::Functions,
    ebpf::{ProbePoint, PythonCall},
};

/// Functions that return a new context. Without the first, which event loops call, nothing is known.
const MAKERS: [(&str, PythonCall); 3] = [
    ("PyContext_CopyCurrent", PythonCall::ContextCopied),
    ("PyContext_Copy", PythonCall::ContextCopied),
    ("PyContext_New", PythonCall::ContextMade),
];
/// Data that is needed of the interpreter.
const DATA: [&str; 3] = ["_PyRuntime", "PyContext_Type", "Py_Version"];

/// Fields of the interpreter, in bytes from where their structs begin. They have not moved within a version.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Fields {
    /// `_PyRuntimeState.interpreters.main`
    main: u32,
    /// `PyInterpreterState.threads.head`
    threads: u32,
    /// `PyThreadState.next`
    next: u32,
    /// `PyThreadState.thread_id`
    thread: u32,
    /// `PyThreadState.context`
    context: u32,
}

/// The fields in CPython 3.`minor`; `None` if they are not known. Read from the headers of each of these versions (of 3.13 of
/// three releases), and seen to be right in a process of each (see the tests).
const fn fields(minor: u32) -> Option<Fields> {
    let (main, threads, thread, context) = match minor {
        7 => (32, 8, 176, 256),
        8..=10 => (40, 8, 176, 240),
        11 => (48, 16, 152, 224),
        12 => (48, 72, 136, 208),
        13 => (640, 7344, 152, 208),
        14 => (816, 7344, 152, 208),
        _ => return None,
    };
    Some(Fields { main, threads, next: 8, thread, context })
}

/// CPython in a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Python {
    fields: Fields,
    /// Addresses as the file was linked.
    runtime: u64,
    context_type: u64,
    /// Where in the file its code begins, and at which address.
    code: (u64, u64),
}

/// Where the probes for contexts go in CPython; `None` if the file is not one of a known version. `path` has the version where the
/// file does not have it in it.
pub(super) fn probes(functions: &Functions<'_, File>, path: &str) -> Option<(Vec<ProbePoint>, Python)> {
    let [runtime, context_type, version] = functions.exported_data(DATA);
    let minor = match version {
        Some(address) => minor_of_version(u64::from_le_bytes(functions.data(address)?))?,
        None => minor_of_path(path)?,
    };
    let python = Python {
        fields: fields(minor)?,
        runtime: runtime?,
        context_type: context_type?,
        code: functions.code_start()?,
    };
    let mut points: Vec<ProbePoint> = Vec::new();
    let places = functions.exported(MAKERS.map(|(name, _)| name));
    for ((_, call), place) in MAKERS.into_iter().zip(places) {
        let returns = place.and_then(|place| functions.returns(place));
        // What event loops call comes first.
        if returns.is_none() && points.is_empty() {
            return None;
        }
        for offset in returns.into_iter().flatten() {
            // What makes copies may be shared.
            if !points.iter().any(|point| point.offset == offset) {
                points.push(ProbePoint { call: call.into(), offset });
            }
        }
    }
    Some((points, python))
}

impl Python {
    /// Where a process has it that runs its code from there.
    pub(super) fn interpreter(&self, mapped: &Mapped) -> Option<Interpreter> {
        let (offset, address) = self.code;
        // By how much it was moved.
        let moved = mapped.start.wrapping_sub(mapped.offset).wrapping_sub(address.wrapping_sub(offset));
        let Fields { main, threads, next, thread, context } = self.fields;
        Some(Interpreter {
            main: self.runtime.wrapping_add(moved).checked_add(main.into())?,
            context_type: self.context_type.wrapping_add(moved),
            threads,
            next,
            thread,
            context,
        })
    }
}

/// The second number of a version as `Py_Version` has it: 11 of 0x030b02f0.
fn minor_of_version(version: u64) -> Option<u32> {
    (version >> 24 == 3).then_some((version >> 16) as u32 & 0xff)
}

/// The same of the name of an executable or a library, such as `python3.9` and `libpython3.7m.so.1.0`.
fn minor_of_path(path: &str) -> Option<u32> {
    let name = path.rsplit('/').next()?;
    let rest = name.strip_prefix("lib").unwrap_or(name).strip_prefix("python3.")?;
    rest.get(..rest.find(|it: char| !it.is_ascii_digit()).unwrap_or(rest.len()))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::libraries::maps;

    #[rstest]
    #[case::executable("/usr/bin/python3.11", Some(11))]
    #[case::library("/usr/local/lib/libpython3.9.so.1.0", Some(9))]
    #[case::old_library("/usr/lib/libpython3.7m.so.1.0", Some(7))]
    #[case::no_version("/opt/bin/python3", None)]
    #[case::other("/usr/bin/uwsgi", None)]
    fn the_name_has_the_version(#[case] path: &str, #[case] expected: Option<u32>) {
        assert_eq!(minor_of_path(path), expected);
    }

    #[rstest]
    #[case::debian(0x030b_02f0, Some(11))]
    #[case::new(0x030e_0af0, Some(14))]
    #[case::another(0x0400_00f0, None)]
    #[case::nonsense(u64::MAX, None)]
    fn the_file_has_the_version(#[case] version: u64, #[case] expected: Option<u32>) {
        assert_eq!(minor_of_version(version), expected);
    }

    /// A library is loaded somewhere; its code does not begin where the file does.
    #[test]
    fn addresses_are_those_of_the_process() {
        let line = "7f5512022000-7f5512200000 r-xp 00022000 fd:01 9 /usr/lib/libpython3.12.so.1.0\n";
        let mapped = maps::files(line.as_bytes()).remove(0);
        let code = (0x22040, 0x23040);
        let python = Python { fields: fields(12).unwrap(), runtime: 0x64_3340, context_type: 0x56_7b60, code };
        let interpreter = python.interpreter(&mapped).unwrap();
        let base = 0x7f55_1202_2000 - 0x23000;
        assert_eq!((interpreter.main, interpreter.context_type), (base + 0x64_3340 + 48, base + 0x56_7b60));
    }

    /// Each Python that is here says where these fields are in its own memory: Debian's, and those of pyenv.
    #[test]
    fn fields_are_where_real_interpreters_have_them() {
        let home = std::env::var("HOME").unwrap_or_default();
        let others = std::fs::read_dir(format!("{home}/.pyenv/versions")).into_iter().flatten().flatten();
        let others = others.map(|version| version.path().join("bin/python"));
        let mut checked = 0;
        for python in std::iter::once("/usr/bin/python3".into()).chain(others).filter(|path| path.exists()) {
            let output = |arguments: &[&str]| {
                let output = std::process::Command::new(&python).args(arguments).output().unwrap();
                (
                    String::from_utf8_lossy(&output.stdout).trim().to_owned(),
                    String::from_utf8_lossy(&output.stderr).into_owned(),
                )
            };
            let (minor, _) =
                output(&["-c", "import sys; print(sys.version_info[1] if sys.version_info[0] == 3 else 0)"]);
            let Some(fields) = fields(minor.parse().unwrap()) else { continue };
            let Fields { main, threads, next, thread, context } = fields;
            let fields = [main, threads, next, thread, context].map(|field| field.to_string());
            let [main, threads, next, thread, context] = fields.each_ref().map(String::as_str);
            let (told, error) = output(&["-c", include_str!("fields.py"), main, threads, next, thread, context]);
            assert_eq!(told, "right", "{}: {error}", python.display());
            checked += 1;
        }
        if checked == 0 {
            println!("SKIPPED: no Python; not covered: where real interpreters have their fields");
        }
    }

    #[rstest]
    #[case::too_old(6, None)]
    #[case::oldest(7, Some([32, 8, 8, 176, 256]))]
    #[case::old(8, Some([40, 8, 8, 176, 240]))]
    #[case::the_same(10, Some([40, 8, 8, 176, 240]))]
    #[case::of_debian_12(11, Some([48, 16, 8, 152, 224]))]
    #[case::of_ubuntu_24_04(12, Some([48, 72, 8, 136, 208]))]
    #[case::of_debian_13(13, Some([640, 7344, 8, 152, 208]))]
    #[case::newest(14, Some([816, 7344, 8, 152, 208]))]
    #[case::unknown(15, None)]
    fn each_version_has_its_fields(#[case] minor: u32, #[case] expected: Option<[u32; 5]>) {
        let found = fields(minor).map(|it| [it.main, it.threads, it.next, it.thread, it.context]);
        assert_eq!(found, expected);
    }

    /// Debian's, in an executable that exports all of it and has no other names.
    #[test]
    fn a_real_python_is_understood() {
        let Ok(path) = std::fs::canonicalize("/usr/bin/python3") else {
            println!("SKIPPED: no /usr/bin/python3; not covered: probes in a real Python");
            return;
        };
        let file = File::open(&path).unwrap();
        let functions = Functions::of(&file).unwrap();
        let (points, python) = probes(&functions, &path.to_string_lossy()).unwrap();
        let count = |call: PythonCall| points.iter().filter(|point| point.call == call.into()).count();
        assert!((1..=8).contains(&count(PythonCall::ContextCopied)), "{points:?}");
        assert!(count(PythonCall::ContextMade) >= 1, "{points:?}");
        assert!(python.runtime != 0 && python.context_type != 0);
    }
}
