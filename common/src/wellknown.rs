//! Attribute names that the agent emits and the backend stores in typed columns.
//!
//! Names are those of the OpenTelemetry semantic conventions; what is ours begins with `coati.`.

/// Name of the instrumentation scope of every span that the agent makes.
pub const AGENT_SCOPE: &str = "coati-agent";

/// Attributes of a resource.
pub mod resource {
    /// Logical name of the service.
    pub const SERVICE_NAME: &str = "service.name";
    /// Namespace of the service.
    pub const SERVICE_NAMESPACE: &str = "service.namespace";
    /// Version of the service.
    pub const SERVICE_VERSION: &str = "service.version";
    /// One instance of the service.
    pub const SERVICE_INSTANCE_ID: &str = "service.instance.id";
    /// Language of the process.
    pub const TELEMETRY_SDK_LANGUAGE: &str = "telemetry.sdk.language";
    /// Always `coati` for what the agent makes.
    pub const TELEMETRY_SDK_NAME: &str = "telemetry.sdk.name";
    /// Version of the agent.
    pub const TELEMETRY_SDK_VERSION: &str = "telemetry.sdk.version";
    /// Name of the node.
    pub const HOST_NAME: &str = "host.name";
    /// Machine id of the node.
    pub const HOST_ID: &str = "host.id";
    /// Always `linux`.
    pub const OS_TYPE: &str = "os.type";
    /// Process id in the agent's namespace.
    pub const PROCESS_PID: &str = "process.pid";
    /// Name of the executable's file.
    pub const PROCESS_EXECUTABLE_NAME: &str = "process.executable.name";
    /// Path of the executable's file.
    pub const PROCESS_EXECUTABLE_PATH: &str = "process.executable.path";
    /// First word of the command line.
    pub const PROCESS_COMMAND: &str = "process.command";
    /// Id of the container, 64 hexadecimal digits.
    pub const CONTAINER_ID: &str = "container.id";
    /// Name of the container in its runtime.
    pub const CONTAINER_NAME: &str = "container.name";
    /// Image of the container, as it was asked for.
    pub const CONTAINER_IMAGE_NAME: &str = "container.image.name";
    /// Name of the cluster, as configured.
    pub const K8S_CLUSTER_NAME: &str = "k8s.cluster.name";
    /// Name of the node in Kubernetes.
    pub const K8S_NODE_NAME: &str = "k8s.node.name";
    /// Namespace of the pod.
    pub const K8S_NAMESPACE_NAME: &str = "k8s.namespace.name";
    /// Name of the pod.
    pub const K8S_POD_NAME: &str = "k8s.pod.name";
    /// Uid of the pod.
    pub const K8S_POD_UID: &str = "k8s.pod.uid";
    /// When the kubelet took the pod on, RFC 3339.
    pub const K8S_POD_START_TIME: &str = "k8s.pod.start_time";
    /// Name of the container in the pod.
    pub const K8S_CONTAINER_NAME: &str = "k8s.container.name";
    /// Deployment of the pod.
    pub const K8S_DEPLOYMENT_NAME: &str = "k8s.deployment.name";
    /// Replica set of the pod.
    pub const K8S_REPLICASET_NAME: &str = "k8s.replicaset.name";
    /// Stateful set of the pod.
    pub const K8S_STATEFULSET_NAME: &str = "k8s.statefulset.name";
    /// Daemon set of the pod.
    pub const K8S_DAEMONSET_NAME: &str = "k8s.daemonset.name";
    /// Job of the pod.
    pub const K8S_JOB_NAME: &str = "k8s.job.name";
    /// Cron job of the pod's job.
    pub const K8S_CRONJOB_NAME: &str = "k8s.cronjob.name";
    /// Name of the topmost owner, of the pod itself if it has none.
    pub const K8S_OWNER_NAME: &str = "k8s.owner.name";
    /// Kind of the topmost owner.
    pub const K8S_KIND: &str = "k8s.kind";
}

