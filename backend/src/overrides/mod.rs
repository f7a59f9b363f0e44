//! Settings that are different for some tenants: what the configuration's file says of them, and over it what they said
//! themselves at `/api/overrides`. That lies in the store of blocks, so that all backends on it know it.

mod limits;
mod stored;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use serde_json::{Map, Value, json};
use tracing::warn;

use crate::config::{Config, GeneratorConfig, Given, TenantGenerator, hide};
use crate::generator::{self, Generator, SettingError};
use crate::store::{Store, StoreError};
use crate::telemetry::{GeneratorMetrics, chain};
pub use limits::LimitsError;
use limits::{merge_patch, put_over};
use stored::Stored;
pub use stored::{DecodeError, check_stored};

/// The version of what is not there.
pub const NO_VERSION: u64 = 0;

/// Longest text of a tenant's settings, bytes.
pub const MAX_BYTES: usize = 64 << 10;

/// What of `metrics_generator` tenants may set.
const OF_TENANTS: [&str; 8] = [
    "processors",
    "disable_collection",
    "trace_id_label_name",
    "generate_native_histograms",
    "native_histogram_bucket_factor",
    "native_histogram_max_bucket_number",
    "span_name_sanitization",
    "processor",
];

/// What they do not even see, of what the file says of them.
const SECRET: &str = "remote_write_headers";

/// Why settings are not read or changed.
#[derive(Debug, thiserror::Error)]
pub enum OverridesError {
    /// The tenant has said nothing.
    #[error("there are no overrides")]
    NotThere,
    /// They were changed meanwhile.
    #[error("version does not match")]
    Version,
    /// They cannot be used.
    #[error(transparent)]
    Limits(#[from] LimitsError),
    /// Nor can they together with what the file says.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// The store of blocks is not open yet.
    #[error("the store is not open yet")]
    Starting,
    /// The store fails. Worth another try.
    #[error("overrides cannot be read or written at the moment")]
    Store(#[from] StoreError),
    /// What lies in the store cannot be read.
    #[error("{path} cannot be read")]
    Unreadable {
        /// The object.
        path: String,
        /// Why.
        #[source]
        source: DecodeError,
    },
}

/// The settings of all tenants.
pub struct Overrides {
    generator: Arc<Generator>,
    /// Those of all,
    config: GeneratorConfig,
    /// and what is shown of them.
    of_all: Value,
    /// Whether tenants may say something.
    api: bool,
    /// Set when it is open.
    store: OnceLock<Arc<dyn Store>>,
    /// Held while something is written.
    writing: Mutex<()>,
    known: Mutex<Known>,
    metrics: GeneratorMetrics,
}

#[derive(Debug, Default)]
struct Known {
    /// What the file says: as it is used, and as it is shown.
    file: BTreeMap<String, (TenantGenerator, Value)>,
    /// What tenants said.
    stored: BTreeMap<String, Stored>,
}

/// What a tenant said.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    /// Rises with every change.
    pub version: u64,
    /// JSON.
    pub limits: Value,
}

impl Overrides {
    /// With what the configuration says; tenants may say something if that is on, once the store is open.
    pub fn new(config: &Config, generator: Arc<Generator>, metrics: GeneratorMetrics) -> Self {
        let mut of_all = config.given.metrics_generator();
        if let Value::Object(keys) = &mut of_all {
            keys.retain(|key, _| OF_TENANTS.contains(&key.as_str()));
        }
        if let Some(Value::Object(keys)) = of_all.pointer_mut("/processor/service_graphs") {
            // Those are one for all tenants.
            keys.retain(|key, _| !["wait", "max_items"].contains(&key.as_str()));
        }
        let known = Known { file: file_of(&config.metrics_generator, &config.given), ..Known::default() };
        Self {
            generator,
            config: config.metrics_generator.clone(),
            of_all,
            api: config.overrides.user_configurable_overrides.enabled,
            store: OnceLock::new(),
            writing: Mutex::default(),
            known: Mutex::new(known),
            metrics,
        }
    }

    /// Whether tenants may say something.
    pub fn has_api(&self) -> bool {
        self.api
    }

