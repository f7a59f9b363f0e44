//! Names of spans that have ids in them, as patterns: `GET /users/123` and `GET /users/456` are `GET /users/<_>`.
//!
//! This is DRAIN (He et al., ICWS 2017) with a tree as deep as names are long, which is how Tempo sets it: names differ
//! in a pattern only where they look like data, or where more words were seen than anybody would think of. A name stays as it
//! is until a second one differs from it in such a place.

mod token;

use std::collections::HashMap;

use foldhash::fast::RandomState;

use token::{WILDCARD, tokens};

/// Longest name that is looked at, bytes. Others stay as they are.
const MAX_LENGTH: usize = 256;

/// Pieces of all names that are known. Beyond it the name that was not seen for the longest time is forgotten.
const MAX_NODES: usize = 20_000;

/// Different words in one place; any other one there is taken for data.
const MAX_WORDS: usize = 1_000;

/// Place of the beginning of all names.
const ROOT: usize = 0;

/// The patterns of a tenant's names.
#[derive(Debug)]
pub(super) struct Drain {
    nodes: Vec<Node>,
    free: Vec<usize>,
    /// Of all nodes where a name ends, the one that was used last, and the one that was not for the longest time.
    newest: Option<usize>,
    oldest: Option<usize>,
    max_nodes: usize,
    max_words: usize,
}

/// A piece of a name, behind others.
#[derive(Debug, Default)]
struct Node {
    parent: usize,
    words: HashMap<Box<str>, usize, RandomState>,
    data: Option<usize>,
    /// If a name ends here.
    cluster: Option<Cluster>,
}

/// Names that have a pattern in common.
#[derive(Debug)]
struct Cluster {
    tokens: Vec<Box<str>>,
    /// All of it.
    pattern: String,
    /// Neighbours in the order of use.
    newer: Option<usize>,
    older: Option<usize>,
}

impl Default for Drain {
    fn default() -> Self {
        Self::new(MAX_NODES, MAX_WORDS)
    }
}

impl Drain {
    fn new(max_nodes: usize, max_words: usize) -> Self {
        let (nodes, free) = (vec![Node::default()], Vec::new());
        Self { nodes, free, newest: None, oldest: None, max_nodes, max_words }
    }

    /// The pattern of a name; none if it is the name itself. The name is known from then on.
    pub(super) fn pattern(&mut self, name: &str) -> Option<&str> {
        if name.is_empty() || name.len() > MAX_LENGTH {
            return None;
        }
        let mut end = ROOT;
        for token in tokens(name) {
            end = self.child(end, token)?;
        }
        match self.nodes.get_mut(end)?.cluster.as_mut() {
            Some(cluster) => cluster.join(name),
            None => self.nodes.get_mut(end)?.cluster = Some(Cluster::new(name)),
        }
        self.use_now(end);
        while self.nodes.len() - self.free.len() > self.max_nodes && self.oldest != Some(end) {
            self.forget_oldest();
        }
        let pattern = self.nodes.get(end)?.cluster.as_ref()?.pattern.as_str();
        (pattern != name).then_some(pattern)
    }

    /// The node of a piece behind another one.
    fn child(&mut self, parent: usize, token: token::Token<'_>) -> Option<usize> {
        let node = self.nodes.get(parent)?;
        let known = if token.is_data { None } else { node.words.get(token.text) };
        if let Some(known) = known {
            return Some(*known);
        }
        let is_data = token.is_data || node.words.len() >= self.max_words;
        if let Some(data) = node.data.filter(|_| is_data) {
            return Some(data);
        }
        let place = self.free.pop().unwrap_or(self.nodes.len());
        let fresh = Node { parent, ..Node::default() };
        match self.nodes.get_mut(place) {
            Some(slot) => *slot = fresh,
            None => self.nodes.push(fresh),
        }
        let node = self.nodes.get_mut(parent)?;
        if is_data {
            node.data = Some(place);
        } else {
            node.words.insert(token.text.into(), place);
        }
        Some(place)
    }