/// Attributes of a span of HTTP or gRPC.
pub mod span {
    /// Method, `_OTHER` if it is not a known one.
    pub const HTTP_REQUEST_METHOD: &str = "http.request.method";
    /// Method as it was sent, if it is not a known one.
    pub const HTTP_REQUEST_METHOD_ORIGINAL: &str = "http.request.method_original";
    /// Low-cardinality path template.
    pub const HTTP_ROUTE: &str = "http.route";
    /// Status code of the final response.
    pub const HTTP_RESPONSE_STATUS_CODE: &str = "http.response.status_code";
    /// Bytes of the request's body.
    pub const HTTP_REQUEST_BODY_SIZE: &str = "http.request.body.size";
    /// Bytes of the response's body.
    pub const HTTP_RESPONSE_BODY_SIZE: &str = "http.response.body.size";
    /// What the keys of captured request headers begin with: a dot and the header's name follow.
    pub const HTTP_REQUEST_HEADER: &str = "http.request.header";
    /// The same of responses.
    pub const HTTP_RESPONSE_HEADER: &str = "http.response.header";
    /// Path of the request.
    pub const URL_PATH: &str = "url.path";
    /// Query of the request, values redacted.
    pub const URL_QUERY: &str = "url.query";
    /// `http` or `https`.
    pub const URL_SCHEME: &str = "url.scheme";
    /// Whole URL, client spans only, query redacted.
    pub const URL_FULL: &str = "url.full";
    /// Address of the client.
    pub const CLIENT_ADDRESS: &str = "client.address";
    /// Port of the client.
    pub const CLIENT_PORT: &str = "client.port";
    /// Address or name of the server.
    pub const SERVER_ADDRESS: &str = "server.address";
    /// Port of the server.
    pub const SERVER_PORT: &str = "server.port";
    /// Peer's address on the wire, client spans only.
    pub const NETWORK_PEER_ADDRESS: &str = "network.peer.address";
    /// Peer's port on the wire, client spans only.
    pub const NETWORK_PEER_PORT: &str = "network.peer.port";
    /// `service.name` of the other end, if Kubernetes knows its address.
    pub const SERVICE_PEER_NAME: &str = "service.peer.name";
    /// `service.namespace` of the other end, likewise.
    pub const SERVICE_PEER_NAMESPACE: &str = "service.peer.namespace";
    /// `unix` if the connection is one of Unix sockets.
    pub const NETWORK_TRANSPORT: &str = "network.transport";
    /// `1.0`, `1.1` or `2`.
    pub const NETWORK_PROTOCOL_VERSION: &str = "network.protocol.version";
    /// Low-cardinality reason of a failure: a status code or one of ours (`timeout`, `connection_closed`).
    pub const ERROR_TYPE: &str = "error.type";
    /// Value of the request's `User-Agent`.
    pub const USER_AGENT_ORIGINAL: &str = "user_agent.original";
    /// Seconds from the request's first byte to the response's first byte.
    pub const COATI_TIME_TO_FIRST_BYTE: &str = "coati.http.time_to_first_byte";
    /// Seconds from the response's first byte to its last.
    pub const COATI_RESPONSE_DURATION: &str = "coati.http.response.duration";
    /// System calls that moved the response; of HTTP/2 its frames.
    pub const COATI_RESPONSE_CHUNKS: &str = "coati.http.response.chunks";
    /// Messages that this end of a WebSocket has sent.
    pub const COATI_WEBSOCKET_MESSAGES_SENT: &str = "coati.websocket.messages_sent";
    /// Messages that it has received.
    pub const COATI_WEBSOCKET_MESSAGES_RECEIVED: &str = "coati.websocket.messages_received";
    /// Bytes of frames that it has sent.
    pub const COATI_WEBSOCKET_BYTES_SENT: &str = "coati.websocket.bytes_sent";
    /// Bytes of frames that it has received.
    pub const COATI_WEBSOCKET_BYTES_RECEIVED: &str = "coati.websocket.bytes_received";
    /// Code with which it was closed.
    pub const COATI_WEBSOCKET_CLOSE_CODE: &str = "coati.websocket.close_code";
    /// Bytes of the request so far; of an event `progress`.
    pub const COATI_PROGRESS_REQUEST_BYTES: &str = "coati.progress.request_bytes";
    /// Bytes of the response so far; of an event `progress`.
    pub const COATI_PROGRESS_RESPONSE_BYTES: &str = "coati.progress.response_bytes";
    /// System calls that have moved the response so far, of HTTP/2 frames; of an event `progress`.
    pub const COATI_PROGRESS_CHUNKS: &str = "coati.progress.chunks";
    /// `grpc`.
    pub const RPC_SYSTEM: &str = "rpc.system";
    /// Full name of the service, package included.
    pub const RPC_SERVICE: &str = "rpc.service";
    /// Name of the method.
    pub const RPC_METHOD: &str = "rpc.method";
    /// Status code of gRPC.
    pub const RPC_GRPC_STATUS_CODE: &str = "rpc.grpc.status_code";
    /// What is not known of the exchange: `response`, `end`, `head`.
    pub const COATI_INCOMPLETE: &str = "coati.incomplete";
    /// True on a span that was sent before its end: what was known of it by then. One with the same ids, kind and start
    /// that ends later, or lacks this, replaces it.
    pub const COATI_SPAN_PARTIAL: &str = "coati.span.partial";
}

