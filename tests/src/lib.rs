//! Harness of the end-to-end tests, the demo and the benchmarks: it starts real programs and ends each by its own id.

pub mod agent;
pub mod asking;
pub mod backend;
pub mod certificate;
pub mod cuda;
pub mod dashboards;
pub mod fault;
pub mod front;
pub mod guest;
pub mod http;
pub mod inference;
pub mod kubernetes;
pub mod load;
pub mod manifests;
pub mod metrics_page;
pub mod moto;
pub mod nodes;
pub mod outage;
pub mod privileges;
pub mod process;
pub mod prometheus;
pub mod rgw;
pub mod sample;
pub mod scenario;
pub mod seen;
pub mod tools;
