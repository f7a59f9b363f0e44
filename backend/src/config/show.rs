//! The configuration as it is shown to people: without secrets.
//!
//! It is put together of the documents that people write, not of what they are read into: the example with every key and its
//! default, the file, and what flags and variables say.

use serde_json::{Map, Value};

use super::{SETTINGS, foreign};

/// Every key with its default.
const DEFAULTS: &str = include_str!("../../../deploy/backend.yaml");

/// What stands for a secret.
const HIDDEN: &str = "***";

/// What was said at the start.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Given(Value);

/// How much is shown.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Shown {
    /// What is in force.
    #[default]
    InForce,
    /// Of that, what is not the default.
    Different,
    /// The defaults.
    Defaults,
}

impl Given {
    /// What a file says; that it is one has been found out before.
    pub(crate) fn of_file(text: &str) -> Self {
        Self(serde_saphyr::from_str(text).unwrap_or_default())
    }

    /// What a flag or a variable says instead.
    pub(crate) fn set(&mut self, setting: &str, value: &str) {
        let Some((_, path)) = SETTINGS.iter().find(|(name, _)| *name == setting) else { return };
        let mut place = &mut self.0;
        for key in path.split('.') {
            if !place.is_object() {
                *place = Value::Object(Map::new());
            }
            let Value::Object(map) = place else { return };
            place = map.entry(key).or_insert(Value::Null);
        }
        // `true` and `false` are not texts; all else is shown alike.
        *place = value.parse::<bool>().map_or_else(|_| value.into(), Value::Bool);
    }

    /// What is in force of `metrics_generator`, with secrets.
    pub(crate) fn metrics_generator(&self) -> Value {
        let defaults: Value = serde_saphyr::from_str(DEFAULTS).unwrap_or_default();
        merged(&defaults, &self.0).get("metrics_generator").cloned().unwrap_or_default()
    }

    /// What a file says that is Tempo's and means nothing here, one line each.
    pub fn warnings(&self) -> Vec<String> {
        self.0.get("metrics_generator").map(foreign::warnings).unwrap_or_default()
    }

    /// As YAML, without secrets.
    pub fn yaml(&self, shown: Shown) -> String {
        let defaults: Value = serde_saphyr::from_str(DEFAULTS).unwrap_or_default();
        let mut value = match shown {
            Shown::InForce => merged(&defaults, &self.0),
            Shown::Different => different(&defaults, &self.0).unwrap_or_else(|| Value::Object(Map::new())),
            Shown::Defaults => defaults,
        };
        hide(&mut value);
        serde_saphyr::to_string(&value).unwrap_or_else(|error| format!("# {error}\n"))
    }
}

/// `given` wins; maps are one map.
fn merged(default: &Value, given: &Value) -> Value {
    match (default, given) {
        (Value::Object(default), Value::Object(given)) => {
            let mut all = default.clone();
            for (key, given) in given {
                let default = default.get(key).unwrap_or(&Value::Null);
                all.insert(key.clone(), merged(default, given));
            }
            Value::Object(all)
        }
        (default, Value::Null) => default.clone(),
        (_, given) => given.clone(),
    }
}

fn different(default: &Value, given: &Value) -> Option<Value> {
    match (default, given) {
        (Value::Object(default), Value::Object(given)) => {
            let differs = |(key, given): (&String, &Value)| {
                Some((key.clone(), different(default.get(key).unwrap_or(&Value::Null), given)?))
            };
            let all: Map<String, Value> = given.iter().filter_map(differs).collect();
            (!all.is_empty()).then_some(Value::Object(all))
        }
        (default, given) => (default != given && !given.is_null()).then(|| given.clone()),
    }
}