/// What a span says of a GPU, and the names of the events.
pub mod gpu {
    /// UUID of the device.
    pub const HW_ID: &str = "hw.id";
    /// Always `gpu`.
    pub const HW_TYPE: &str = "hw.type";
    /// Product name of the device.
    pub const HW_NAME: &str = "hw.name";
    /// Version of the driver.
    pub const HW_DRIVER_VERSION: &str = "hw.driver_version";
    /// Use of the device, mean over the span, 0 to 1.
    pub const HW_UTILIZATION: &str = "hw.gpu.utilization";
    /// Bytes of device memory of the process, highest in the span.
    pub const HW_MEMORY_USAGE: &str = "hw.gpu.memory.usage";
    /// Watts of the device, mean over the span.
    pub const HW_POWER: &str = "hw.power";
    /// Joules in the span that are the process's.
    pub const HW_ENERGY: &str = "hw.energy";
    /// Degrees Celsius, highest in the span.
    pub const HW_TEMPERATURE: &str = "hw.temperature";
    /// Use of the device, highest in the span.
    pub const COATI_UTILIZATION_MAX: &str = "coati.gpu.utilization.max";
    /// Use of the multiprocessors by the process, mean over the span.
    pub const COATI_PROCESS_UTILIZATION: &str = "coati.gpu.process.utilization";
    /// Bytes of device memory in use by anybody, highest in the span.
    pub const COATI_MEMORY_USAGE: &str = "coati.gpu.memory.usage";
    /// Joules of the device in the span.
    pub const COATI_ENERGY: &str = "coati.gpu.energy";
    /// How the process's joules were told from the device's: `sm_utilization`, `sole_process`.
    pub const COATI_ENERGY_METHOD: &str = "coati.gpu.energy.method";
    /// Joules for each token that was generated.
    pub const COATI_ENERGY_PER_TOKEN: &str = "coati.gpu.energy.per_token";
    /// Part of the span that samples speak for, 0 to 1.
    pub const COATI_COVERAGE: &str = "coati.gpu.coverage";
    /// Samples that speak for a part of the span.
    pub const COATI_SAMPLES: &str = "coati.gpu.samples";
    /// Other services that used the device in the span.
    pub const COATI_OTHERS: &str = "coati.gpu.others";
    /// Every device, where the process used several.
    pub const COATI_IDS: &str = "coati.gpu.ids";
    /// UUID of the GPU that a MIG device is a part of.
    pub const COATI_PARENT_ID: &str = "coati.gpu.parent.id";
    /// Most requests among which what the process used was divided at a time.
    pub const COATI_REQUESTS: &str = "coati.gpu.requests";
    /// Kernels launched through CUDA's driver.
    pub const CUDA_LAUNCHES: &str = "coati.gpu.cuda.launches";
    /// Graphs launched.
    pub const CUDA_GRAPH_LAUNCHES: &str = "coati.gpu.cuda.graph_launches";
    /// Bytes copied from the host to a device.
    pub const CUDA_COPIED_TO_DEVICE: &str = "coati.gpu.cuda.copied.host_to_device";
    /// Bytes copied from a device to the host.
    pub const CUDA_COPIED_TO_HOST: &str = "coati.gpu.cuda.copied.device_to_host";
    /// Bytes copied within a device or between devices.
    pub const CUDA_COPIED_ON_DEVICE: &str = "coati.gpu.cuda.copied.device_to_device";
    /// Bytes copied by calls that leave the direction to the addresses.
    pub const CUDA_COPIED_UNSPECIFIED: &str = "coati.gpu.cuda.copied.unspecified";
    /// Allocations of device memory.
    pub const CUDA_ALLOCATIONS: &str = "coati.gpu.cuda.allocations";
    /// Bytes of them.
    pub const CUDA_ALLOCATED: &str = "coati.gpu.cuda.allocated";
    /// Allocations given back.
    pub const CUDA_FREES: &str = "coati.gpu.cuda.frees";
    /// Calls that waited for the device.
    pub const CUDA_SYNCHRONIZATIONS: &str = "coati.gpu.cuda.synchronizations";
    /// Seconds in them, of all threads.
    pub const CUDA_BLOCKED: &str = "coati.gpu.cuda.synchronization.duration";
    /// Event: something kept the device's clocks down.
    pub const THROTTLED_EVENT: &str = "coati.gpu.throttled";
    /// What.
    pub const COATI_THROTTLE_REASON: &str = "coati.gpu.throttle.reason";
    /// Event: the driver told of a critical error.
    pub const XID_EVENT: &str = "coati.gpu.xid";
    /// Its number.
    pub const COATI_XID: &str = "coati.gpu.xid.code";
}

