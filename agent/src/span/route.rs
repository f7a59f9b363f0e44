//! Routes out of paths: few different ones, whatever the paths are.
//!
//! Segments that look like ids become `{id}`; so do words, once a place in the path has seen too many of them. What was
//! a route once stays one, so the same request keeps its name.

use foldhash::{HashMap, HashMapExt as _};

use crate::decode::Role;

/// What an id is replaced by.
const ID: &str = "{id}";
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
    /// Routes that are known: `/api/{id}`, `/v1/:name`; `*` stands for any segment, at the end for any number of them.
    /// The first that fits wins.
    pub patterns: Vec<String>,
    /// Words that a place in the path may have before further ones become `{id}`.
    ///
    /// Beyla's default is 10, and there all of them are replaced when there are more: an API with 15 collections would
    /// lose its routes. Here the first ones stay, so the limit can be larger than what APIs have.
    pub max_words: usize,
}

impl Default for RouteConfig {
    fn default() -> Self {
        Self { patterns: Vec::new(), max_words: 32 }
    }
}

/// A word of the paths of a service, with the words behind it.
#[derive(Debug, Default)]
struct Node {
    words: Vec<(Box<str>, usize)>,
    id: Option<usize>,
}

/// The routes that were seen.
#[derive(Debug)]
pub struct Routes {
    patterns: Vec<Pattern>,
    max_words: usize,
    /// Trees of words; the children of a node are named by their index.
    nodes: Vec<Node>,
    /// The roots of a service: as a server, as a client.
    services: HashMap<Box<str>, [usize; 2]>,
}

impl Routes {
    /// No routes but those of `config`.
    pub fn new(config: RouteConfig) -> Self {
        let patterns = config.patterns.into_iter().map(Pattern::new).collect();
        Self { patterns, max_words: config.max_words, nodes: Vec::new(), services: HashMap::new() }
    }

