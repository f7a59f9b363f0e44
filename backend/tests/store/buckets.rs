//! Servers with a bucket.

use std::net::SocketAddr;
use std::time::Duration;

use coati_backend::config::S3Config;
use coati_backend::store::{Limits, S3Store};
use coati_tests::moto::Moto;
use coati_tests::process::folder;
use coati_tests::rgw::{ACCESS_KEY, Rgw, SECRET_KEY};
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::signer::Signer as _;
use tempfile::TempDir;

pub(crate) const BUCKET: &str = "traces";

/// A server with an empty bucket.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    _process: Box<dyn std::any::Any>,
    _folder: TempDir,
}

pub(crate) fn moto() -> Server {
    let folder = folder().unwrap();
    let moto = Moto::start(folder.path()).unwrap();
    Server::new(moto.address, Box::new(moto), folder)
}

pub(crate) fn rgw() -> Server {
    let folder = folder().unwrap();
    let rgw = Rgw::start(folder.path()).unwrap();
    Server::new(rgw.address, Box::new(rgw), folder)
}

impl Server {
    fn new(address: SocketAddr, process: Box<dyn std::any::Any>, folder: TempDir) -> Self {
        let client = AmazonS3Builder::new()
            .with_endpoint(format!("http://{address}"))
            .with_bucket_name(BUCKET)
            .with_region("us-east-1")
            .with_access_key_id(ACCESS_KEY)
            .with_secret_access_key(SECRET_KEY)
            .with_allow_http(true)
            .build()
            .unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let url = runtime
            .block_on(client.signed_url("PUT".parse().unwrap(), &Path::default(), Duration::from_mins(1)))
            .unwrap();
        ureq::put(url.as_str()).send_empty().unwrap();
        Self { address, _process: process, _folder: folder }
    }

    /// Settings for the bucket.
    pub(crate) fn config(&self, prefix: &str) -> S3Config {
        config(self.address, prefix)
    }

    pub(crate) fn store(&self, prefix: &str) -> S3Store {
        S3Store::open(&self.config(prefix), Limits::default(), &|_| None).unwrap()
    }
}

/// Settings for the bucket of the server at an address.
pub(crate) fn config(address: SocketAddr, prefix: &str) -> S3Config {
    S3Config {
        bucket: BUCKET.to_owned(),
        prefix: prefix.to_owned(),
        endpoint: address.to_string(),
        insecure: true,
        access_key: ACCESS_KEY.into(),
        secret_key: SECRET_KEY.into(),
        ..S3Config::default()
    }
}
