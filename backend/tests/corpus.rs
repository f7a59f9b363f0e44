//! Everything that a fuzz target ever tripped over, and its seeds: each parser takes its corpus without a panic.

use std::fs;
use std::path::Path;

#[test]
fn every_parser_takes_its_corpus() {
    for (name, target) in coati_backend::fuzz::TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name);
        let files: Vec<_> =
            fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())).collect();
        assert!(!files.is_empty(), "{} is empty", folder.display());
        for file in files {
            let bytes = fs::read(file.unwrap().path()).unwrap();
            // Not only the file: every beginning of it, as a capture or a torn write would leave it.
            let step = bytes.len() / 512 + 1;
            (0..=bytes.len()).step_by(step).for_each(|length| target(&bytes[..length]));
            target(&bytes);
        }
    }
}
