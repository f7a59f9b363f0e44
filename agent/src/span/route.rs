//! Routes out of paths: few different ones, whatever the paths are.
//!
//! Segments that look like ids become `{id}`; so do words, once a place in the path has seen too many of them. What was
//! a route once stays one, so the same request keeps its name.

use foldhash::{HashMap, HashMapExt as _, HashSet, HashSetExt as _};

use crate::decode::Role;

/// What an id is replaced by.
const ID: &str = "{id}";
/// The route of a path that has none, where such paths have one, and of those beyond the limit of a service.
const ANY: &str = "/**";
/// What stands for everything behind a pattern's end, or behind [`MAX_SEGMENTS`].
const REST: &str = "*";
/// Segments that a route has at most.
const MAX_SEGMENTS: usize = 10;
/// Words that are kept of all services together.
const MAX_NODES: usize = 16_384;
/// Services whose routes are told apart.
const MAX_SERVICES: usize = 4_096;
/// A segment longer than this is no word.
const MAX_WORD: usize = 40;

/// How routes are made.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RouteConfig {
    /// Routes that are known: `/api/{id}`, `/v1/:name`; `*` stands for any segment, at the end for any number of them, and behind
    /// a word for what else a segment has. The first that fits wins.
    pub patterns: Vec<String>,
    /// Requests for paths that one of these fits are left out.
    pub ignored_patterns: Vec<String>,
    /// Of what they are left out.
    pub ignore_mode: IgnoreMode,
    /// What becomes of paths that no pattern fits.
    pub unmatched: Unmatched,
    /// What stands for an id, `{id}` or Beyla's `*`.
    pub wildcard: String,
    /// Words that a place in the path may have before further ones become ids.
    ///
    /// Beyla's default is 10, and there all of them are replaced when there are more: an API with 15 collections would
    /// lose its routes. Here the first ones stay, so the limit can be larger than what APIs have.
    pub max_words: usize,
    /// Different routes of one service, those of patterns not counted; further ones are `/**`.
    pub max_per_service: usize,
}

impl Default for RouteConfig {
    fn default() -> Self {
        Self {
            patterns: Vec::new(),
            ignored_patterns: Vec::new(),
            ignore_mode: IgnoreMode::All,
            unmatched: Unmatched::Heuristic,
            wildcard: ID.to_owned(),
            max_words: 32,
            max_per_service: 1000,
        }
    }
}

/// What requests for ignored paths are left out of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum IgnoreMode {
    /// Everything.
    All,
    /// They make no spans.
    Traces,
    /// They are not counted in metrics.
    Metrics,
}

impl IgnoreMode {
    /// They make no spans.
    pub const fn has_no_span(self) -> bool {
        matches!(self, Self::All | Self::Traces)
    }

    /// They are not counted in metrics.
    pub const fn has_no_metric(self) -> bool {
        matches!(self, Self::All | Self::Metrics)
    }
}

/// What becomes of a path that no pattern fits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unmatched {
    /// A route of few words, see the module.
    Heuristic,
    /// `/**`.
    Wildcard,
    /// The path.
    Path,
    /// No route.
    Unset,
}

/// A word of the paths of a service, with the words behind it.
#[derive(Debug, Default)]
struct Node {
    words: Vec<(Box<str>, usize)>,
    id: Option<usize>,
    /// A route ends here.
    is_route: bool,
}

/// What was seen of a service.
#[derive(Debug)]
struct Service {
    /// The roots of its trees: as a server, as a client.
    roots: [usize; 2],
    /// Different routes.
    routes: usize,
    /// Those that are whole paths.
    paths: HashSet<Box<str>>,
}

/// The routes that were seen.
#[derive(Debug)]
pub struct Routes {
    config: RouteConfig,
    patterns: Vec<Pattern>,
    ignored: Vec<Pattern>,
    /// Trees of words; the children of a node are named by their index.
    nodes: Vec<Node>,
    services: HashMap<Box<str>, Service>,
}

