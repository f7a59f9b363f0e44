//! Prometheus' relabelling (`write_relabel_configs`): which series a server gets, and what their labels are.

use std::collections::BTreeMap;

use md5::{Digest, Md5};
use regex::{Captures, Regex};

use crate::config::{RelabelAction, RelabelConfig};

/// Rules, ready to be used.
#[derive(Clone, Debug, Default)]
pub(in crate::generator) struct Relabeling {
    rules: Vec<Rule>,
}

#[derive(Clone, Debug)]
struct Rule {
    action: RelabelAction,
    source_labels: Vec<String>,
    separator: String,
    regex: Regex,
    target_label: String,
    replacement: String,
    modulus: u64,
}

/// A rule that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RelabelError {
    /// A key is missing that the action needs.
    #[error("{key}: needed by the action `{action}`")]
    Missing {
        /// The key.
        key: &'static str,
        /// The action.
        action: &'static str,
    },
    /// A key is there that the action does not look at.
    #[error("{key}: not used by the action `{action}`")]
    Unused {
        /// The key.
        key: &'static str,
        /// The action.
        action: &'static str,
    },
    /// The name cannot be that of a label.
    #[error("{key}: expected the name of a label, found `{text}`")]
    Name {
        /// The key.
        key: &'static str,
        /// What stands there.
        text: String,
    },
    /// The regular expression is none.
    #[error("regex: expected a regular expression, found `{text}`")]
    Regex {
        /// What stands there.
        text: String,
        /// Why it is none.
        #[source]
        source: Box<regex::Error>,
    },
}

/// Names and values of labels.
type Labels = BTreeMap<String, String>;

impl Relabeling {
    /// Fails with the first rule that cannot be used: its place, from 0, and why.
    pub(in crate::generator) fn new(configs: &[RelabelConfig]) -> Result<Self, (usize, RelabelError)> {
        let rules = configs.iter().enumerate().map(|(place, config)| Rule::new(config).map_err(|error| (place, error)));
        Ok(Self { rules: rules.collect::<Result<_, _>>()? })
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The labels that a series has for the server; none if it does not get the series.
    pub(super) fn apply(&self, labels: &[(&str, &str)]) -> Option<Labels> {
        let mut labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let kept = self.rules.iter().all(|rule| rule.apply(&mut labels));
        // A label without a value is one that is not there.
        labels.retain(|_, value| !value.is_empty());
        (kept && !labels.is_empty()).then_some(labels)
    }
}

impl Rule {
    fn new(config: &RelabelConfig) -> Result<Self, RelabelError> {
        use RelabelAction as Action;
        let RelabelConfig { action, source_labels, separator, regex, target_label, replacement, modulus } = config;
        let name = action.name();
        let missing = |key| RelabelError::Missing { key, action: name };
        let unused = |key| RelabelError::Unused { key, action: name };
        let bad_name = |key, text: &str| RelabelError::Name { key, text: text.to_owned() };
        match action {
            Action::Replace
            | Action::HashMod
            | Action::Lowercase
            | Action::Uppercase
            | Action::KeepEqual
            | Action::DropEqual => {
                if target_label.is_empty() {
                    return Err(missing("target_label"));
                }
                // Only a replacement may name it by what was matched.
                let is_name =
                    if *action == Action::Replace { is_template(target_label) } else { is_label(target_label) };
                if !is_name {
                    return Err(bad_name("target_label", target_label));
                }
            }
            Action::LabelMap if !is_template(replacement) => return Err(bad_name("replacement", replacement)),
            Action::LabelDrop | Action::LabelKeep => {
                let given = [("source_labels", !source_labels.is_empty()), ("target_label", !target_label.is_empty())];
                if let Some((key, _)) = given.into_iter().find(|(_, given)| *given) {
                    return Err(unused(key));
                }
            }
            Action::LabelMap | Action::Keep | Action::Drop => {}
        }
        match (action, modulus) {
            (Action::HashMod, 0) => return Err(missing("modulus")),
            (Action::HashMod, _) | (_, 0) => {}
            _ => return Err(unused("modulus")),
        }
        if let Some(label) = source_labels.iter().find(|label| !is_label(label)) {
            return Err(bad_name("source_labels", label));
        }
        // It is to match the whole text.
        let compiled = Regex::new(&format!("^(?s:{regex})$"));
        Ok(Self {
            action: *action,
            source_labels: source_labels.clone(),
            separator: separator.clone(),
            regex: compiled.map_err(|error| RelabelError::Regex { text: regex.clone(), source: Box::new(error) })?,
            target_label: target_label.clone(),
            replacement: replacement.clone(),
            modulus: *modulus,
        })
    }

