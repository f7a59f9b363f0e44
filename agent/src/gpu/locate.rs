//! Where NVIDIA's management library is.

use std::path::{Path, PathBuf};

/// Its name since there is one.
const NAME: &str = "libnvidia-ml.so.1";

/// Folders in which drivers, distributions and container runtimes put it.
const FOLDERS: [&str; 9] = [
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "usr/lib64",
    "usr/lib",
    "usr/local/nvidia/lib64",
    "usr/lib/wsl/lib",
    "run/nvidia/driver/usr/lib/x86_64-linux-gnu",
    "run/nvidia/driver/usr/lib64",
    "home/kubernetes/bin/nvidia/lib64",
];

/// The paths to try, in their order: the configured one alone, else those that exist below the agent's own root and
/// below that of the node, as the agent of a container sees it.
pub(super) fn candidates(configured: Option<&Path>, roots: &[&Path]) -> Vec<PathBuf> {
    if let Some(path) = configured {
        return vec![path.to_owned()];
    }
    let below = |root: &&Path| FOLDERS.map(|folder| root.join(folder).join(NAME));
    roots.iter().flat_map(below).filter(|path| path.exists()).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_own_root_comes_before_the_hosts() {
        let (own, host) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (root, folder) in [(&own, "usr/lib64"), (&host, "run/nvidia/driver/usr/lib64"), (&host, "usr/lib64")] {
            let folder = root.path().join(folder);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(NAME), "").unwrap();
        }
        let found = candidates(None, &[own.path(), host.path()]);
        let expected = [
            own.path().join("usr/lib64").join(NAME),
            host.path().join("usr/lib64").join(NAME),
            host.path().join("run/nvidia/driver/usr/lib64").join(NAME),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_configured_path_is_the_only_one() {
        let root = tempfile::tempdir().unwrap();
        let configured = Path::new("/opt/nvml.so");
        assert_eq!(candidates(Some(configured), &[root.path()]), [configured]);
        assert!(candidates(None, &[root.path()]).is_empty());
    }
}