impl Routes {
    /// No routes but those of `config`.
    pub fn new(config: RouteConfig) -> Self {
        let patterns = |texts: &[String]| texts.iter().cloned().map(Pattern::new).collect();
        Self {
            patterns: patterns(&config.patterns),
            ignored: patterns(&config.ignored_patterns),
            config,
            nodes: Vec::new(),
            services: HashMap::new(),
        }
    }

    /// How they are made.
    pub const fn config(&self) -> &RouteConfig {
        &self.config
    }

    /// Of what a request for `path` is left out.
    pub fn ignored(&self, path: &str) -> Option<IgnoreMode> {
        let path = path.strip_prefix('/')?;
        self.ignored.iter().any(|pattern| pattern.fits(path)).then_some(self.config.ignore_mode)
    }

    /// Adds the route of `path`, in which `service` is asked or asks, to `route`. New words are learned only from paths that are
    /// known to exist; other ones have no route then, and what is in `route` is of no use.
    pub fn route(&mut self, service: &str, role: Role, path: &str, is_known: bool, route: &mut String) -> bool {
        let Some(relative) = path.strip_prefix('/') else { return false };
        if let Some(pattern) = self.patterns.iter().find(|pattern| pattern.fits(relative)) {
            route.push_str(&pattern.text);
            return true;
        }
        match self.config.unmatched {
            Unmatched::Heuristic => self.heuristic(service, role, relative, is_known, route).is_some(),
            Unmatched::Wildcard => {
                route.push_str(ANY);
                true
            }
            Unmatched::Path => self.whole(service, path, route).is_some(),
            Unmatched::Unset => false,
        }
    }

    fn heuristic(&mut self, service: &str, role: Role, path: &str, is_known: bool, route: &mut String) -> Option<()> {
        let known = self.services.get(service).map(|service| service.roots);
        let [server, client] = match known {
            Some(roots) => roots,
            None => self.service(service)?.roots,
        };
        let mut node = if role == Role::Server { server } else { client };
        let start = route.len();
        for (place, segment) in path.split('/').enumerate() {
            route.push('/');
            if place == MAX_SEGMENTS {
                route.push_str(REST);
                break;
            }
            let word = if looks_like_id(segment) { None } else { self.word(node, segment, is_known) };
            match word {
                Some(Word::Child(child)) => {
                    route.push_str(segment);
                    node = child;
                }
                Some(Word::Unknown) => return None,
                None => {
                    route.push_str(&self.config.wildcard);
                    node = self.id_child(node)?;
                }
            }
        }
        let end = self.nodes.get_mut(node)?;
        if !end.is_route {
            let service = self.services.get_mut(service)?;
            if service.routes >= self.config.max_per_service {
                route.truncate(start);
                route.push_str(ANY);
                return Some(());
            }
            service.routes += 1;
            end.is_route = true;
        }
        Some(())
    }

    /// The path as its own route.
    fn whole(&mut self, service: &str, path: &str, route: &mut String) -> Option<()> {
        let max = self.config.max_per_service;
        let service = self.service(service)?;
        if !service.paths.contains(path) {
            if service.paths.len() >= max {
                route.push_str(ANY);
                return Some(());
            }
            service.paths.insert(path.into());
        }
        route.push_str(path);
        Some(())
    }

    fn service(&mut self, name: &str) -> Option<&mut Service> {
        if !self.services.contains_key(name) {
            if self.services.len() >= MAX_SERVICES {
                return None;
            }
            let roots = [self.add_node(), self.add_node()];
            self.services.insert(name.into(), Service { roots, routes: 0, paths: HashSet::new() });
        }
        self.services.get_mut(name)
    }

    /// The child of `node` for `segment`; `None` if it has too many already.
    fn word(&mut self, node: usize, segment: &str, is_known: bool) -> Option<Word> {
        let words = &self.nodes.get(node)?.words;
        if let Some((_, child)) = words.iter().find(|(word, _)| **word == *segment) {
            return Some(Word::Child(*child));
        }
        if words.len() >= self.config.max_words || self.nodes.len() >= MAX_NODES {
            return None;
        }
        if !is_known {
            return Some(Word::Unknown);
        }
        let child = self.add_node();
        self.nodes.get_mut(node)?.words.push((segment.into(), child));
        Some(Word::Child(child))
    }