    /// False if the series is left out.
    fn apply(&self, labels: &mut Labels) -> bool {
        let value_of = |name: &str| labels.get(name).map(String::as_str).unwrap_or_default();
        let joined = self.source_labels.iter().map(|name| value_of(name)).collect::<Vec<_>>().join(&self.separator);
        match self.action {
            RelabelAction::Keep => return self.regex.is_match(&joined),
            RelabelAction::Drop => return !self.regex.is_match(&joined),
            RelabelAction::KeepEqual => return value_of(&self.target_label) == joined,
            RelabelAction::DropEqual => return value_of(&self.target_label) != joined,
            RelabelAction::Replace => {
                let Some(found) = self.regex.captures(&joined) else { return true };
                let target = expanded(&found, &self.target_label);
                if is_label(&target) {
                    labels.insert(target, expanded(&found, &self.replacement));
                }
            }
            RelabelAction::HashMod => {
                labels.insert(self.target_label.clone(), (hash(&joined) % self.modulus.max(1)).to_string());
            }
            RelabelAction::Lowercase => {
                labels.insert(self.target_label.clone(), joined.to_lowercase());
            }
            RelabelAction::Uppercase => {
                labels.insert(self.target_label.clone(), joined.to_uppercase());
            }
            RelabelAction::LabelMap => {
                let mapped: Vec<_> = labels
                    .iter()
                    .filter_map(|(name, value)| Some((self.regex.captures(name)?, value)))
                    .map(|(found, value)| (expanded(&found, &self.replacement), value.clone()))
                    .collect();
                labels.extend(mapped);
            }
            RelabelAction::LabelDrop => labels.retain(|name, _| !self.regex.is_match(name)),
            RelabelAction::LabelKeep => labels.retain(|name, _| self.regex.is_match(name)),
        }
        true
    }
}

/// A text with `$1`, `${1}` and `${name}` replaced by what was matched.
fn expanded(found: &Captures<'_>, template: &str) -> String {
    let mut text = String::new();
    found.expand(template, &mut text);
    text
}

/// The last half of MD5, as Prometheus takes it.
fn hash(text: &str) -> u64 {
    let digest = Md5::digest(text);
    digest.last_chunk().map_or(0, |last| u64::from_be_bytes(*last))
}

fn is_label(name: &str) -> bool {
    let letter = |letter: char| letter.is_ascii_alphabetic() || letter == '_';
    name.starts_with(letter) && name.chars().all(|each| letter(each) || each.is_ascii_digit())
}

/// Whether it can become the name of a label.
fn is_template(text: &str) -> bool {
    let as_matched = text.replace("${", "").replace(['$', '}'], "");
    let begins_matched = text.starts_with('$');
    !text.is_empty() && (is_label(&as_matched) || begins_matched && is_label(&format!("_{as_matched}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const LABELS: [(&str, &str); 4] =
        [("__name__", "traces_spanmetrics_calls_total"), ("env", "Prod"), ("pod_name", "a-1"), ("service", "shop")];

    fn rules(yaml: &str) -> Result<Relabeling, String> {
        let configs: Vec<RelabelConfig> = serde_saphyr::from_str(yaml).unwrap();
        Relabeling::new(&configs).map_err(|(place, error)| format!("[{place}].{error}"))
    }

    fn shown(labels: Option<&Labels>) -> String {
        let labels = labels.into_iter().flatten().filter(|(name, _)| *name != "__name__");
        labels.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
    }

    #[rstest]
    #[case::nothing("[]", "env=Prod pod_name=a-1 service=shop")]
    #[case::keep(
        "[{action: keep, source_labels: [service, env], regex: 'shop;P.*'}]",
        "env=Prod pod_name=a-1 service=shop"
    )]
    #[case::keep_other("[{action: keep, source_labels: [service], regex: 'sho'}]", "")]
    #[case::drop("[{action: drop, source_labels: [__name__], regex: 'traces_.*'}]", "")]
    #[case::drop_other("[{action: drop, source_labels: [absent], regex: '.+'}]", "env=Prod pod_name=a-1 service=shop")]
    #[case::replace(
        "[{source_labels: [pod_name], regex: '(.*)-(\\d+)', target_label: 'pod_$2', replacement: '${1}x$2'}]",
        "env=Prod pod_1=ax1 pod_name=a-1 service=shop"
    )]
    #[case::replace_constant(
        "[{target_label: cluster, replacement: home}]",
        "cluster=home env=Prod pod_name=a-1 service=shop"
    )]
    #[case::replace_with_nothing(
        "[{source_labels: [env], target_label: service, replacement: ''}]",
        "env=Prod pod_name=a-1"
    )]
    #[case::replace_no_match(
        "[{source_labels: [env], regex: 'x', target_label: service}]",
        "env=Prod pod_name=a-1 service=shop"
    )]
    #[case::labelmap(
        "[{action: labelmap, regex: 'pod_(.+)', replacement: 'k8s_$1'}]",
        "env=Prod k8s_name=a-1 pod_name=a-1 service=shop"
    )]
    #[case::labeldrop("[{action: labeldrop, regex: 'pod_.*|env'}]", "service=shop")]
    #[case::labelkeep("[{action: labelkeep, regex: '__name__|service'}]", "service=shop")]
    #[case::lowercase(
        "[{action: lowercase, source_labels: [env], target_label: env}]",
        "env=prod pod_name=a-1 service=shop"
    )]
    #[case::uppercase(
        "[{action: uppercase, source_labels: [env, service], separator: '/', target_label: both}]",
        "both=PROD/SHOP env=Prod pod_name=a-1 service=shop"
    )]
    #[case::keepequal("[{action: keepequal, source_labels: [env], target_label: service}]", "")]
    #[case::dropequal(
        "[{action: dropequal, source_labels: [env], target_label: service}]",
        "env=Prod pod_name=a-1 service=shop"
    )]
    #[case::in_their_order(
        "[{target_label: a, replacement: x}, {source_labels: [a], target_label: b}, {action: labeldrop, regex: '[^b_].*'}]",
        "b=x"
    )]
    fn labels_of_the_server(#[case] yaml: &str, #[case] expected: &str) {
        assert_eq!(shown(rules(yaml).unwrap().apply(&LABELS).as_ref()), expected);
    }

    /// The last eight bytes of MD5, which of nothing is d41d8cd98f00b204e9800998ecf8427e.
    #[test]
    fn hashmod_is_prometheus() {
        assert_eq!(hash(""), 0xe980_0998_ecf8_427e);
        let rules = rules("[{action: hashmod, source_labels: [absent], modulus: 1000, target_label: shard}]").unwrap();
        assert_eq!(rules.apply(&LABELS).unwrap()["shard"], (0xe980_0998_ecf8_427e_u64 % 1000).to_string());
    }

    #[rstest]
    #[case("[{source_labels: [a]}]", "[0].target_label: needed by the action `replace`")]
    #[case("[{action: drop}, {action: hashmod, target_label: a}]", "[1].modulus: needed by the action `hashmod`")]
    #[case("[{action: keep, modulus: 3}]", "[0].modulus: not used by the action `keep`")]
    #[case("[{target_label: 'a b'}]", "[0].target_label: expected the name of a label, found `a b`")]
    #[case("[{action: lowercase, target_label: '$1'}]", "[0].target_label: expected the name of a label, found `$1`")]
    #[case("[{action: labelmap, replacement: '-$1'}]", "[0].replacement: expected the name of a label, found `-$1`")]
    #[case("[{action: labeldrop, source_labels: [a]}]", "[0].source_labels: not used by the action `labeldrop`")]
    #[case("[{action: keep, regex: '('}]", "[0].regex: expected a regular expression, found `(`")]
    #[case("[{action: keep, source_labels: ['a-b']}]", "[0].source_labels: expected the name of a label, found `a-b`")]
    fn rules_that_cannot_be_used(#[case] yaml: &str, #[case] expected: &str) {
        assert_eq!(rules(yaml).unwrap_err(), expected);
    }
}
