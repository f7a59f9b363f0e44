//! In what a process is written.

use super::elf::Toolchain;

/// `telemetry.sdk.language` of a process.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Language {
    /// C++.
    Cpp,
    /// .NET.
    Dotnet,
    /// None of the others, or not known.
    Generic,
    /// Go.
    Go,
    /// Java or another language of its virtual machine.
    Java,
    /// JavaScript on a server: Node.js, Deno, Bun.
    Nodejs,
    /// PHP.
    Php,
    /// Python.
    Python,
    /// Ruby.
    Ruby,
    /// Rust.
    Rust,
}

impl Language {
    /// The value of `telemetry.sdk.language`.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Cpp => "cpp",
            Self::Dotnet => "dotnet",
            Self::Generic => "generic",
            Self::Go => "go",
            Self::Java => "java",
            Self::Nodejs => "nodejs",
            Self::Php => "php",
            Self::Python => "python",
            Self::Ruby => "ruby",
            Self::Rust => "rust",
        }
    }

    /// The language of an interpreter, by the name of its executable, versions included (`python3.11`, `php-fpm8.2`).
    pub(super) fn of_interpreter(executable_name: &str) -> Option<Self> {
        let stem = executable_name.trim_end_matches(|letter: char| letter.is_ascii_digit() || letter == '.');
        Some(match stem {
            "python" | "pypy" => Self::Python,
            "node" | "nodejs" | "deno" | "bun" => Self::Nodejs,
            "java" => Self::Java,
            "ruby" => Self::Ruby,
            "php" | "php-fpm" | "php-cgi" | "frankenphp" => Self::Php,
            "dotnet" => Self::Dotnet,
            _ => return None,
        })
    }

    /// The language that a mapped library gives away, for programs that embed an interpreter.
    fn of_library(name: &str) -> Option<Self> {
        const RUNTIMES: [(&str, Language); 8] = [
            ("libjvm.so", Language::Java),
            ("libpython", Language::Python),
            ("libruby", Language::Ruby),
            ("libcoreclr.so", Language::Dotnet),
            ("System.Private.CoreLib.dll", Language::Dotnet),
            ("libnode.so", Language::Nodejs),
            ("libphp", Language::Php),
            ("mod_php", Language::Php),
        ];
        RUNTIMES.iter().find(|(prefix, _)| name.starts_with(prefix)).map(|(_, language)| *language)
    }
}

/// Decides by what is cheap to know: the executable's name, the text of `/proc/PID/maps`, and only then the file itself.
pub(super) fn detect(executable_name: &str, maps: &str, toolchain: impl FnOnce() -> Option<Toolchain>) -> Language {
    if let Some(language) = Language::of_interpreter(executable_name) {
        return language;
    }
    if let Some(language) = mapped_files(maps).find_map(Language::of_library) {
        return language;
    }
    match toolchain() {
        Some(Toolchain::Go) => Language::Go,
        Some(Toolchain::Rust) => Language::Rust,
        None if mapped_files(maps).any(|name| name.starts_with("libstdc++.so") || name.starts_with("libc++.so")) => {
            Language::Cpp
        }
        None => Language::Generic,
    }
}

/// Names of the mapped files; a file that is mapped in several pieces comes several times.
fn mapped_files(maps: &str) -> impl Iterator<Item = &str> {
    // `start-end perms offset device inode path`: only the path can hold a slash.
    maps.lines().filter_map(|line| line.rsplit_once('/')).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const CPP: &str = "7f0000000000-7f0000001000 r-xp 00000000 08:01 42    /usr/lib/libstdc++.so.6.0.30\n";
    const EMBEDDED_PYTHON: &str = "7f0000000000-7f0000001000 r-xp 00000000 08:01 42    /usr/lib/libpython3.11.so.1.0\n";
    const JVM: &str = "7f0000000000-7f0000001000 r-xp 00000000 08:01 42    /opt/jdk/lib/server/libjvm.so\n";
    const DOTNET: &str = "7f0000000000-7f0000001000 r-xp 00000000 08:01 42    /app/libcoreclr.so\n";
    const NO_FILES: &str = "7f0000000000-7f0000001000 rw-p 00000000 00:00 0    [heap]\n\n7f00 rw-p\n";

    #[rstest]
    #[case::python("python3.11", "", None, Language::Python)]
    #[case::python_without_version("python", "", None, Language::Python)]
    #[case::pypy("pypy3", "", None, Language::Python)]
    #[case::node("node", CPP, None, Language::Nodejs)]
    #[case::java("java", JVM, None, Language::Java)]
    #[case::ruby("ruby3.1", "", None, Language::Ruby)]
    #[case::php("php-fpm8.2", "", None, Language::Php)]
    #[case::dotnet("dotnet", "", None, Language::Dotnet)]
    #[case::dotnet_single_file("Orders", DOTNET, None, Language::Dotnet)]
    #[case::embedded_python("uwsgi", EMBEDDED_PYTHON, None, Language::Python)]
    #[case::embedded_jvm("launcher", JVM, None, Language::Java)]
    #[case::go("ntfy", NO_FILES, Some(Toolchain::Go), Language::Go)]
    #[case::rust("coati-agent", "", Some(Toolchain::Rust), Language::Rust)]
    #[case::rust_that_links_cpp("server", CPP, Some(Toolchain::Rust), Language::Rust)]
    #[case::cpp("llama-server", CPP, None, Language::Cpp)]
    #[case::c("nginx", NO_FILES, None, Language::Generic)]
    #[case::nothing_known("", "", None, Language::Generic)]
    fn detects(
        #[case] name: &str,
        #[case] maps: &str,
        #[case] toolchain: Option<Toolchain>,
        #[case] expected: Language,
    ) {
        assert_eq!(detect(name, maps, || toolchain), expected);
    }

    #[test]
    fn an_interpreter_is_known_without_reading_its_file() {
        assert_eq!(detect("python3", "", || panic!("read")), Language::Python);
    }
}
