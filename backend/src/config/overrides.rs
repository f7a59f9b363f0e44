//! What tenants may set themselves, at `/api/overrides`. The keys are Tempo's.

use std::time::Duration;

use serde::Deserialize;

use super::value::text;

/// What is different for some tenants.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct OverridesConfig {
    /// What they may set themselves.
    pub user_configurable_overrides: UserConfigurableOverrides,
}

/// What tenants may set themselves.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct UserConfigurableOverrides {
    /// Whether there is `/api/overrides`.
    #[serde(deserialize_with = "text")]
    pub enabled: bool,
    /// Time between two looks at what other backends on the same store were told.
    #[serde(deserialize_with = "text")]
    pub poll_interval: Duration,
}

impl Default for UserConfigurableOverrides {
    fn default() -> Self {
        Self { enabled: false, poll_interval: Duration::from_mins(1) }
    }
}