/// What a span says of an inference request.
pub mod gen_ai {
    /// `chat`, `text_completion`, `embeddings`; ours: `predict`.
    pub const OPERATION_NAME: &str = "gen_ai.operation.name";
    /// `ollama`, `openai`, …
    pub const PROVIDER_NAME: &str = "gen_ai.provider.name";
    /// Model that was asked for.
    pub const REQUEST_MODEL: &str = "gen_ai.request.model";
    /// Model that answered.
    pub const RESPONSE_MODEL: &str = "gen_ai.response.model";
    /// Tokens of the prompt.
    pub const INPUT_TOKENS: &str = "gen_ai.usage.input_tokens";
    /// Tokens that were generated.
    pub const OUTPUT_TOKENS: &str = "gen_ai.usage.output_tokens";
    /// Why generation ended.
    pub const FINISH_REASONS: &str = "gen_ai.response.finish_reasons";
    /// Whether tokens are sent as they come.
    pub const REQUEST_STREAM: &str = "gen_ai.request.stream";
    /// Seconds from the request's first byte to the first byte of the response's body.
    pub const TIME_TO_FIRST_CHUNK: &str = "gen_ai.response.time_to_first_chunk";
    /// Seconds from the request's first byte to the first event of the response that has a token.
    pub const COATI_TIME_TO_FIRST_TOKEN: &str = "coati.inference.time_to_first_token";
    /// Seconds from one token to the next, mean.
    pub const COATI_TIME_PER_TOKEN: &str = "coati.inference.time_per_output_token";
    /// Tokens per second of generation.
    pub const COATI_TOKENS_PER_SECOND: &str = "coati.inference.tokens_per_second";
    /// Seconds in which the model was loaded, as the server says.
    pub const COATI_LOAD_DURATION: &str = "coati.inference.load.duration";
    /// Seconds for the prompt, as the server says.
    pub const COATI_PROMPT_DURATION: &str = "coati.inference.prompt.duration";
    /// Seconds for the tokens, as the server says.
    pub const COATI_GENERATION_DURATION: &str = "coati.inference.generation.duration";
    /// The model was loaded for this request.
    pub const COATI_COLD_LOAD: &str = "coati.inference.cold_load";
    /// Messages of the prompt, as JSON; only where that is switched on.
    pub const INPUT_MESSAGES: &str = "gen_ai.input.messages";
    /// The answer, as JSON; the same.
    pub const OUTPUT_MESSAGES: &str = "gen_ai.output.messages";
    /// Of the prompt only the start is known.
    pub const COATI_INPUT_TRUNCATED: &str = "coati.inference.input.truncated";
    /// Of the answer only the start and the end are known.
    pub const COATI_OUTPUT_TRUNCATED: &str = "coati.inference.output.truncated";
    /// [`OPERATION_NAME`] as a label of Prometheus.
    pub const LABEL_OPERATION_NAME: &str = "gen_ai_operation_name";
    /// [`PROVIDER_NAME`] as a label of Prometheus.
    pub const LABEL_PROVIDER_NAME: &str = "gen_ai_provider_name";
    /// [`REQUEST_MODEL`] as a label of Prometheus.
    pub const LABEL_REQUEST_MODEL: &str = "gen_ai_request_model";
}