    /// The route of `path`, in which `service` is asked or asks. New words are learned only from paths that are known to
    /// exist; other ones have no route then.
    pub fn route(&mut self, service: &str, role: Role, path: &str, is_known: bool) -> Option<String> {
        let path = path.strip_prefix('/')?;
        if let Some(pattern) = self.patterns.iter().find(|pattern| pattern.fits(path)) {
            return Some(pattern.text.clone());
        }
        let mut node = self.root(service, role)?;
        let mut route = String::with_capacity(path.len() + 1);
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
                    route.push_str(ID);
                    node = self.id_child(node)?;
                }
            }
        }
        Some(route)
    }

    fn root(&mut self, service: &str, role: Role) -> Option<usize> {
        let roots = match self.services.get(service) {
            Some(roots) => *roots,
            None if self.services.len() >= MAX_SERVICES => return None,
            None => {
                let roots = [self.add_node(), self.add_node()];
                self.services.insert(service.into(), roots);
                roots
            }
        };
        let [server, client] = roots;
        Some(if role == Role::Server { server } else { client })
    }

    /// The child of `node` for `segment`; `None` if it has too many already.
    fn word(&mut self, node: usize, segment: &str, is_known: bool) -> Option<Word> {
        let words = &self.nodes.get(node)?.words;
        if let Some((_, child)) = words.iter().find(|(word, _)| **word == *segment) {
            return Some(Word::Child(*child));
        }
        if words.len() >= self.max_words || self.nodes.len() >= MAX_NODES {
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
                word => PatternSegment::Word(word.into()),
            })
            .collect();
        let is_open = text.ends_with(REST);
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
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn routes(patterns: &[&str]) -> Routes {
        let patterns = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
        Routes::new(RouteConfig { patterns, ..RouteConfig::default() })
    }

    #[rstest]
    #[case::root("/", "/")]
    #[case::words("/api/users", "/api/users")]
    #[case::trailing_slash("/api/users/", "/api/users/")]
    #[case::number("/users/42", "/users/{id}")]
    #[case::number_in_the_middle("/users/42/orders", "/users/{id}/orders")]
    #[case::uuid("/u/4bf92f35-77b3-4da6-a3ce-929d0e0e4736", "/u/{id}")]
    #[case::hash("/c/deadbee1", "/c/{id}")]
    #[case::long_hash("/c/5f3a9c1b2d", "/c/{id}")]
    #[case::hexadecimal_word("/facade/cafe", "/facade/cafe")]
    #[case::date("/on/2024-01-05", "/on/{id}")]
    #[case::time("/on/12:30", "/on/{id}")]
    #[case::address("/host/10.0.0.1", "/host/{id}")]
    #[case::e_mail("/of/ann@example.org", "/of/{id}")]
    #[case::encoded("/q/caf%C3%A9", "/q/{id}")]
    #[case::base64("/t/aGVsbG8gd29ybGQ=", "/t/{id}")]
    #[case::random_letters("/t/aGvSbGqLdZwYbGqK", "/t/{id}")]
    #[case::camel_case("/getUserProfileDetails", "/getUserProfileDetails")]
    #[case::version("/v1/api/v2.1/v1beta1", "/v1/api/v2.1/v1beta1")]
    #[case::words_with_digits("/oauth2/s3/mp4/i18n", "/oauth2/s3/mp4/i18n")]
    #[case::name_with_number("/user12345", "/{id}")]
    #[case::file("/static/app.js", "/static/app.js")]
    #[case::hashed_file("/static/app.3f2a9c1b.js", "/static/{id}")]
    #[case::verb("/models/llama:generate", "/models/llama:generate")]
    #[case::slug("/posts/the-quick-brown-fox-jumps-over-the-lazy-dog", "/posts/{id}")]
    #[case::not_ascii("/é", "/{id}")]
    #[case::deep("/a/b/c/d/e/f/g/h/i/j/k/l", "/a/b/c/d/e/f/g/h/i/j/*")]
    fn heuristic(#[case] path: &str, #[case] expected: &str) {
        assert_eq!(routes(&[]).route("shop", Role::Server, path, true).as_deref(), Some(expected));
    }

    #[test]
    fn a_target_that_is_no_path_has_no_route() {
        assert_eq!(routes(&[]).route("shop", Role::Server, "nonsense", true), None);
    }

    #[rstest]
    #[case::braces("/api/everything", Some("/api/{name}"))]
    #[case::colon("/v1/foo/bar", Some("/v1/:x/bar"))]
    #[case::star("/files/a/b/c", Some("/files/*"))]
    #[case::star_takes_nothing_too("/files/", Some("/files/*"))]
    #[case::too_short("/api/", None)]
    #[case::too_long("/api/a/b", None)]
    fn patterns(#[case] path: &str, #[case] expected: Option<&str>) {
        let mut routes = routes(&["/api/{name}", "/v1/:x/bar", "/files/*"]);
        let route = routes.route("shop", Role::Server, path, true);
        assert_eq!(route.as_deref(), Some(expected.unwrap_or(path)));
    }

    #[test]
    fn too_many_words_are_ids() {
        let mut routes = routes(&[]);
        let mut route = |path: &str| routes.route("shop", Role::Server, path, true).unwrap();
        let word = |number: u8| format!("/users/{}{}", char::from(b'a' + number / 26), char::from(b'a' + number % 26));
        for number in 0..32 {
            assert_eq!(route(&word(number)), word(number));
        }
        assert_eq!(route(&word(33)), "/users/{id}");
        assert_eq!(route(&word(3)), word(3), "what was a route stays one");
        assert_eq!(route("/users/az/orders"), "/users/az/orders");
        assert_eq!(route("/users/zz/orders"), "/users/{id}/orders");
        assert_eq!(route("/orders/zz"), "/orders/zz", "other places have words of their own");
    }

    #[test]
    fn services_and_roles_do_not_share_words() {
        let mut routes = Routes::new(RouteConfig { max_words: 1, ..RouteConfig::default() });
        let mut route = |service, role, path| routes.route(service, role, path, true).unwrap();
        assert_eq!(route("shop", Role::Server, "/a"), "/a");
        assert_eq!(route("shop", Role::Server, "/b"), "/{id}");
        assert_eq!(route("shop", Role::Client, "/b"), "/b");
        assert_eq!(route("stock", Role::Server, "/b"), "/b");
    }

    #[test]
    fn unknown_paths_teach_nothing() {
        let mut routes = routes(&[]);
        assert_eq!(routes.route("shop", Role::Server, "/wp-admin", false), None);
        assert_eq!(routes.route("shop", Role::Server, "/users/1", true).as_deref(), Some("/users/{id}"));
        assert_eq!(routes.route("shop", Role::Server, "/users/2", false).as_deref(), Some("/users/{id}"));
        assert_eq!(routes.route("shop", Role::Server, "/users/2/what", false), None);
    }

    proptest! {
        #[test]
        fn routes_are_few(paths in proptest::collection::vec("/[a-z]{1,3}/[a-z]{1,3}", 400)) {
            let mut routes = Routes::new(RouteConfig { max_words: 3, ..RouteConfig::default() });
            let distinct: HashSet<_> =
                paths.iter().map(|path| routes.route("shop", Role::Server, path, true)).collect();
            prop_assert!(distinct.len() <= 4 * 4);
        }

        #[test]
        fn any_path_is_taken_and_keeps_its_route(path in "/[ -~]{0,60}") {
            let mut routes = routes(&["/api/*"]);
            let first = routes.route("shop", Role::Client, &path, true);
            prop_assert!(first.is_some());
            prop_assert_eq!(routes.route("shop", Role::Client, &path, true), first);
        }
    }
}
