//! Who the API server is, who the agent is, and on which node.

use std::{path::Path, time::Duration};

use kube::{
    Api, Client, Config, Resource as _, client::ClientBuilder, config::KubeConfigOptions, runtime::utils::Backoff,
};
use tower::limit::RateLimitLayer;

use super::{Enabled, KubernetesError, object::Pod};

/// Where every pod that has a service account finds its token.
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// How long the server may say nothing in the middle of an answer: a little longer than a watch takes.
const SILENCE: Duration = Duration::from_secs(super::WATCH_SECONDS as u64 + 20);

/// Requests in a second at most. Errors are waited for by the watches; a watch that the server, or a proxy, ends at once is
/// no error to kube and would be begun again at once.
const REQUESTS: u64 = 5;

/// What the agent can ask with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Credentials {
    ServiceAccount,
    Kubeconfig,
}

/// A client that has not asked yet, `None` if there is nobody to ask or it is not wanted.
pub(super) async fn client(enabled: Enabled) -> Result<Option<Client>, KubernetesError> {
    if enabled == Enabled::No {
        return Ok(None);
    }
    let variable = |name: &str| std::env::var(name).ok();
    let config = match credentials(&variable, Path::new(TOKEN)) {
        Some(Credentials::Kubeconfig) => Config::from_kubeconfig(&KubeConfigOptions::default()).await?,
        Some(Credentials::ServiceAccount) => Config::incluster()?,
        None if enabled == Enabled::Yes => return Err(KubernetesError::NoCredentials),
        None => return Ok(None),
    };
    Ok(Some(patient(config, SILENCE, REQUESTS)?))
}

/// What there is; a file that somebody names wins.
pub(super) fn credentials(variable: &dyn Fn(&str) -> Option<String>, token: &Path) -> Option<Credentials> {
    let is_set = |name| variable(name).is_some_and(|value| !value.is_empty());
    if is_set("KUBECONFIG") {
        return Some(Credentials::Kubeconfig);
    }
    (is_set("KUBERNETES_SERVICE_HOST") && token.exists()).then_some(Credentials::ServiceAccount)
}

/// A client that takes an answer that stops for `silence` for lost, tries nothing again by itself, because the watches do,
/// and makes so many requests in a second at most.
pub(super) fn patient(mut config: Config, silence: Duration, requests: u64) -> Result<Client, KubernetesError> {
    config.read_timeout = Some(silence);
    config.reset_reader_on_write = true;
    config.default_retry = false;
    let limit = RateLimitLayer::new(requests, Duration::from_secs(1));
    Ok(ClientBuilder::try_from(config)?.with_layer(&limit).build())
}

/// The agent's own host name: in a pod that of the pod, on the node's network that of the node.
pub(super) fn own_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// The node on which the agent's own pod is, or what it calls itself if it has the node's own network and so its name.
pub(super) async fn node_name(client: &Client, host_name: &str, mut backoff: impl Backoff) -> String {
    let mut is_away = false;
    loop {
        let pods = Api::<Pod>::default_namespaced(client.clone());
        let error = match pods.get_opt(host_name).await {
            Ok(Some(Pod { spec, .. })) if spec.node_name.is_some() => return spec.node_name.unwrap_or_default(),
            Ok(_) => {
                let node = host_name.to_ascii_lowercase();
                tracing::warn!(
                    node,
                    "there is no {} of the agent's host name, which is taken for the node's: kubernetes.node_name or NODE_NAME \
                     would be sure",
                    Pod::kind(&())
                );
                return node;
            }
            Err(error) => error,
        };
        if !std::mem::replace(&mut is_away, true) {
            tracing::warn!(%error, "cannot ask on which node this is, tried again");
        }
        tokio::time::sleep(backoff.next().unwrap_or(SILENCE)).await;
    }
}