    /// From now on this is where it is kept what tenants say.
    pub fn open(&self, store: Arc<dyn Store>) {
        // Nobody else sets it.
        let _first = self.store.set(store);
    }

    /// Takes what the file says now in place of what it said before. Fails, and changes nothing, if it cannot be used.
    pub fn set_file(&self, config: &Config) -> Result<(), SettingError> {
        generator::check_tenants(&config.metrics_generator)?;
        self.known().file = file_of(&config.metrics_generator, &config.given);
        self.apply();
        Ok(())
    }

    /// Reads what was said to other backends, or before a restart. Blocks.
    pub fn refresh(&self) -> Result<(), OverridesError> {
        let store = self.store()?;
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = stored::versions(store)?;
        let mut known = self.known().stored.clone();
        let before = known.clone();
        known.retain(|tenant, _| newest.contains_key(tenant));
        for (tenant, version) in newest {
            if known.get(&tenant).is_some_and(|known| known.version == version) {
                continue;
            }
            match stored::newest(store, &tenant) {
                Ok(Some(found)) => _ = known.insert(tenant, found),
                Ok(None) => _ = known.remove(&tenant),
                Err(error @ OverridesError::Unreadable { .. }) => {
                    self.metrics.failed_overrides.inc();
                    warn!(tenant, error = %chain(&error), "overrides of a tenant stay as they were");
                }
                Err(error) => return Err(error),
            }
        }
        if known != before {
            self.known().stored = known;
            self.apply();
        }
        Ok(())
    }

    /// What a tenant said.
    pub fn get(&self, tenant: &str) -> Result<Said, OverridesError> {
        self.store()?;
        self.known().stored.get(tenant).and_then(Stored::said).ok_or(OverridesError::NotThere)
    }

    /// All settings of a tenant, and the version of what it said.
    pub fn merged(&self, tenant: &str) -> Result<Said, OverridesError> {
        self.store()?;
        let known = self.known();
        let said = known.stored.get(tenant).and_then(Stored::said);
        let mut all = self.of_all.clone();
        if let Some(mut own) = Self::joined_of(&known, tenant) {
            own.as_object_mut().map(|keys| keys.remove(SECRET));
            put_over(&mut all, &own);
        }
        Ok(Said { version: said.map_or(NO_VERSION, |said| said.version), limits: json!({ "metrics_generator": all }) })
    }

    /// What is in force for a tenant and not for all, without secrets.
    pub fn of(&self, tenant: &str) -> Option<Value> {
        let mut own = Self::joined_of(&self.known(), tenant)?;
        hide(&mut own);
        Some(own)
    }

    /// The tenants for which something is different.
    pub fn tenants(&self) -> BTreeSet<String> {
        let known = self.known();
        let said = known.stored.iter().filter(|(_, stored)| stored.limits.is_some()).map(|(tenant, _)| tenant);
        known.file.keys().chain(said).cloned().collect()
    }

    /// Takes what a tenant says in place of what it said before, whose version is `expected`; gives the new one. It is in
    /// force when this returns, and stays so. Blocks.
    pub fn set(&self, tenant: &str, expected: u64, body: &[u8]) -> Result<u64, OverridesError> {
        let mut limits = Value::Object(Map::new());
        merge_patch(&mut limits, limits::read(body)?);
        self.write(tenant, Some(expected), |_| Some(limits)).map(|said| said.version)
    }

    /// Changes what a tenant said as RFC 7386 has it, whatever its version is if none is expected. Blocks.
    pub fn patch(&self, tenant: &str, expected: Option<u64>, body: &[u8]) -> Result<Said, OverridesError> {
        let patch = limits::read(body)?;
        self.write(tenant, expected, |before| {
            let mut limits = before.unwrap_or_else(|| Value::Object(Map::new()));
            merge_patch(&mut limits, patch);
            Some(limits)
        })
    }

    /// Forgets what a tenant said. Blocks.
    pub fn delete(&self, tenant: &str, expected: u64) -> Result<(), OverridesError> {
        if expected == NO_VERSION {
            return Err(OverridesError::NotThere);
        }
        self.write(tenant, Some(expected), |_| None).map(drop)
    }

