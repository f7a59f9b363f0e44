//! Attribute names that the agent emits and the backend stores in typed columns.
//!
//! Names are those of the OpenTelemetry semantic conventions; what is ours begins with `coati.`.

/// Attributes of a resource.
pub mod resource {
    /// Logical name of the service.
    pub const SERVICE_NAME: &str = "service.name";
    /// Namespace of the service.
    pub const SERVICE_NAMESPACE: &str = "service.namespace";
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
}
