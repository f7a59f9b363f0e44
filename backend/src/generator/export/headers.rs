//! What series of single tenants are sent with.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use http::HeaderMap;
use http::header::{
    CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName, HeaderValue, InvalidHeaderName,
    InvalidHeaderValue, TRANSFER_ENCODING,
};

use crate::config::TenantGenerator;

/// Of these requests have their own.
const RESERVED: [HeaderName; 7] = [
    CONNECTION,
    CONTENT_ENCODING,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    HOST,
    TRANSFER_ENCODING,
    HeaderName::from_static("x-prometheus-remote-write-version"),
];

/// A header that cannot be sent. Its value is not told: it may be a secret.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// It cannot be called so.
    #[error("{name}")]
    Name {
        /// What stands there.
        name: String,
        /// Why not.
        #[source]
        source: InvalidHeaderName,
    },
    /// Its value cannot be sent.
    #[error("{name}")]
    Value {
        /// The header.
        name: String,
        /// Why not.
        #[source]
        source: InvalidHeaderValue,
    },
    /// Requests have it anyway.
    #[error("{name}: remote write sets it itself")]
    Reserved {
        /// The header.
        name: String,
    },
}

/// Headers of all tenants that have some of their own. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct TenantHeaders(Arc<RwLock<HashMap<String, HeaderMap>>>);

impl TenantHeaders {
    /// In place of those of before. What cannot be sent was found out before, and is left out here.
    pub(in crate::generator) fn set(&self, settings: &BTreeMap<String, TenantGenerator>) {
        let of = |(tenant, settings): (&String, &TenantGenerator)| {
            let headers = tenant_headers(settings).ok().filter(|headers| !headers.is_empty())?;
            Some((tenant.clone(), headers))
        };
        let all = settings.iter().filter_map(of).collect();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = all;
    }

    /// Those of a tenant.
    pub(super) fn of(&self, tenant: &str) -> Option<HeaderMap> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(tenant).cloned()
    }
}

/// The headers of a tenant.
pub(in crate::generator) fn tenant_headers(settings: &TenantGenerator) -> Result<HeaderMap, HeaderError> {
    let headers = settings.remote_write_headers.iter().map(|(name, value)| {
        let of = || name.clone();
        let key = HeaderName::try_from(name).map_err(|source| HeaderError::Name { name: of(), source })?;
        if RESERVED.contains(&key) {
            return Err(HeaderError::Reserved { name: of() });
        }
        let value = HeaderValue::from_str(value.0.expose());
        let mut value = value.map_err(|source| HeaderError::Value { name: of(), source })?;
        value.set_sensitive(true);
        Ok((key, value))
    });
    headers.collect()
}

#[cfg(test)]
mod tests {
    use std::error::Error;
    use std::time::Duration;

    use rstest::rstest;

    use super::super::Format;
    use super::super::queue::Queued;
    use super::super::send::Sender;
    use super::super::tests::{config, queue, server};
    use super::*;
    use crate::config::RemoteWriteConfig;

    fn settings(yaml: &str) -> BTreeMap<String, TenantGenerator> {
        serde_saphyr::from_str(yaml).unwrap()
    }

    #[tokio::test]
    async fn each_tenant_has_its_own_and_they_may_change() {
        let (url, seen) = server(Vec::new()).await;
        let config = RemoteWriteConfig {
            url,
            ..config("headers: {X-Key: of all, X-Other: of all}\nbasic_auth: {username: u, password: p}")
        };
        let folder = tempfile::tempdir().unwrap();
        let queue = Arc::new(queue(folder.path(), &config, 1 << 20));
        let headers = TenantHeaders::default();
        headers.set(&settings(
            "{a: {remote_write_headers: {X-Key: of a, X-Scope-OrgID: '7', Authorization: Bearer x}}, b: {}}",
        ));
        let sender = Sender::remote_write(Arc::clone(&queue), &config, true, headers.clone()).unwrap();
        let sender = tokio::spawn(sender.run());
        let send = async |tenant: &str| {
            let (tenant, format) = (tenant.to_owned(), Format::RemoteWrite1);
            queue.push_request(&Queued { tenant, time_ms: 1, samples: 1, format, body: vec![1] }).unwrap();
            queue.more.notify_one();
            while queue.oldest().unwrap().is_some() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        send("a").await;
        send("b").await;
        headers.set(&settings("{b: {remote_write_headers: {x-key: of b}}}"));
        send("a").await;
        send("b").await;
        sender.abort();
        let seen = seen.lock().unwrap();
        let told: Vec<_> = seen
            .iter()
            .map(|(headers, _)| {
                let names = ["x-scope-orgid", "x-key", "x-other", "authorization"];
                names
                    .map(|name| {
                        headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>().join("+")
                    })
                    .join(", ")
            })
            .collect();
        assert_eq!(
            told,
            [
                "7, of a, of all, Bearer x",
                "b, of all, of all, Basic dTpw",
                "a, of all, of all, Basic dTpw",
                "b, of b, of all, Basic dTpw",
            ]
        );
    }

    #[rstest]
    #[case::name("{'a b': hidden}", "a b")]
    #[case::value("{X-Key: \"hid\\nden\"}", "X-Key")]
    #[case::reserved("{Content-Type: hidden}", "Content-Type: remote write sets it itself")]
    #[case::version("{x-prometheus-remote-write-version: hidden}", "x-prometheus-remote-write-version: remote write")]
    fn what_cannot_be_sent_is_named_without_its_value(#[case] headers: &str, #[case] expected: &str) {
        let all = settings(&format!("a: {{remote_write_headers: {headers}}}"));
        let error = tenant_headers(&all["a"]).unwrap_err();
        let text = format!("{error}: {:?} {:?}", error.source(), all);
        assert!(text.starts_with(expected), "{text}");
        assert!(!text.contains("hid"), "{text}");
    }
}
