//! Which processes are observed.

use globset::{Glob, GlobMatcher};

/// Which processes spans are made of: those that an `include` rule matches (every one if there are no such rules) and
/// no `exclude` rule does.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Rules of which one must match, if there are any.
    pub include: Vec<Rule>,
    /// Rules of which none may match.
    pub exclude: Vec<Rule>,
}

/// Conditions that must all hold; a rule without any matches nothing.
#[derive(Clone, Debug, Default)]
pub struct Rule {
    /// Shell pattern of the executable's path.
    pub exe_path: Option<GlobMatcher>,
    /// Ports of which the process listens on one.
    pub open_ports: Option<Ports>,
}

impl Selection {
    /// True if rules ask for ports, which a process may open at any time: what is not selected now may be later.
    pub fn depends_on_ports(&self) -> bool {
        self.include.iter().chain(&self.exclude).any(|rule| rule.open_ports.is_some())
    }

    /// Whether the process is to be observed. `listening_on` is asked only if a rule needs it.
    pub(super) fn selects(&self, executable_path: &str, listening_on: impl Fn() -> Vec<u16>) -> bool {
        let matches = |rule: &Rule| rule.matches(executable_path, &listening_on);
        (self.include.is_empty() || self.include.iter().any(matches)) && !self.exclude.iter().any(matches)
    }
}

impl Rule {
    fn matches(&self, executable_path: &str, listening_on: &impl Fn() -> Vec<u16>) -> bool {
        let Self { exe_path, open_ports } = self;
        if exe_path.is_none() && open_ports.is_none() {
            return false;
        }
        exe_path.as_ref().is_none_or(|pattern| pattern.is_match(executable_path))
            && open_ports.as_ref().is_none_or(|ports| listening_on().into_iter().any(|port| ports.contains(port)))
    }
}

/// A pattern for the path of an executable: `*` matches anything, slashes too, `?` one character, `{a,b}` alternatives.
///
/// A pattern without a slash is meant for the file name: `nginx` matches `/usr/sbin/nginx`.
pub fn exe_pattern(text: &str) -> Result<GlobMatcher, globset::Error> {
    if text.contains('/') || text.starts_with('*') {
        Glob::new(text).map(|glob| glob.compile_matcher())
    } else {
        Glob::new(&format!("*/{text}")).map(|glob| glob.compile_matcher())
    }
}

/// A set of ports, written `80,443,8000-8999`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ports(Vec<(u16, u16)>);

impl Ports {
    /// Reads the notation, `None` if it is malformed or empty.
    pub fn parse(text: &str) -> Option<Self> {
        let ranges = text.split(',').map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            (first <= last).then_some((first, last))
        });
        ranges.collect::<Option<_>>().map(Self)
    }

    fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|(first, last)| (*first..=*last).contains(&port))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn rule(exe_path: Option<&str>, ports: Option<&str>) -> Rule {
        Rule {
            exe_path: exe_path.map(|pattern| exe_pattern(pattern).unwrap()),
            open_ports: ports.map(|ports| Ports::parse(ports).unwrap()),
        }
    }

    #[rstest]
    #[case::no_rules(vec![], vec![], true)]
    #[case::included_by_name(vec![rule(Some("nginx"), None)], vec![], true)]
    #[case::included_by_path(vec![rule(Some("/usr/*/nginx"), None)], vec![], true)]
    #[case::included_by_alternatives(vec![rule(Some("{ollama,nginx}"), None)], vec![], true)]
    #[case::included_by_port(vec![rule(None, Some("80"))], vec![], true)]
    #[case::included_by_range(vec![rule(None, Some("1,70-90"))], vec![], true)]
    #[case::both_conditions(vec![rule(Some("nginx"), Some("80"))], vec![], true)]
    #[case::one_of_two_rules(vec![rule(Some("x"), None), rule(Some("nginx"), None)], vec![], true)]
    #[case::other_name(vec![rule(Some("ngin"), None)], vec![], false)]
    #[case::other_port(vec![rule(None, Some("8080"))], vec![], false)]
    #[case::one_condition_fails(vec![rule(Some("nginx"), Some("8080"))], vec![], false)]
    #[case::excluded(vec![], vec![rule(Some("*ngin*"), None)], false)]
    #[case::exclusion_wins(vec![rule(None, Some("80"))], vec![rule(Some("nginx"), None)], false)]
    #[case::excluded_another(vec![], vec![rule(Some("apache2"), None)], true)]
    #[case::empty_rule_matches_nothing(vec![], vec![Rule::default()], true)]
    fn selects(#[case] include: Vec<Rule>, #[case] exclude: Vec<Rule>, #[case] expected: bool) {
        let selection = Selection { include, exclude };
        assert_eq!(selection.selects("/usr/sbin/nginx", || vec![80, 443]), expected);
    }

    #[test]
    fn ports_are_looked_up_only_if_a_rule_needs_them() {
        let selection = Selection { include: vec![rule(Some("nginx"), None)], exclude: vec![] };
        assert!(!selection.depends_on_ports());
        assert!(selection.selects("/usr/sbin/nginx", || panic!("looked up")));
    }

    #[rstest]
    #[case::empty("")]
    #[case::word("http")]
    #[case::too_large("65536")]
    #[case::reversed("90-80")]
    #[case::open_range("80-")]
    #[case::empty_item("80,,81")]
    fn refuses_malformed_ports(#[case] text: &str) {
        assert_eq!(Ports::parse(text), None);
    }
}
