//! The shop: services, their instances, routes.

use coati_common::wellknown::resource as key;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;

use super::numbers::Numbers;

/// A service: its name, language and version of its SDK, executable.
type Service = (&'static str, &'static str, &'static str, &'static str);

/// The first one is called from outside.
const SERVICES: [Service; 16] = [
    ("gateway", "go", "1.38.0", "gateway"),
    ("storefront", "nodejs", "2.12.1", "node"),
    ("catalog", "go", "1.38.0", "catalog"),
    ("search", "java", "1.54.0", "java"),
    ("cart", "dotnet", "1.13.1", "dotnet"),
    ("checkout", "go", "1.38.0", "checkout"),
    ("payment", "java", "1.54.0", "java"),
    ("pricing", "python", "1.45.2", "python3.13"),
    ("stock", "go", "1.38.0", "stock"),
    ("shipping", "rust", "0.33.1", "shipping"),
    ("accounts", "java", "1.54.0", "java"),
    ("sessions", "go", "1.38.0", "sessions"),
    ("reviews", "python", "1.45.2", "python3.13"),
    ("recommendations", "python", "1.45.2", "python3.13"),
    ("images", "nodejs", "2.12.1", "node"),
    ("notifications", "nodejs", "2.12.1", "node"),
];

/// Method and template; `{id}` stands for one of 100,000 numbers.
pub(super) const ROUTES: [(&str, &str); 12] = [
    ("GET", "/products/{id}"),
    ("GET", "/products"),
    ("GET", "/search"),
    ("GET", "/cart/{id}"),
    ("POST", "/cart/{id}/items"),
    ("POST", "/checkout"),
    ("POST", "/payments"),
    ("GET", "/prices/{id}"),
    ("GET", "/stock/{id}"),
    ("GET", "/accounts/{id}"),
    ("GET", "/images/{id}"),
    ("POST", "/events"),
];

/// One of the two or three processes of a service.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Instance {
    service: usize,
    number: u64,
}

impl Instance {
    /// An instance of the service that is called from outside.
    pub(super) fn entry(numbers: &mut Numbers) -> Self {
        Self::of(0, numbers)
    }

    /// An instance of one of the services that this one calls: four others.
    pub(super) fn callee(self, numbers: &mut Numbers) -> Self {
        let step = 1 + numbers.below(4) as usize * 2;
        let service = (self.service + step) % SERVICES.len();
        // Nobody inside calls the gateway.
        Self::of(service.max(1), numbers)
    }

    fn of(service: usize, numbers: &mut Numbers) -> Self {
        Self { service, number: numbers.below(2 + service as u64 % 2) }
    }

    /// One of the three routes that it serves.
    pub(super) fn route(self, numbers: &mut Numbers) -> (&'static str, &'static str) {
        let index = (self.service * 5 + numbers.below(3) as usize) % ROUTES.len();
        ROUTES.get(index).copied().unwrap_or_default()
    }

    pub(super) fn service_name(self) -> &'static str {
        let (name, ..) = self.facts();
        name
    }

    pub(super) fn address(self) -> String {
        format!("10.42.{}.{}", self.node(), 10 + self.service as u64 * 3 + self.number)
    }

    /// The port of one of the 16 connections that it keeps to those it calls.
    pub(super) fn port(self, numbers: &mut Numbers) -> u64 {
        let first = 32_768 + (self.service as u64 * 3 + self.number) * 547;
        first + numbers.below(16) * 31
    }

    /// What it sends its spans under.
    pub(super) fn resource(self) -> Resource {
        let (name, language, version, executable) = self.facts();
        let attributes = vec![
            text(key::SERVICE_NAME, name),
            text(key::SERVICE_NAMESPACE, "shop"),
            text(key::SERVICE_INSTANCE_ID, format!("shop.{name}-7d9c5b8f6{}-x2x{}", self.service, self.number)),
            text(key::HOST_NAME, format!("node-{}", self.node())),
            text(key::OS_TYPE, "linux"),
            integer(key::PROCESS_PID, 1_000 + self.service as u64 * 37 + self.number * 211),
            text(key::PROCESS_EXECUTABLE_NAME, executable),
            text(key::TELEMETRY_SDK_LANGUAGE, language),
            text(key::TELEMETRY_SDK_VERSION, version),
        ];
        Resource { attributes, ..Resource::default() }
    }

    fn node(self) -> u64 {
        (self.service as u64 + self.number) % 4
    }

    fn facts(self) -> Service {
        SERVICES.get(self.service).copied().unwrap_or_default()
    }
}

pub(super) fn text(key: &str, value: impl Into<String>) -> KeyValue {
    attribute(key, Value::StringValue(value.into()))
}

pub(super) fn integer(key: &str, value: u64) -> KeyValue {
    attribute(key, Value::IntValue(value as i64))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}
