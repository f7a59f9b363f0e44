use std::collections::HashSet;

use proptest::prelude::*;
use rstest::rstest;

use super::*;

impl Routes {
    pub(in crate::span) fn of(&mut self, service: &str, role: Role, path: &str, is_known: bool) -> Option<String> {
        // What stands before it stays.
        let mut name = "GET ".to_owned();
        self.route(service, role, path, is_known, &mut name).then(|| name.strip_prefix("GET ").unwrap().to_owned())
    }
}

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
    assert_eq!(routes(&[]).of("shop", Role::Server, path, true).as_deref(), Some(expected));
}

#[test]
fn a_target_that_is_no_path_has_no_route() {
    assert_eq!(routes(&[]).of("shop", Role::Server, "nonsense", true), None);
}

#[rstest]
#[case::braces("/api/everything", Some("/api/{name}"))]
#[case::colon("/v1/foo/bar", Some("/v1/:x/bar"))]
#[case::star("/files/a/b/c", Some("/files/*"))]
#[case::star_takes_nothing_too("/files/", Some("/files/*"))]
#[case::begins_so("/static/app-17.js", Some("/static/app*"))]
#[case::begins_otherwise("/static/main.js", None)]
#[case::below_what_begins_so("/static/app/main.js", None)]
#[case::too_short("/api/", None)]
#[case::too_long("/api/a/b", None)]
fn patterns(#[case] path: &str, #[case] expected: Option<&str>) {
    let mut routes = routes(&["/api/{name}", "/v1/:x/bar", "/files/*", "/static/app*"]);
    let route = routes.of("shop", Role::Server, path, true);
    assert_eq!(route.as_deref(), Some(expected.unwrap_or(path)));
}

#[test]
fn too_many_words_are_ids() {
    let mut routes = routes(&[]);
    let mut route = |path: &str| routes.of("shop", Role::Server, path, true).unwrap();
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
    let mut route = |service, role, path| routes.of(service, role, path, true).unwrap();
    assert_eq!(route("shop", Role::Server, "/a"), "/a");
    assert_eq!(route("shop", Role::Server, "/b"), "/{id}");
    assert_eq!(route("shop", Role::Client, "/b"), "/b");
    assert_eq!(route("stock", Role::Server, "/b"), "/b");
}

#[rstest]
#[case::heuristic(Unmatched::Heuristic, Some("/users/{id}"))]
#[case::wildcard(Unmatched::Wildcard, Some("/**"))]
#[case::path(Unmatched::Path, Some("/users/42"))]
#[case::unset(Unmatched::Unset, None)]
fn paths_that_no_pattern_fits(#[case] unmatched: Unmatched, #[case] expected: Option<&str>) {
    let mut routes =
        Routes::new(RouteConfig { patterns: vec!["/api/*".to_owned()], unmatched, ..RouteConfig::default() });
    assert_eq!(routes.of("shop", Role::Server, "/users/42", true).as_deref(), expected);
    assert_eq!(routes.of("shop", Role::Server, "/api/42", true).as_deref(), Some("/api/*"));
}

#[rstest]
#[case::health("/healthz", true)]
#[case::below("/internal/a/b", true)]
#[case::begins_so("/metrics-of-all", true)]
#[case::not_all_beside_it("/users", false)]
#[case::with_a_name("/users/7/avatar", true)]
#[case::another("/users/7", false)]
#[case::no_path("*", false)]
fn ignored(#[case] path: &str, #[case] expected: bool) {
    let ignored_patterns = ["/healthz", "/internal/*", "/users/:id/avatar", "/metrics*"].map(str::to_owned).to_vec();
    let routes =
        Routes::new(RouteConfig { ignored_patterns, ignore_mode: IgnoreMode::Traces, ..RouteConfig::default() });
    assert_eq!(routes.ignored(path), expected.then_some(IgnoreMode::Traces));
}

#[test]
fn ids_are_written_as_is_wanted() {
    let mut routes = Routes::new(RouteConfig { wildcard: "*".to_owned(), ..RouteConfig::default() });
    assert_eq!(routes.of("shop", Role::Server, "/users/42/orders", true).as_deref(), Some("/users/*/orders"));
}

#[rstest]
#[case::heuristic(Unmatched::Heuristic)]
#[case::path(Unmatched::Path)]
fn a_service_has_no_more_than_so_many_routes(#[case] unmatched: Unmatched) {
    let mut routes = Routes::new(RouteConfig { unmatched, max_per_service: 2, ..RouteConfig::default() });
    let mut route = |service, path| routes.of(service, Role::Server, path, true).unwrap();
    assert_eq!(route("shop", "/a"), "/a");
    assert_eq!(route("shop", "/b"), "/b");
    assert_eq!(route("shop", "/c"), "/**");
    assert_eq!(route("shop", "/a"), "/a", "what was a route stays one");
    assert_eq!(route("stock", "/c"), "/c", "services do not share the limit");
}

#[test]
fn unknown_paths_teach_nothing() {
    let mut routes = routes(&[]);
    assert_eq!(routes.of("shop", Role::Server, "/wp-admin", false), None);
    assert_eq!(routes.of("shop", Role::Server, "/users/1", true).as_deref(), Some("/users/{id}"));
    assert_eq!(routes.of("shop", Role::Server, "/users/2", false).as_deref(), Some("/users/{id}"));
    assert_eq!(routes.of("shop", Role::Server, "/users/2/what", false), None);
}

proptest! {
    #[test]
    fn routes_are_few(paths in proptest::collection::vec("/[a-z]{1,3}/[a-z]{1,3}", 400)) {
        let mut routes = Routes::new(RouteConfig { max_words: 3, ..RouteConfig::default() });
        let distinct: HashSet<_> =
            paths.iter().map(|path| routes.of("shop", Role::Server, path, true)).collect();
        prop_assert!(distinct.len() <= 4 * 4);
    }

    #[test]
    fn any_path_is_taken_and_keeps_its_route(path in "/[ -~]{0,60}") {
        let mut routes = routes(&["/api/*"]);
        let first = routes.of("shop", Role::Client, &path, true);
        prop_assert!(first.is_some());
        prop_assert_eq!(routes.of("shop", Role::Client, &path, true), first);
    }
}
