//! Images as the OCI's specification lays them out in a folder: blobs by their digests, and an index.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};

use super::digest;
use super::root::Files;

/// An image of one layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Image<'a> {
    pub(super) name: &'a str,
    pub(super) version: &'a str,
    /// RFC 3339.
    pub(super) created: &'a str,
    pub(super) architecture: &'a str,
    /// User and group, by number.
    pub(super) user: &'a str,
    pub(super) entrypoint: &'a str,
    pub(super) ports: &'a [&'a str],
}

/// Writes the layout of an image that has these files.
pub(super) fn write(image: &Image<'_>, files: &Files, folder: &Path) -> Result<()> {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).with_context(|| blobs.display().to_string())?;
    let blob = |media: &str, bytes: &[u8]| -> Result<Value> {
        let digest = digest(bytes);
        fs::write(blobs.join(&digest), bytes)?;
        Ok(json!({"mediaType": media, "digest": format!("sha256:{digest}"), "size": bytes.len()}))
    };
    let layer = layer(files)?;
    let ports: serde_json::Map<String, Value> =
        image.ports.iter().map(|port| ((*port).to_owned(), json!({}))).collect();
    let config = json!({
        "created": image.created, "architecture": image.architecture, "os": "linux",
        "config": {"User": image.user, "ExposedPorts": ports, "Entrypoint": [image.entrypoint], "WorkingDir": "/",
            "Env": ["PATH=/usr/bin"],
            "Labels": {"org.opencontainers.image.title": image.name, "org.opencontainers.image.version": image.version,
                "org.opencontainers.image.licenses": "Apache-2.0"}},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", digest(&layer))]},
        "history": [{"created": image.created, "created_by": "cargo xtask dist"}],
    });
    let packed = gzip(&layer)?;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob("application/vnd.oci.image.config.v1+json", &serde_json::to_vec(&config)?)?,
        "layers": [blob("application/vnd.oci.image.layer.v1.tar+gzip", &packed)?],
    });
    let mut entry = blob("application/vnd.oci.image.manifest.v1+json", &serde_json::to_vec(&manifest)?)?;
    if let Some(entry) = entry.as_object_mut() {
        entry.insert("platform".to_owned(), json!({"architecture": image.architecture, "os": "linux"}));
        let Image { name, version, .. } = image;
        // The names under which `skopeo` and containerd find it.
        let names = json!({"org.opencontainers.image.ref.name": version,
            "io.containerd.image.name": format!("docker.io/library/{name}:{version}")});
        entry.insert("annotations".to_owned(), names);
    }
    let index =
        json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]});
    fs::write(folder.join("index.json"), serde_json::to_vec(&index)?)?;
    fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(())
}

/// Packs a layout into one file, as `ctr images import` and `docker load` take it.
pub(super) fn pack(layout: &Path, file: &Path) -> Result<()> {
    let mut archive = tar::Builder::new(fs::File::create(file)?);
    archive.mode(tar::HeaderMode::Deterministic);
    for name in ["oci-layout", "index.json"] {
        archive.append_path_with_name(layout.join(name), name)?;
    }
    let mut blobs = fs::read_dir(layout.join("blobs/sha256"))?.collect::<Result<Vec<_>, _>>()?;
    blobs.sort_by_key(fs::DirEntry::file_name);
    for blob in blobs {
        archive.append_path_with_name(blob.path(), Path::new("blobs/sha256").join(blob.file_name()))?;
    }
    archive.into_inner()?.flush()?;
    Ok(())
}

/// A layer: the folders, then the files, all of root, all of the same date.
fn layer(files: &Files) -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut folders: Vec<&Path> = files.keys().flat_map(|path| Path::new(path).ancestors().skip(1)).collect();
    folders.retain(|folder| !folder.as_os_str().is_empty());
    folders.sort_unstable();
    folders.dedup();
    for folder in folders {
        let mut header = header(tar::EntryType::Directory, 0o755, 0);
        archive.append_data(&mut header, folder, std::io::empty())?;
    }
    for (path, file) in files {
        let mut header = header(tar::EntryType::Regular, file.mode, file.bytes.len() as u64);
        archive.append_data(&mut header, path, file.bytes.as_slice())?;
    }
    Ok(archive.into_inner()?)
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::dist::root::File;

    const IMAGE: Image<'_> = Image {
        name: "coati-backend",
        version: "1.2.3",
        created: "2026-11-28T00:00:00Z",
        architecture: "amd64",
        user: "65532:65532",
        entrypoint: "/usr/bin/coati-backend",
        ports: &["3200/tcp"],
    };

    fn files() -> Files {
        let file = |mode, text: &str| File { mode, bytes: text.into() };
        Files::from([
            ("usr/bin/coati-backend".to_owned(), file(0o755, "program")),
            ("etc/passwd".to_owned(), file(0o644, "root")),
        ])
    }

    fn read(folder: &Path, descriptor: &Value) -> Vec<u8> {
        let name = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        let bytes = fs::read(folder.join("blobs/sha256").join(name)).unwrap();
        assert_eq!((digest(&bytes), bytes.len() as u64), (name.to_owned(), descriptor["size"].as_u64().unwrap()));
        bytes
    }

    #[test]
    fn a_layout_leads_from_its_index_to_its_files() {
        let folder = tempfile::tempdir().unwrap();
        write(&IMAGE, &files(), folder.path()).unwrap();
        let json = |bytes: &[u8]| -> Value { serde_json::from_slice(bytes).unwrap() };
        assert_eq!(json(&fs::read(folder.path().join("oci-layout")).unwrap())["imageLayoutVersion"], "1.0.0");
        let index = json(&fs::read(folder.path().join("index.json")).unwrap());
        let entry = &index["manifests"][0];
        assert_eq!(entry["annotations"]["io.containerd.image.name"], "docker.io/library/coati-backend:1.2.3");
        let manifest = json(&read(folder.path(), entry));
        let config = json(&read(folder.path(), &manifest["config"]));
        assert_eq!(config["config"]["User"], "65532:65532");
        assert_eq!(config["config"]["Entrypoint"], json!(["/usr/bin/coati-backend"]));

        let mut layer = Vec::new();
        let packed = read(folder.path(), &manifest["layers"][0]);
        flate2::read::GzDecoder::new(packed.as_slice()).read_to_end(&mut layer).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", digest(&layer)));
        let mut archive = tar::Archive::new(layer.as_slice());
        let entries = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            (entry.path().unwrap().display().to_string(), entry.header().mode().unwrap())
        });
        let expected = [
            ("etc", 0o755),
            ("usr", 0o755),
            ("usr/bin", 0o755),
            ("etc/passwd", 0o644),
            ("usr/bin/coati-backend", 0o755),
        ];
        assert_eq!(entries.collect::<Vec<_>>(), expected.map(|(path, mode)| (path.to_owned(), mode)));
        assert_eq!(fs::read_dir(folder.path().join("blobs/sha256")).unwrap().count(), 3);
    }

    #[test]
    fn the_same_files_give_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let packed = ["a", "b"].map(|name| {
            let layout = folder.path().join(name);
            write(&IMAGE, &files(), &layout).unwrap();
            let file = folder.path().join(format!("{name}.tar"));
            pack(&layout, &file).unwrap();
            fs::read(file).unwrap()
        });
        assert_eq!(packed[0], packed[1]);
        let mut archive = tar::Archive::new(packed[0].as_slice());
        assert_eq!(archive.entries().unwrap().count(), 5);
    }
}