/// Hides what has the name of a secret. Files and variables that hold one are no secrets.
pub(crate) fn hide(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                if is_secret(key) { hide_all(value) } else { hide(value) }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(hide),
        Value::String(text) => {
            if let Some(without) = without_user(text) {
                *text = without;
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn is_secret(key: &str) -> bool {
    key.ends_with("headers")
        || key == "access_key"
        || (["password", "secret", "token"].iter().any(|word| key.contains(word))
            && !["_file", "_env"].iter().any(|end| key.ends_with(end)))
}

fn hide_all(value: &mut Value) {
    match value {
        Value::Object(map) => map.values_mut().for_each(hide_all),
        Value::Array(items) => items.iter_mut().for_each(hide_all),
        Value::Null => {}
        Value::String(text) if text.is_empty() => {}
        _ => *value = HIDDEN.into(),
    }
}

/// A URL without user and password, if it has them.
fn without_user(text: &str) -> Option<String> {
    let (scheme, rest) = text.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let (_, host) = authority.rsplit_once('@')?;
    Some(format!("{scheme}://{HIDDEN}@{host}{}", rest.get(authority.len()..)?))
}

#[cfg(test)]
mod tests {
    use super::super::{Config, read as read_file};
    use super::*;

    const FILE: &str = "
data_dir: /data
multitenancy: true
retention: {age: 7d, tenants: {a: {age: 90d}}}
auth:
  credentials:
  - {token_env: TOKEN, listeners: [api]}
  - {username: grafana, password_file: /etc/password}
storage:
  backend: s3
  s3: {bucket: traces, access_key: hidden, secret_key: hidden, session_token: hidden, credentials_file: /etc/keys}
metrics_generator:
  processor: {span_metrics: {span_multiplier_key: ratio}}
  tenants: {a: {remote_write_headers: {X-Scope-OrgID: hidden}}}
  storage:
    remote_write:
    - {url: 'https://user:hidden@prometheus:9090/api/v1/write?a=b@c', headers: {Authorization: hidden}, basic_auth: {username: coati, password: hidden}}
";

    #[test]
    fn what_is_not_the_default_is_shown_without_secrets() {
        let mut given = Given::of_file(FILE);
        given.set("retention", "36h");
        given.set("compaction", "false");
        given.set("api-listen", "127.0.0.1:1");
        insta::assert_snapshot!(given.yaml(Shown::Different), @r#"
        auth:
          credentials:
          - listeners:
            - api
            token_env: TOKEN
          - password_file: /etc/password
            username: grafana
        compaction:
          enabled: false
        data_dir: /data
        listen:
          api: 127.0.0.1:1
        metrics_generator:
          processor:
            span_metrics:
              span_multiplier_key: ratio
          storage:
            remote_write:
            - basic_auth:
                password: "***"
                username: coati
              headers:
                Authorization: "***"
              url: https://***@prometheus:9090/api/v1/write?a=b@c
          tenants:
            a:
              remote_write_headers:
                X-Scope-OrgID: "***"
        multitenancy: true
        retention:
          age: 36h
          tenants:
            a:
              age: 90d
        storage:
          backend: s3
          s3:
            access_key: "***"
            bucket: traces
            credentials_file: /etc/keys
            secret_key: "***"
            session_token: "***"
        "#);
    }

    #[test]
    fn secrets_are_nowhere() {
        let given = Given::of_file(FILE);
        for shown in [Shown::InForce, Shown::Different] {
            let yaml = given.yaml(shown);
            assert!(!yaml.contains("hidden") && yaml.contains(HIDDEN), "{yaml}");
        }
    }

    /// What is shown can be used as a file, and means the same.
    #[test]
    fn what_is_in_force_is_read_as_it_was() {
        let text = "listen: {api: '[::1]:0'}\nquery: {mcp: true}\nretention: {max_bytes: 1GiB}\n";
        let file = tempfile::NamedTempFile::new().unwrap();
        let read = |text: &str| {
            std::fs::write(&file, text).unwrap();
            read_file(file.path()).unwrap()
        };
        let given = Given::of_file(text);
        for shown in [Shown::InForce, Shown::Different] {
            let again = read(&given.yaml(shown));
            assert_eq!(Config { given: given.clone(), ..again }, read(text));
        }
        let defaults = read(&Given::default().yaml(Shown::Defaults));
        assert_eq!(Config { given: Given::default(), ..defaults }, Config::default());
        assert_eq!(Given::default().yaml(Shown::InForce), Given::default().yaml(Shown::Defaults));
        assert_eq!(Given::default().yaml(Shown::Different).trim(), "{}");
    }
}
