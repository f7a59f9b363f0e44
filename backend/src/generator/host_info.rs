//! `traces_host_info`: which hosts send spans.

use std::borrow::Cow;

use opentelemetry_proto::tonic::resource::v1::Resource;

use super::attributes::of_resource;
use super::family::{Family, Labels, Shape};
use super::key::Lengths;
use super::room::Room;
use crate::config::GeneratorConfig;

/// What is counted, the same for all tenants.
#[derive(Clone, Debug)]
pub(super) struct HostInfoPlan {
    /// Attributes of resources, the first that is there counts.
    identifiers: Vec<String>,
    lengths: Lengths,
    shape: Shape,
}

impl HostInfoPlan {
    pub(super) fn new(config: &GeneratorConfig) -> Self {
        let lengths = Lengths::new(&config.registry);
        let config = &config.processor.host_info;
        let labels = Labels::Named(["grafana_host_id", "host_source"].map(Into::into).to_vec());
        let shape = Shape::info(Cow::Owned(config.metric_name.clone()), labels);
        Self { identifiers: config.host_identifiers.clone(), lengths, shape }
    }

    pub(super) fn family(&self) -> Family {
        Family::new(self.shape.clone())
    }

    /// Notes the host of a resource, if an attribute names it; `key` is reused.
    pub(super) fn count(
        &self,
        hosts: &mut Family,
        resource: &Resource,
        now_ms: u64,
        room: &mut Room,
        key: &mut Vec<u8>,
    ) {
        let mut named =
            self.identifiers.iter().filter_map(|name| Some((of_resource(&resource.attributes, name)?, name)));
        let Some((host, source)) = named.next() else { return };
        key.clear();
        for text in [&host, source] {
            self.lengths.push(key, text);
        }
        if let Some((_, series)) = hosts.of(key, now_ms, room) {
            series.counters = [1.0, 0.0];
        }
    }
}
