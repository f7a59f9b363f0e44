//! Buckets behind TLS, and buckets by the name of their host.

use coati_backend::config::{PathStyle, S3Config};
use coati_backend::store::{Limits, S3Store, Store, check_writes};
use coati_backend::telemetry::chain;
use coati_tests::front::Front;
use coati_tests::process::folder;
use rstest::rstest;

use crate::buckets::{BUCKET, Server, moto, rgw};
use crate::{run, settings};

#[rstest]
#[case::moto(moto)]
#[case::ceph(rgw)]
fn a_bucket_behind_tls_with_an_authority_of_its_own(#[case] server: fn() -> Server) {
    let (server, folder) = (server(), folder().unwrap());
    let front = Front::start(folder.path(), server.address).unwrap();
    let trusting = S3Config {
        endpoint: front.tls.to_string(),
        insecure: false,
        tls_ca_path: Some(front.authority.clone()),
        ..server.config("tls")
    };
    let store = S3Store::open(&trusting, Limits::default(), &|_| None).unwrap();
    check_writes(&store).unwrap();
    store.create("a/b", "content".into()).unwrap();
    assert_eq!(store.get("a/b").unwrap(), "content");
    assert_eq!(server.store("tls").get("a/b").unwrap(), "content");
    // Without it the server is not believed.
    let error = S3Store::open(&S3Config { tls_ca_path: None, ..trusting }, Limits::default(), &|_| None).unwrap_err();
    let told = chain(&error);
    assert!(told.contains("ertificate") || told.contains("UnknownIssuer"), "{told}");
}

/// No resolver knows the host: the requests go through a proxy, which asks the server by address.
#[test]
fn a_bucket_by_the_name_of_its_host() {
    let (server, folder) = (moto(), folder().unwrap());
    let front = Front::start(folder.path(), server.address).unwrap();
    server.store("").create("manifest/00000000000000000001.json", "no manifest".into()).unwrap();
    let by_host = S3Config {
        endpoint: "http://s3.coati.test".to_owned(),
        forcepathstyle: PathStyle::VirtualHost,
        ..server.config("")
    };
    let proxy = format!("http://{}", front.proxy);
    let (sound, text) = run(&["blocks", "list"], &settings(folder.path(), &by_host), &[("http_proxy", &proxy)]);
    // It was found, or it could not be wrong.
    assert!(!sound && text.contains("00000000000000000001.json cannot be read"), "{text}");
    // In the path, the same host has no such bucket: it takes the first part of its own name for one.
    let by_path = S3Config { forcepathstyle: PathStyle::Path, ..by_host };
    let (sound, text) = run(&["blocks", "list"], &settings(folder.path(), &by_path), &[("http_proxy", &proxy)]);
    assert!(!sound && !text.contains("cannot be read: docs"), "{text}");
    assert!(text.contains(BUCKET), "{text}");
}