    fn write(
        &self,
        tenant: &str,
        expected: Option<u64>,
        change: impl FnOnce(Option<Value>) -> Option<Value>,
    ) -> Result<Said, OverridesError> {
        let store = self.store()?;
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        // Others may have written since it was last read.
        let before = stored::newest(store, tenant)?;
        let said = before.as_ref().and_then(Stored::said);
        if expected.is_some_and(|expected| expected != said.as_ref().map_or(NO_VERSION, |said| said.version)) {
            return Err(OverridesError::Version);
        }
        let limits = change(said.map(|said| said.limits));
        if let Some(limits) = &limits {
            limits::check(limits)?;
            let file = self.known().file.get(tenant).map(|(_, shown)| shown.clone());
            let settings = Self::settings(file.as_ref(), limits)?;
            generator::check_tenant(&self.config, tenant, &settings)?;
        }
        let version = before.map_or(NO_VERSION, |before| before.version) + 1;
        let stored = Stored::new(version, tenant, limits);
        stored.create(store)?;
        let said = stored.said().unwrap_or(Said { version, limits: Value::Null });
        self.known().stored.insert(tenant.to_owned(), stored);
        self.apply();
        stored::remove_below(store, tenant, version);
        Ok(said)
    }

    /// Gives the generator what is in force.
    fn apply(&self) {
        let known = self.known();
        let mut settings: BTreeMap<String, TenantGenerator> =
            known.file.iter().map(|(tenant, (settings, _))| (tenant.clone(), settings.clone())).collect();
        for (tenant, stored) in &known.stored {
            let Some(limits) = &stored.limits else { continue };
            let file = known.file.get(tenant).map(|(_, shown)| shown);
            let own = limits::check(limits).and_then(|()| Self::settings(file, limits)).map_err(OverridesError::from);
            match own.and_then(|own| Ok(generator::check_tenant(&self.config, tenant, &own).map(|()| own)?)) {
                Ok(own) => _ = settings.insert(tenant.clone(), own),
                // A later version may have taken it, or the file has changed.
                Err(error) => {
                    self.metrics.failed_overrides.inc();
                    warn!(tenant, error = %chain(&error), "what a tenant said is not in force");
                }
            }
        }
        if let Err(error) = self.generator.set_tenants(&settings) {
            self.metrics.failed_overrides.inc();
            warn!(error = %chain(&error), "settings of tenants stay as they were");
        }
    }

    /// What a tenant said, over what the file says of it.
    fn settings(file: Option<&Value>, limits: &Value) -> Result<TenantGenerator, LimitsError> {
        limits::typed(Self::joined(file, limits))
    }

    fn joined(file: Option<&Value>, limits: &Value) -> Value {
        let mut joined = file.cloned().unwrap_or_else(|| Value::Object(Map::new()));
        if let Some(said) = limits.get("metrics_generator") {
            put_over(&mut joined, said);
        }
        joined
    }

    /// The same of what is known, with secrets.
    fn joined_of(known: &Known, tenant: &str) -> Option<Value> {
        let file = known.file.get(tenant).map(|(_, shown)| shown);
        match known.stored.get(tenant).and_then(|stored| stored.limits.as_ref()) {
            Some(limits) => Some(Self::joined(file, limits)),
            None => file.cloned(),
        }
    }

    fn store(&self) -> Result<&dyn Store, OverridesError> {
        self.store.get().map(Arc::as_ref).ok_or(OverridesError::Starting)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Overrides {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Overrides").field("api", &self.api).finish_non_exhaustive()
    }
}

/// What the file says of each tenant.
fn file_of(config: &GeneratorConfig, given: &Given) -> BTreeMap<String, (TenantGenerator, Value)> {
    let shown = given.metrics_generator();
    let shown_of = |tenant: &str| shown.get("tenants").and_then(|tenants| tenants.get(tenant)).cloned();
    let with_shown = |(tenant, settings): (&String, &TenantGenerator)| {
        (tenant.clone(), (settings.clone(), shown_of(tenant).unwrap_or_else(|| Value::Object(Map::new()))))
    };
    config.tenants.iter().map(with_shown).collect()
}
