//! What settings mean, and that no secret is shown.

use std::fs;
use std::path::PathBuf;

use rstest::rstest;

use super::client::Settings;
use super::*;
use crate::config::PathStyle;

fn config() -> S3Config {
    S3Config { bucket: "traces".to_owned(), ..S3Config::default() }
}

/// Where it looks, and with whose credentials; or what is wrong.
fn settings(config: &S3Config, variables: &[(&str, &str)]) -> String {
    let variable = |name: &str| variables.iter().find(|(of, _)| *of == name).map(|(_, value)| (*value).to_owned());
    let found = Settings::new(config, &variable).and_then(|settings| {
        let client = format!("{:?}", settings.client(Limits::default())?);
        let endpoint = client.split_once("bucket_endpoint: \"").unwrap().1.split_once('"').unwrap().0.to_owned();
        Ok(format!("{}, {endpoint}, {}", settings.place(), settings.credentials))
    });
    found.unwrap_or_else(|error| error.to_string())
}

#[test]
fn where_the_bucket_is() {
    let with = |endpoint: &str, forcepathstyle, insecure| S3Config {
        endpoint: endpoint.to_owned(),
        forcepathstyle,
        insecure,
        prefix: "/a/b/".to_owned(),
        ..config()
    };
    let region = ("AWS_REGION", "eu-north-1");
    let found = [
        settings(&config(), &[]),
        settings(&config(), &[region, ("AWS_DEFAULT_REGION", "x")]),
        settings(&S3Config { region: "eu-west-1".to_owned(), ..config() }, &[region]),
        settings(&with("", PathStyle::Path, false), &[]),
        settings(&config(), &[("AWS_ENDPOINT_URL", "http://minio:9000/")]),
        settings(&with("minio:9000", PathStyle::Auto, true), &[("AWS_ENDPOINT_URL", "http://other")]),
        settings(&with("minio:9000", PathStyle::VirtualHost, false), &[]),
        settings(&with("https://[::1]:9000", PathStyle::Auto, true), &[]),
        settings(&with("s3.eu-west-1.amazonaws.com", PathStyle::Auto, false), &[]),
    ];
    insta::assert_snapshot!(found.map(|found| found.replace(", the instance's metadata (no storage.s3.access_key is set)", "")).join("\n"), @"
    `traces` at AWS (region us-east-1), https://traces.s3.us-east-1.amazonaws.com
    `traces` at AWS (region eu-north-1), https://traces.s3.eu-north-1.amazonaws.com
    `traces` at AWS (region eu-west-1), https://traces.s3.eu-west-1.amazonaws.com
    `traces/a/b` at AWS (region us-east-1), https://s3.us-east-1.amazonaws.com/traces
    `traces` at http://minio:9000 (region us-east-1), http://minio:9000/traces
    `traces/a/b` at http://minio:9000 (region us-east-1), http://minio:9000/traces
    `traces/a/b` at https://minio:9000 (region us-east-1), https://traces.minio:9000
    `traces/a/b` at https://[::1]:9000 (region us-east-1), https://[::1]:9000/traces
    `traces/a/b` at https://s3.eu-west-1.amazonaws.com (region eu-west-1), https://traces.s3.eu-west-1.amazonaws.com
    ");
}

#[test]
fn bad_settings_are_named() {
    let key = |text: &str| text.into();
    let file = PathBuf::from("/no/such/file");
    let bad = [
        S3Config { bucket: String::new(), ..config() },
        S3Config { bucket: "a/b".to_owned(), ..config() },
        S3Config { prefix: "a/../b".to_owned(), ..config() },
        S3Config { access_key: key("hidden"), ..config() },
        S3Config { secret_key: key("hidden"), ..config() },
        S3Config { session_token: key("hidden"), ..config() },
        S3Config { endpoint: "ftp://a".to_owned(), ..config() },
        S3Config { endpoint: "http://user:password@a".to_owned(), ..config() },
        S3Config { endpoint: "a/b".to_owned(), ..config() },
        S3Config { endpoint: "a b".to_owned(), ..config() },
        S3Config { credentials_file: Some(file.clone()), ..config() },
        S3Config { tls_ca_path: Some(file), ..config() },
    ];
    insta::assert_snapshot!(bad.map(|config| settings(&config, &[])).join("\n"), @"
    storage.s3.bucket: expected the name of a bucket, found ``
    storage.s3.bucket: expected the name of a bucket, found `a/b`
    storage.s3.prefix: expected at most 100 bytes such as `coati/production`, found `a/../b`
    storage.s3.secret_key: expected, because access_key is set
    storage.s3.access_key: expected, because secret_key is set
    storage.s3.session_token: expected only with access_key and secret_key
    storage.s3.endpoint: expected a host, host:port or URL such as `minio:9000`, found `ftp://a`
    storage.s3.endpoint: expected no user and password; keys belong into access_key and secret_key
    storage.s3.endpoint: expected a host, host:port or URL such as `minio:9000`, found `a/b`
    storage.s3.endpoint: expected a host, host:port or URL such as `minio:9000`, found `a b`
    storage.s3.credentials_file: /no/such/file: No such file or directory (os error 2)
    storage.s3.tls_ca_path: /no/such/file: No such file or directory (os error 2)
    ");
}

#[test]
fn certificates_are_read() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let config = S3Config { tls_ca_path: Some(file.path().to_owned()), ..config() };
    assert!(settings(&config, &[]).ends_with("expected certificates in PEM"), "{}", settings(&config, &[]));
    fs::write(file.path(), "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n").unwrap();
    assert!(settings(&config, &[]).starts_with("storage.s3.tls_ca_path: "), "{}", settings(&config, &[]));
}

#[rstest]
#[case::nothing(&[], "the instance's metadata (no storage.s3.access_key is set)")]
#[case::variables(&[("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b")], "AWS_ACCESS_KEY_ID")]
#[case::half(&[("AWS_ACCESS_KEY_ID", "a")], "the instance's metadata (no storage.s3.access_key is set)")]
#[case::web_identity(&[("AWS_WEB_IDENTITY_TOKEN_FILE", "/t"), ("AWS_ROLE_ARN", "r")], "AWS_WEB_IDENTITY_TOKEN_FILE")]
#[case::container(&[("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/x")], "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")]
fn whose_credentials(#[case] variables: &[(&str, &str)], #[case] expected: &str) {
    assert!(settings(&config(), variables).ends_with(&format!(", {expected}")), "{}", settings(&config(), variables));
    let own = S3Config { access_key: "c".into(), secret_key: "d".into(), ..config() };
    assert!(settings(&own, variables).ends_with(", storage.s3.access_key"));
}

#[rstest]
#[case::plain("[default]\naws_access_key_id = AK\naws_secret_access_key=SK/+=\n", true)]
#[case::no_section("aws_access_key_id=AK\naws_secret_access_key=SK\naws_session_token=T\n", true)]
#[case::among_others(
    "[a]\naws_access_key_id=x\n[ default ]\r\n# c\naws_access_key_id=AK\r\naws_secret_access_key=SK\n[z]\nq=1\n",
    true
)]
#[case::half("[default]\naws_access_key_id=AK\n", false)]
#[case::other_profile("[a]\naws_access_key_id=AK\naws_secret_access_key=SK\n", false)]
#[case::empty("", false)]
fn credentials_files(#[case] content: &str, #[case] good: bool) {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), content).unwrap();
    let path = file.path().display().to_string();
    let by_setting = settings(&S3Config { credentials_file: Some(file.path().to_owned()), ..config() }, &[]);
    let by_variable = settings(&config(), &[("AWS_SHARED_CREDENTIALS_FILE", &path)]);
    assert_eq!(by_setting, by_variable);
    if good {
        assert!(by_setting.ends_with(&format!(", {path}")), "{by_setting}");
    } else {
        assert_eq!(
            by_setting,
            format!(
                "storage.s3.credentials_file: {path}: expected a section `[default]` with `aws_access_key_id` and \
                 `aws_secret_access_key`"
            )
        );
    }
}

#[test]
fn no_secret_is_shown() {
    let config = S3Config {
        access_key: "hidden-key".into(),
        secret_key: "hidden-secret".into(),
        session_token: "hidden-token".into(),
        endpoint: "http://127.0.0.1:1".to_owned(),
        ..config()
    };
    let settings = Settings::new(&config, &|_| None).unwrap();
    let bucket = Bucket {
        client: settings.client(Limits::default()).unwrap(),
        limits: Limits::default(),
        prefix: String::new(),
        place: settings.place(),
    };
    let store = S3Store { bucket: Arc::new(bucket), io: Io::start().unwrap() };
    let error = S3Store::open(&config, Limits::default(), &|_| None).unwrap_err();
    let shown =
        format!("{config:?} {config:#?} {store:?} {store} {error} {error:?} {}", crate::telemetry::chain(&error));
    assert!(!shown.contains("hidden"), "{shown}");
}
