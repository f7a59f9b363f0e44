//! What is known of the processes of the node.

use opentelemetry_proto::tonic::resource::v1::Resource;

/// A process whose connections are observed.
#[derive(Clone, Debug)]
pub struct Process {
    /// Process id as the agent sees it.
    pub tgid: u32,
    /// `service.name`.
    pub service_name: String,
    /// Everything that its spans are sent under, `service.name` included.
    pub resource: Resource,
}
