//! What Docker calls a container, by the file that it keeps of each. Its socket is left alone: who may ask it may do anything.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use serde::Deserialize;

/// Where Docker keeps its files unless it is told otherwise, and where that would be said.
const DATA_ROOT: &str = "var/lib/docker";
const DAEMON: &str = "etc/docker/daemon.json";

/// A file that is longer is none of Docker's.
const MAX_FILE: u64 = 1 << 20;

/// A container as Docker knows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Container {
    /// Its name, without the slash that Docker puts before it.
    pub(super) name: String,
    /// The image that it was made of, as it was asked for.
    pub(super) image: Option<String>,
    /// The service of Compose that it is one container of.
    pub(super) service: Option<String>,
    /// The project of Compose.
    pub(super) project: Option<String>,
}

impl Container {
    /// `service.name`: a service of Compose has several containers, with names of their own.
    pub(super) fn service_name(&self) -> &str {
        self.service.as_deref().unwrap_or(&self.name)
    }
}

/// The container with this id, if Docker has made it; `root` is the node's.
pub(super) fn container(root: &Path, id: &str) -> Option<Container> {
    let folder = read(&root.join(DAEMON)).and_then(|bytes| data_root(&bytes));
    let folder = root.join(folder.as_deref().unwrap_or(Path::new(DATA_ROOT)));
    parse(&read(&folder.join("containers").join(id).join("config.v2.json"))?)
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = File::open(path).ok()?.take(MAX_FILE + 1).read_to_end(&mut bytes).ok()?;
    (read as u64 <= MAX_FILE).then_some(bytes)
}

/// Where the daemon was told to keep its files, from the node's root.
fn data_root(bytes: &[u8]) -> Option<PathBuf> {
    #[derive(Deserialize)]
    struct Daemon {
        #[serde(rename = "data-root")]
        data_root: Option<PathBuf>,
    }
    let Daemon { data_root } = serde_json::from_slice(bytes).ok()?;
    Some(data_root?.strip_prefix("/").ok()?.to_owned())
}

fn parse(bytes: &[u8]) -> Option<Container> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct File {
        name: String,
        #[serde(default)]
        config: Option<Config>,
    }
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Config {
        image: Option<String>,
        labels: Option<Labels>,
    }
    #[derive(Default, Deserialize)]
    struct Labels {
        #[serde(rename = "com.docker.compose.service")]
        service: Option<String>,
        #[serde(rename = "com.docker.compose.project")]
        project: Option<String>,
    }
    let File { name, config } = serde_json::from_slice(bytes).ok()?;
    let Config { image, labels } = config.unwrap_or_default();
    let Labels { service, project } = labels.unwrap_or_default();
    let name = name.trim_start_matches('/').to_owned();
    let [image, service, project] = [image, service, project].map(|text| text.filter(|text| !text.is_empty()));
    (!name.is_empty()).then_some(Container { name, image, service, project })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const ID: &str = "3f1a9c0e5b7d2468ace013579bdf02468ace13579bdf02468ace13579bdf0246";
    /// What matters of a file of Docker 27, and some of what does not.
    const FILE: &str = r#"{"StreamConfig":{},"State":{"Running":true,"Pid":4711},"ID":"3f1a","Created":"2026-11-28T09:00:00.1Z",
        "Path":"/docker-entrypoint.sh","Config":{"Hostname":"3f1a","Env":["PASSWORD=x"],"Image":"nginx:1.27","Labels":
        {"com.docker.compose.project":"shop","com.docker.compose.service":"front","maintainer":"x"}},"Image":"sha256:1b",
        "Name":"/shop-front-1","Driver":"overlay2","RestartCount":0}"#;

    fn front() -> Container {
        let text = |text: &str| Some(text.to_owned());
        Container {
            name: "shop-front-1".to_owned(),
            image: text("nginx:1.27"),
            service: text("front"),
            project: text("shop"),
        }
    }

    #[rstest]
    #[case::of_compose(FILE, Some(front()), "front")]
    #[case::run_by_hand(
        r#"{"Name":"/web","Config":{"Image":"nginx","Labels":{}}}"#,
        Some(Container { name: "web".to_owned(), image: Some("nginx".to_owned()), service: None, project: None }),
        "web"
    )]
    #[case::without_labels(
        r#"{"Name":"web","Config":{"Labels":null,"Image":""}}"#,
        Some(Container { name: "web".to_owned(), image: None, service: None, project: None }),
        "web"
    )]
    #[case::without_a_configuration(
        r#"{"Name":"/web"}"#,
        Some(Container { name: "web".to_owned(), image: None, service: None, project: None }),
        "web"
    )]
    #[case::without_a_name(r#"{"Name":"/"}"#, None, "")]
    #[case::another_file("[]", None, "")]
    fn files(#[case] text: &str, #[case] expected: Option<Container>, #[case] service_name: &str) {
        let found = parse(text.as_bytes());
        assert_eq!(found, expected);
        assert_eq!(found.as_ref().map_or("", Container::service_name), service_name);
        for length in 0..text.len() {
            assert_eq!(parse(&text.as_bytes()[..length]), None, "{length}");
        }
    }

    #[rstest]
    #[case::usual("var/lib/docker", None)]
    #[case::told("srv/docker", Some(r#"{"data-root": "/srv/docker", "log-driver": "journald"}"#))]
    #[case::told_other_things("var/lib/docker", Some(r#"{"log-driver": "journald"}"#))]
    #[case::told_nonsense("var/lib/docker", Some("{"))]
    fn folders(#[case] folder: &str, #[case] daemon: Option<&str>) {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(container(root.path(), ID), None);
        let write = |path: PathBuf, text: &str| {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(root.path().join(folder).join("containers").join(ID).join("config.v2.json"), FILE);
        if let Some(text) = daemon {
            write(root.path().join(DAEMON), text);
        }
        assert_eq!(container(root.path(), ID), Some(front()));
        assert_eq!(container(root.path(), &"0".repeat(64)), None);
    }

    #[test]
    fn a_file_that_is_too_long_is_none() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, vec![b' '; MAX_FILE as usize]).unwrap();
        assert_eq!(read(&file).unwrap().len(), MAX_FILE as usize);
        fs::write(&file, vec![b' '; MAX_FILE as usize + 1]).unwrap();
        assert_eq!(read(&file), None);
    }

    proptest! {
        #[test]
        fn takes_any_bytes(bytes: Vec<u8>) {
            let _ = (parse(&bytes), data_root(&bytes));
        }
    }
}