    /// Makes a cluster the newest.
    fn use_now(&mut self, place: usize) {
        if self.newest == Some(place) {
            return;
        }
        self.unlink(place);
        let before = self.newest.replace(place);
        if let Some(cluster) = self.cluster(Some(place)) {
            cluster.older = before;
        }
        match self.cluster(before) {
            Some(before) => before.newer = Some(place),
            None => self.oldest = Some(place),
        }
    }

    /// Takes a cluster out of the order of use, if it is there.
    fn unlink(&mut self, place: usize) {
        let Some(cluster) = self.cluster(Some(place)) else { return };
        let (newer, older) = (cluster.newer.take(), cluster.older.take());
        if let Some(newer) = self.cluster(newer) {
            newer.older = older;
        } else if self.newest == Some(place) {
            self.newest = older;
        }
        if let Some(older) = self.cluster(older) {
            older.newer = newer;
        } else if self.oldest == Some(place) {
            self.oldest = newer;
        }
    }

    fn cluster(&mut self, place: Option<usize>) -> Option<&mut Cluster> {
        self.nodes.get_mut(place?)?.cluster.as_mut()
    }

    /// Forgets a name, and the pieces that no other one has.
    fn forget_oldest(&mut self) {
        let Some(mut place) = self.oldest else { return };
        self.unlink(place);
        if let Some(node) = self.nodes.get_mut(place) {
            node.cluster = None;
        }
        while place != ROOT
            && let Some(node) = self.nodes.get(place)
            && node.cluster.is_none()
            && node.words.is_empty()
            && node.data.is_none()
        {
            let gone = std::mem::replace(&mut place, node.parent);
            self.free.push(gone);
            if let Some(parent) = self.nodes.get_mut(place) {
                parent.data.take_if(|data| *data == gone);
                parent.words.retain(|_, word| *word != gone);
            }
        }
    }
}

impl Cluster {
    fn new(name: &str) -> Self {
        let tokens = tokens(name).map(|token| token.text.into()).collect();
        Self { tokens, pattern: name.to_owned(), newer: None, older: None }
    }

    /// Takes a name in, which differs from the others in no more than data.
    fn join(&mut self, name: &str) {
        if self.pattern == name {
            return;
        }
        let mut changed = false;
        for (known, token) in self.tokens.iter_mut().zip(tokens(name)) {
            if **known != *WILDCARD && **known != *token.text {
                *known = WILDCARD.into();
                changed = true;
            }
        }
        if changed {
            self.pattern = self.tokens.concat();
        }
    }
}

