//! The YAML file.

use std::cell::RefCell;
use std::fs;
use std::path::Path;

use serde_saphyr::with_deserializer_from_str;

use super::{Config, ConfigError, Given};

/// Reads a file; what it does not say keeps its default.
pub(crate) fn read(path: &Path) -> Result<Config, ConfigError> {
    let text = fs::read_to_string(path).map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    Ok(Config { given: Given::of_file(&text), ..parse(&text, path)? })
}

fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(Config::default());
    }
    let key = RefCell::new(String::new());
    with_deserializer_from_str(text, |deserializer| {
        serde_path_to_error::deserialize(deserializer).map_err(|error| {
            key.replace(error.path().to_string());
            error.into_inner()
        })
    })
    .map_err(|error: serde_saphyr::Error| {
        let message = error.without_snippet().to_string();
        // The line is named before the message, in the form that editors and terminals understand.
        let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message);
        // A hint for who calls the parser, not for who writes the file.
        let message = message.split_once(", set DuplicateKeyPolicy").map_or(message, |(message, _)| message);
        ConfigError::File {
            path: path.to_owned(),
            line: error.location().map_or(1, |location| location.line()),
            // `?` stands for a key that was not read yet.
            key: key.take().trim_matches(['.', '?']).to_owned(),
            message: message.replace('\n', " "),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::TenantRetention;
    use super::*;
    use rstest::rstest;
    use std::time::Duration;

    fn parsed(text: &str) -> Result<Config, String> {
        parse(text, Path::new("backend.yaml")).map_err(|error| error.to_string())
    }

    #[test]
    fn the_example_says_every_key_and_its_default() {
        let example = include_str!("../../../deploy/backend.yaml");
        assert_eq!(parsed(example).unwrap(), Config::default());
        let keys = |text: &str| text.lines().filter(|line| line.contains(':') && !line.trim().starts_with('#')).count();
        // 3 settings, 11 sections with 3 + 3 + 2 + 3 + 2 + 2 + 4 + 2 + 5 + 1 + 11, the generator's 8 sections with 9 + 9 + 5 + 9 +
        // 12 + 2 + 6, and the overrides' 2 with 2; a key that is missing here is one that nobody finds.
        assert_eq!(keys(example), 3 + 11 + 38 + 8 + 52 + 2 + 2);
    }

    #[rstest]
    #[case::empty("")]
    #[case::comments("# nothing\n\n  # yet\n")]
    fn a_file_that_says_nothing(#[case] text: &str) {
        assert_eq!(parsed(text).unwrap(), Config::default());
    }

    #[test]
    fn what_is_said_is_taken_and_the_rest_keeps_its_default() {
        let config = parsed(
            "data_dir: /data\nretention:\n  age: 36h\n  tenants: {a: {age: 90d}, b: {}}\nlisten:\n  api: '[::1]:0'\n",
        )
        .unwrap();
        let mut expected = Config { data_dir: "/data".into(), ..Config::default() };
        expected.retention.age = Duration::from_hours(36);
        expected.retention.tenants = [
            ("a".to_owned(), TenantRetention { age: Some(Duration::from_hours(90 * 24)) }),
            ("b".to_owned(), TenantRetention::default()),
        ]
        .into();
        expected.listen.api = "[::1]:0".parse().unwrap();
        assert_eq!(config, expected);
    }

    #[test]
    fn mistakes_are_named_with_line_and_key() {
        let mistakes = [
            "data_dir: x\nretentoin: 7d\n",
            "live:\n  bytes: 1MiB\n",
            "\nretention:\n  age: week\n",
            "listen:\n  api: 3200\n",
            "live:\n  max_bytes: 1 GB\n",
            "retention:\n  tenants:\n    a:\n      age: 1\n",
            "retention:\n  tenants:\n    a: {max_bytes: 1GiB}\n",
            "compaction:\n  enabled: sometimes\n",
            "storage:\n  backend: gcs\n",
            "storage:\n  s3:\n    acces_key: hidden\n",
            "storage:\n  s3:\n    secret_key: [hidden]\n",
            "storage:\n  s3:\n    forcepathstyle: yes\n",
            "tls:\n  api: {cert: a.pem}\n",
            "auth:\n  credentials:\n  - {token: hidden}\n",
            "auth:\n  credentials:\n  - {token_file: a, listeners: [grpc]}\n",
            "- a\n",
            "listen: {\n",
            "data_dir: a\ndata_dir: b\n",
        ];
        insta::assert_snapshot!(mistakes.map(|text| parsed(text).unwrap_err()).join("\n"), @"
        backend.yaml:2: retentoin: unknown field `retentoin`, expected one of data_dir, log_level, multitenancy, listen, tls, auth, retention, compaction, live, cut, receive, query, metrics_generator, overrides, storage
        backend.yaml:2: live.bytes: unknown field `bytes`, expected one of max_bytes, max_trace_bytes
        backend.yaml:3: retention.age: expected a time with a unit such as `90m`, `36h` or `7d`, found `week`
        backend.yaml:2: listen.api: expected an address with a port such as `0.0.0.0:3200`, found `3200`
        backend.yaml:2: live.max_bytes: expected a size with a unit such as `512KiB`, `256MiB` or `10GiB`, found `1 GB`
        backend.yaml:4: retention.tenants.a.age: expected a time with a unit such as `90m`, `36h` or `7d`, found `1`
        backend.yaml:3: retention.tenants.a.max_bytes: unknown field `max_bytes`, expected one of age
        backend.yaml:2: compaction.enabled: expected `true` or `false`, found `sometimes`
        backend.yaml:2: storage.backend: expected `local` or `s3`, found `gcs`
        backend.yaml:3: storage.s3.acces_key: unknown field `acces_key`, expected one of bucket, prefix, endpoint, region, access_key, secret_key, session_token, credentials_file, insecure, forcepathstyle, tls_ca_path
        backend.yaml:3: storage.s3.secret_key: expected string scalar
        backend.yaml:3: storage.s3.forcepathstyle: expected `auto`, `true` or `false`, found `yes`
        backend.yaml:2: tls.api.cert: unknown field `cert`, expected one of cert_file, key_file, client_ca_file
        backend.yaml:3: auth.credentials[0].token: unknown field `token`, expected one of token_file, token_env, username, password_file, password_env, listeners, tenants
        backend.yaml:3: auth.credentials[0].listeners[0]: expected `api`, `otlp_grpc` or `otlp_http`, found `grpc`
        backend.yaml:1: expected mapping start
        backend.yaml:1: listen: unclosed bracket '{'
        backend.yaml:2: duplicate mapping key: data_dir
        ");
    }
}