    /// The child of `node` for ids. With too many nodes it is the node itself: routes stay few all the same.
    fn id_child(&mut self, node: usize) -> Option<usize> {
        if let Some(child) = self.nodes.get(node)?.id {
            return Some(child);
        }
        if self.nodes.len() >= MAX_NODES {
            return Some(node);
        }
        let child = self.add_node();
        self.nodes.get_mut(node)?.id = Some(child);
        Some(child)
    }

    fn add_node(&mut self) -> usize {
        self.nodes.push(Node::default());
        self.nodes.len() - 1
    }
}

/// What a tree has for a word.
enum Word {
    Child(usize),
    Unknown,
}

/// A configured route.
#[derive(Debug)]
struct Pattern {
    text: String,
    segments: Vec<PatternSegment>,
    /// Any number of segments may follow.
    is_open: bool,
}

#[derive(Debug)]
enum PatternSegment {
    Word(Box<str>),
    /// A segment that begins so.
    Prefix(Box<str>),
    Any,
}

impl Pattern {
    fn new(text: String) -> Self {
        let mut segments: Vec<PatternSegment> = text
            .trim_start_matches('/')
            .split('/')
            .map(|segment| match segment {
                REST => PatternSegment::Any,
                _ if segment.starts_with(':') => PatternSegment::Any,
                _ if segment.starts_with('{') && segment.ends_with('}') => PatternSegment::Any,
                word => match word.strip_suffix(REST) {
                    Some(prefix) => PatternSegment::Prefix(prefix.into()),
                    None => PatternSegment::Word(word.into()),
                },
            })
            .collect();
        let is_open = text.rsplit('/').next() == Some(REST);
        if is_open {
            segments.pop();
        }
        Self { text, segments, is_open }
    }

    /// `path` is without its first slash.
    fn fits(&self, path: &str) -> bool {
        let mut found = path.split('/');
        let all_fit = self.segments.iter().all(|wanted| match (wanted, found.next()) {
            (PatternSegment::Word(word), Some(segment)) => **word == *segment,
            (PatternSegment::Prefix(prefix), Some(segment)) => segment.starts_with(&**prefix),
            (PatternSegment::Any, Some(segment)) => !segment.is_empty(),
            (_, None) => false,
        });
        all_fit && (self.is_open || found.next().is_none())
    }
}

/// Numbers, dates, UUIDs, hashes, e-mail addresses, encoded and random texts; not words, versions or names with a digit
/// or two such as `oauth2`.
fn looks_like_id(segment: &str) -> bool {
    if segment.len() > MAX_WORD {
        return true;
    }
    let (mut digits, mut letters, mut humps) = (0, 0, 0);
    let mut is_hexadecimal = true;
    let mut previous = 0;
    for byte in segment.bytes() {
        match byte {
            b'0'..=b'9' => digits += 1,
            b'a'..=b'z' | b'A'..=b'Z' => {
                letters += 1;
                is_hexadecimal &= byte.is_ascii_hexdigit();
                humps += usize::from(byte.is_ascii_uppercase() && previous != 0_u8 && previous.is_ascii_lowercase());
            }
            b'-' | b'_' | b'.' | b'~' | b':' => {}
            // Words are not encoded, and not in need of other marks.
            _ => return true,
        }
        previous = byte;
    }
    match (digits, letters) {
        // Camel case has a hump every few letters, base64 every other one.
        (0, _) => segment.len() >= 16 && humps * 4 > segment.len(),
        (_, 0) => true,
        _ if is_version(segment) => false,
        (1 | 2, _) => is_hexadecimal && segment.len() >= 8,
        _ => true,
    }
}

/// `v1`, `v2.1`, `v1beta1`.
fn is_version(segment: &str) -> bool {
    let mut bytes = segment.bytes();
    segment.len() <= 8
        && bytes.next().is_some_and(|byte| byte.eq_ignore_ascii_case(&b'v'))
        && bytes.next().is_some_and(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;