/// Makes patterns of names, one a line, with little room; false if one of them is not its own pattern. For the fuzz target.
pub fn check_names(names: &str) -> bool {
    let mut drain = Drain::new(50, 3);
    names.lines().all(|name| {
        let pattern = drain.pattern(name).unwrap_or(name).to_owned();
        drain.pattern(&pattern).is_none()
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn patterns(drain: &mut Drain, names: &[&str]) -> Vec<String> {
        names.iter().map(|name| drain.pattern(name).unwrap_or(name).to_owned()).collect()
    }

    #[rstest]
    #[case::ids(&["GET /users/1", "GET /users/2", "GET /users/1"], &["GET /users/1", "GET /users/<_>", "GET /users/<_>"])]
    #[case::what_follows_is_kept(
        &["GET /users/1/data", "GET /users/1/settings", "GET /users/2/data", "GET /users/3/settings"],
        &["GET /users/1/data", "GET /users/1/settings", "GET /users/<_>/data", "GET /users/<_>/settings"]
    )]
    #[case::words_are_no_data(&["GET /users", "GET /orders", "POST /users"], &["GET /users", "GET /orders", "POST /users"])]
    #[case::only_what_varies(&["v 1.17.3", "v 1.17.4", "v 1.18.0"], &["v 1.17.3", "v 1.17.<_>", "v 1.<_>.<_>"])]
    #[case::one_more_piece_is_another(&["job 7", "job 7 done", "job 8"], &["job 7", "job 7 done", "job <_>"])]
    #[case::nothing_but_data(&["17", "18"], &["17", "<_>"])]
    #[case::patterns_are_patterns(&["a <_>", "a 7"], &["a <_>", "a <_>"])]
    #[case::empty(&["", ""], &["", ""])]
    fn names_become_patterns(#[case] names: &[&str], #[case] expected: &[&str]) {
        assert_eq!(patterns(&mut Drain::default(), names), expected);
    }

    #[test]
    fn long_names_stay_as_they_are() {
        let long = |number: u32| format!("{} {number}", "x".repeat(MAX_LENGTH));
        assert_eq!([1, 2].map(|number| Drain::default().pattern(&long(number)).map(str::to_owned)), [None, None]);
    }

    #[test]
    fn words_that_are_too_many_are_data() {
        let mut drain = Drain::new(MAX_NODES, 3);
        assert_eq!(patterns(&mut drain, &["q-a", "q-b", "q-c"]), ["q-a", "q-b", "q-c"]);
        assert_eq!(patterns(&mut drain, &["q-d", "q-e", "q-a", "q-f"]), ["q-d", "q-<_>", "q-a", "q-<_>"]);
    }

    #[test]
    fn what_was_not_used_for_the_longest_time_is_forgotten() {
        // The root, and three names of one piece.
        let mut drain = Drain::new(4, MAX_WORDS);
        patterns(&mut drain, &["a", "b", "c", "a", "d"]);
        let known = |drain: &Drain| {
            let mut known: Vec<_> = drain.nodes[ROOT].words.keys().map(ToString::to_string).collect();
            known.sort();
            known.concat()
        };
        assert_eq!(known(&drain), "acd");
        patterns(&mut drain, &["c", "e"]);
        assert_eq!(known(&drain), "cde");
        // A pattern goes whole, with what only it has.
        patterns(&mut drain, &["f-1", "g"]);
        assert_eq!(known(&drain), "g", "f-1 has three pieces, and then there is room for one more name");
        assert_eq!(drain.nodes.len() - drain.free.len(), 2);
    }

    /// Names as programs make them.
    fn name() -> impl Strategy<Value = String> {
        let piece = prop_oneof!["GET", "POST", "users", "cart", "v1", "[0-9]{1,4}", "[0-9a-f]{8}", "<_>", "[a-z]{1,2}"];
        prop::collection::vec(piece, 0..5).prop_map(|pieces| pieces.join("/"))
    }

    proptest! {
        #[test]
        fn a_pattern_is_its_name_but_for_data(names in prop::collection::vec(name(), 1..60)) {
            let mut drain = Drain::default();
            for name in names {
                let pattern = drain.pattern(&name).unwrap_or(&name).to_owned();
                let (of_name, of_pattern): (Vec<_>, Vec<_>) = (tokens(&name).collect(), tokens(&pattern).collect());
                prop_assert_eq!(of_name.len(), of_pattern.len());
                for (name, pattern) in of_name.iter().zip(of_pattern) {
                    prop_assert!(name.text == pattern.text || name.is_data && pattern.text == WILDCARD);
                }
                // It is its own pattern.
                prop_assert_eq!(drain.pattern(&pattern), None);
                prop_assert_eq!(drain.pattern(&name).unwrap_or(&name), pattern);
            }
        }

        #[test]
        fn the_same_names_have_the_same_patterns_and_little_is_kept(
            names in prop::collection::vec(name(), 1..80), max in 1..30_usize, words in 1..4_usize,
        ) {
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            let [mut one, mut other] = [(); 2].map(|()| Drain::new(max, words));
            prop_assert_eq!(patterns(&mut one, &names), patterns(&mut other, &names));
            // The last name may need more than there is room for.
            prop_assert!(one.nodes.len() - one.free.len() <= max.max(12));
            // From the newest to the oldest all are linked.
            let mut place = one.newest;
            let mut linked = 0;
            while let Some(cluster) = one.cluster(place) {
                (place, linked) = (cluster.older, linked + 1);
            }
            prop_assert_eq!(linked, one.nodes.iter().filter(|node| node.cluster.is_some()).count());
            while one.oldest.is_some() {
                one.forget_oldest();
            }
            prop_assert_eq!((one.nodes.len() - one.free.len(), one.newest), (1, None));
        }

        #[test]
        fn any_text_has_a_pattern(names in prop::collection::vec("\\PC{0,20}", 0..20)) {
            let mut drain = Drain::new(50, 2);
            for name in names {
                drop(drain.pattern(&name).map(str::to_owned));
            }
        }
    }
}
