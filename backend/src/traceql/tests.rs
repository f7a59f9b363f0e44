mod round_trip;

use proptest::prelude::*;
use rstest::rstest;

use super::*;

/// Queries of every kind. Each is also tried cut off at every byte.
const CORPUS: [&str; 62] = [
    "{}",
    "{ true }",
    "{ !true }",
    "{ .a }",
    "{ !.a && -.b = 2 }",
    r#"{ resource.service.name = "cart" && span.http.response.status_code >= 500 }"#,
    r#"{ .a = "x" || .a = "y" || .a = "z" }"#,
    r#"{ (.a = 1 || .b = 2) && .c =~ "d.*" }"#,
    r#"{ span."foo bar".x = `raw "text"` }"#,
    r#"{ span."a\"b\\c" != "tab\tnewline\n" }"#,
    "{ event.exception.message != nil && link.a = nil && instrumentation.b = true }",
    "{ nil != .a }",
    "{ duration > 1h30m && duration < 1.5s }",
    "{ .a + 1 * 2 ^ 3 ^ 4 - 5 = 6 % 7 / 8 }",
    "{ (.a + 1) * 2 = -(.b * 3) }",
    "{ -.a * 2 > !.b + 1 }",
    "{ .a - (.b - .c) = (2 ^ 3) ^ 4 }",
    "{ status = error && kind != server && statusMessage = \"\" }",
    "{ span:status = ok || span:kind = unspecified }",
    "{ trace:duration > 2s && trace:rootName = \"a\" && trace:rootService = \"b\" && trace:id = \"1\" }",
    "{ span:id = \"1\" && span:parentID = \"2\" && span:childCount > 3 && span:name = \"x\" }",
    "{ event:name = \"exception\" && event:timeSinceStart > 1ms && link:traceID = \"1\" && link:spanID = \"2\" }",
    "{ instrumentation:name = \"a\" && instrumentation:version = \"b\" }",
    "{ rootName = \"a\" && rootServiceName = \"b\" && traceDuration > 1s && name = \"c\" }",
    "{ nestedSetLeft > 1 && nestedSetRight < 9 && nestedSetParent < 0 && childCount = 0 }",
    "{ .a = minInt || .a = maxInt || .a = -1 || .a = -1.5 || .a = -2s }",
    "{ .a = 1e9 || .a = 1.5e-3 || .a = .5 }",
    "{ .a } && { .b } || { .c }",
    "{ .a } && ({ .b } || { .c })",
    "{ .a } > { .b } >> { .c } < { .d } << { .e } ~ { .f }",
    "{ .a } !> { .b } !>> { .c } !< { .d } !<< { .e } !~ { .f }",
    "{ .a } &> { .b } &>> { .c } &< { .d } &<< { .e } &~ { .f }",
    "({ .a } | count() > 1) >> ({ .b } | { .c })",
    "{ .a } | count() > 2",
    "{ .a } | avg(duration) >= 1.5s | max(span.x) < 3 | min(.y * 2) = 1 | sum(.z) != -4",
    "max(duration) > 3s | { status = error }",
    "{ .a } | by(resource.service.name) | count() > 2 | coalesce()",
    "by(.a + 1) | { true }",
    "select(.a)",
    "{ .a } | select(.a, span:name, status, resource.service.name)",
    "count() + count() * 2 ^ 3 = (1 + 2) / max(.a)",
    "({ .a } | count()) > ({ .b } | count())",
    "({ .a } | count()) + ({ .b } | avg(duration)) = 2",
    "{} | rate()",
    "{} | rate() by (resource.service.name, name) with(sample=true)",
    "{ .a } | by(.b) | count_over_time() by(.c)",
    "{} | min_over_time(duration) | topk(3) | bottomk(2)",
    "{} | max_over_time(span.x) > 5",
    "{} | avg_over_time(duration) | topk(3) >= 1s",
    "{} | sum_over_time(.x) by(name)",
    "{} | histogram_over_time(duration)",
    "{} | quantile_over_time(duration, 0, 0.5, .99, 1) by(span.http.path)",
    "{} | compare({ status = error })",
    "{} | compare({ duration >= 10ms && duration <= 2s }, 10, 1, 2)",
    "({ status = error } | rate()) / ({} | rate()) * 100",
    "2 * ({} | rate()) - (({} | rate()) + ({} | count_over_time()))",
    "({ nestedSetParent < 0 } &>> { kind = server }) || ({ nestedSetParent < 0 }) | select(status, resource.service.name, \
     name, nestedSetParent, nestedSetLeft, nestedSetRight)",
    "{ status = error } | select(event.exception.message) with(most_recent=true, job_size=100, x=\"y\", z=1s)",
    "{ // comment\n .a = 1 /* another */ }",
    "{ .a-b+c/d*e:f[0] = 1 }",
    "{ .\"5a\" = 1 || .a5 = 1 }",
    "{ name = \"é\" && .ключ = \"значение\" }",
];

/// Rewrites that keep the meaning and lose the spelling.
#[rstest]
#[case::brackets("{ ((.a)) = (1) }", "{ .a = 1 }")]
#[case::empty("{}", "{ true }")]
#[case::logic_is_one_level("{ .a || .b && .c }", "{ .a || .b && .c }")]
#[case::logic_brackets("{ .a || (.b && .c) }", "{ .a || (.b && .c) }")]
#[case::minus_binds_loosely("{ -.a * .b = 1 }", "{ -.a * .b = 1 }")]
#[case::minus_brackets("{ (-.a) * .b = 1 }", "{ (-.a) * .b = 1 }")]
#[case::not_over_times("{ !(.a * .b) }", "{ !.a * .b }")]
#[case::not_over_comparison("{ !(.a = 1) }", "{ !(.a = 1) }")]
#[case::power_is_right("{ 2 ^ (3 ^ 2) = 1 }", "{ 2 ^ 3 ^ 2 = 1 }")]
#[case::scoped("{ span:name = \"a\" && trace:duration > 1s }", "{ name = \"a\" && traceDuration > 1s }")]
#[case::nil_first("{ nil = .a && nil != nil }", "{ .a = nil && false }")]
#[case::durations(
    "{ duration > 90s && duration > 1500us && duration > 0h }",
    "{ duration > 90s && duration > 1500us && duration > 0s }"
)]
#[case::compare("{} | compare({ .a })", "{ true } | compare({ .a }, 10)")]
#[case::constants("7 / 2 * ({} | rate())", "(7 / 2) * ({ true } | rate())")]
#[case::spanset_brackets("(({ .a }) && ({ .b } >> { .c }))", "{ .a } && ({ .b } >> { .c })")]
#[case::number("{ .a = 0010 }", "{ .a = 10 }")]
fn prints(#[case] text: &str, #[case] printed: &str) {
    assert_eq!(parse(text).unwrap().to_string(), printed);
}

#[test]
fn every_query_of_the_corpus_reads_and_prints_back() {
    for text in CORPUS {
        // What the checker refuses must read all the same, hence the parser alone.
        let query = parser::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let printed = query.to_string();
        assert_eq!(parser::parse(&printed), Ok(query.clone()), "{text} printed as {printed}");
    }
}

#[test]
fn every_prefix_of_every_query_is_survived() {
    for text in CORPUS {
        for prefix in (0..text.len()).filter_map(|end| text.get(..end)) {
            if let Ok(query) = parser::parse(prefix) {
                assert_eq!(parser::parse(&query.to_string()).as_ref(), Ok(&query), "{prefix}");
            }
            let _ = validate_only(prefix);
            let _ = filter_of_unfinished(prefix);
            let _ = parse_field(prefix);
        }
    }
}

fn validate_only(text: &str) -> Result<(), TraceQlError> {
    validate::query(&parser::parse(text)?)
}

#[rstest]
#[case::empty("", "line 1, col 1: syntax error: unexpected $end, expecting \"{\", \"(\" or a function")]
#[case::open("{ .a = 1", "line 1, col 9: syntax error: unexpected $end, expecting \"}\"")]
#[case::no_right_side(
    "{ .a < }",
    "line 1, col 8: syntax error: unexpected \"}\", expecting an attribute, an intrinsic or a value"
)]
#[case::no_name("{ . }", "line 1, col 4: syntax error: expecting the name of an attribute")]
#[case::second_line(
    "{ .a = 1 &&\n  nmae = 2 }",
    "line 2, col 3: syntax error: unexpected \"nmae\", expecting an intrinsic or a value; did you mean \"name\"?"
)]
#[case::case_matters(
    "{ Status = error }",
    "line 1, col 3: syntax error: unexpected \"Status\", expecting an intrinsic or a value; did you mean \"status\"?"
)]
#[case::no_scope(
    "{ attribute = 4 }",
    "line 1, col 3: syntax error: unexpected \"attribute\", expecting an intrinsic or a value; attributes have a scope: \
     \".attribute\", \"span.attribute\""
)]
#[case::scoped_name(
    "{ span:stats = error }",
    "line 1, col 8: syntax error: unexpected \"stats\", expecting an intrinsic of \"span:\"; did you mean \"span:status\"?"
)]
#[case::wrong_scope(
    "{ trace:status = error }",
    "line 1, col 9: syntax error: unexpected \"status\", expecting one of id, duration, rootName, rootService after \
     \"trace:\""
)]
#[case::double_equals(
    "{ .a == 4 }",
    "line 1, col 7: syntax error: unexpected \"=\", expecting an attribute, an intrinsic or a value"
)]
#[case::stage(
    "{ true } | selct(.a)",
    "line 1, col 12: syntax error: unexpected \"selct\", expecting a stage like { … }; did you mean \"select\"?"
)]
#[case::bare_count("{ true } | count()", "line 1, col 19: syntax error: unexpected $end, expecting a comparison")]
#[case::coalesce_first(
    "coalesce() | { true }",
    "line 1, col 1: syntax error: unexpected \"coalesce\", expecting a spanset before it"
)]
#[case::plus("{ .a } + { .b }", "line 1, col 8: syntax error: unexpected \"+\", expecting $end")]
#[case::kinds("{ .a } && count()", "line 1, col 11: syntax error: unexpected operand of another kind after \"&&\"")]
#[case::string("{ .a = \"b }", "line 1, col 8: syntax error: literal not terminated, expecting \"")]
#[case::raw_string("{ .a = `b }", "line 1, col 8: syntax error: literal not terminated, expecting `")]
#[case::escape("{ .a = \"\\q\" }", "line 1, col 8: syntax error: invalid escape sequence")]
#[case::quoted_name("{ .\"a", "line 1, col 6: syntax error: unexpected EOF, expecting \"")]
#[case::character("{ .a = # }", "line 1, col 8: syntax error: unexpected character '#'")]
#[case::comment("{ /* }", "line 1, col 3: syntax error: comment not terminated")]
#[case::integer(
    "{ .a = 9223372036854775808 }",
    "line 1, col 8: syntax error: integer 9223372036854775808 is out of range"
)]
#[case::float("{ .a = 1e999 }", "line 1, col 8: syntax error: number 1e999 is out of range")]
#[case::metrics_first(
    "rate()",
    "line 1, col 1: syntax error: unexpected \"rate\", expecting a spanset before a metrics function, as in { } | rate()"
)]
#[case::columns_are_characters("{ name = \"é\" § }", "line 1, col 14: syntax error: unexpected character '§'")]
#[case::nil_order("{ nil > 1 }", "line 1, col 7: syntax error: unexpected \">\", expecting \"=\" or \"!=\" after nil")]
fn says_what_is_wrong_and_where(#[case] text: &str, #[case] error: &str) {
    assert_eq!(parse(text).unwrap_err().to_string(), format!("parse error at {error}"));
}

#[rstest]
#[case("true")]
#[case("[ true ]")]
#[case("( true )")]
#[case("{ < }")]
#[case("{ (.a < 3 }")]
#[case("{ span. }")]
#[case("{ true } - { true }")]
#[case("{ true } = { true }")]
#[case("{ true } <= { true }")]
#[case("{ true } >= { true }")]
#[case("max(name) = \"foo\"")]
#[case("max(status) = ok")]
#[case("max(duration) < ok")]
#[case("min(parent) = nil")]
#[case("avg(.field) + 1")]
#[case("min(childCount) && 2")]
#[case("select(.a")]
#[case("select()")]
#[case("select(1 + \"string\")")]
#[case("count() > 3 && { true }")]
#[case("{ true } | notAnAggregate() = 1")]
#[case("{ true } | count = 1")]
#[case("{ true } | max() = 1")]
#[case("{ true } | by()")]
#[case("({ true }) + (count()) = 1")]
#[case("({ true }) && (count())")]
#[case("({ true } | count()) && ({ true } | count()) = 1")]
#[case("({ true }) + ({ true }) = 1")]
#[case("({ true } | count()) + ({ true } | count())")]
#[case("(by(namespace) | count()) > 2 * 2")]
#[case("{ trace:kind = server }")]
#[case("{ trace:rootServiceName = \"a\" }")]
#[case("{ span:rootName = \"bar\" }")]
#[case("{} | rate() | rate()")]
#[case("{} | topk(3)")]
#[case("({} | rate()) % ({} | rate())")]
#[case("{} | rate() with()")]
#[case("{} with(sample)")]
fn refuses_what_tempo_refuses(#[case] text: &str) {
    assert!(matches!(parse(text), Err(TraceQlError::Syntax { .. })), "{text}: {:?}", parse(text));
}

const NOT_BOOLEAN: &str = "span filter field expressions must resolve to a boolean";
const DIFFERENT: &str = "binary operations must operate on the same type";
const ILLEGAL: &str = "illegal operation for the given types";
const ILLEGAL_UNARY: &str = "illegal operation for the given type";
const NO_NUMBER: &str = "aggregate field expressions must resolve to a number type";
const NO_SPAN: &str = "aggregate field expressions must reference the span";
const NO_GROUP: &str = "grouping field expressions must reference the span";

#[rstest]
#[case("{ status }", NOT_BOOLEAN, "{ status }")]
#[case("{ ok }", NOT_BOOLEAN, "{ ok }")]
#[case("{ 1.1 }", NOT_BOOLEAN, "{ 1.1 }")]
#[case("{ 1h }", NOT_BOOLEAN, "{ 1h }")]
#[case("{ \"foo\" }", NOT_BOOLEAN, "{ \"foo\" }")]
#[case("{ 1 + 1 }", NOT_BOOLEAN, "{ 1 + 1 }")]
#[case("{ 1 + \"foo\" = 1 }", DIFFERENT, "1 + \"foo\"")]
#[case("{ 1 / ok = 1 }", DIFFERENT, "1 / ok")]
#[case("{ 1 = \"foo\" }", DIFFERENT, "1 = \"foo\"")]
#[case("{ 1 = name }", DIFFERENT, "1 = name")]
#[case("{ rootServiceName = 1 }", DIFFERENT, "rootServiceName = 1")]
#[case("{ nestedSetLeft = \"foo\" }", DIFFERENT, "nestedSetLeft = \"foo\"")]
#[case("{ traceDuration > \"test\" }", DIFFERENT, "traceDuration > \"test\"")]
#[case("{ 1 =~ 2 }", ILLEGAL, "1 =~ 2")]
#[case("{ 1 && .a }", ILLEGAL, "1 && .a")]
#[case("{ true || 1.1 }", ILLEGAL, "true || 1.1")]
#[case("{ status > ok }", ILLEGAL, "status > ok")]
#[case("{ kind < consumer }", ILLEGAL, "kind < consumer")]
#[case("{ name + \"a\" = \"b\" }", ILLEGAL, "name + \"a\"")]
#[case("{ -true }", ILLEGAL_UNARY, "-true")]
#[case("{ -\"foo\" = \"bar\" }", ILLEGAL_UNARY, "-\"foo\"")]
#[case("{ !name = \"foo\" }", ILLEGAL_UNARY, "!name")]
#[case("{ !1h = 1 }", ILLEGAL_UNARY, "!1h")]
#[case("min(1 = 3) = 1", NO_NUMBER, "min(1 = 3)")]
#[case("{} | avg(name) > 1", NO_NUMBER, "avg(name)")]
#[case("{} | min_over_time(name)", NO_NUMBER, "min_over_time(name)")]
#[case("sum(3) = 2", NO_SPAN, "sum(3)")]
#[case("max(1h + 2h) > 1", NO_SPAN, "max(1h + 2h)")]
#[case("{ true } | by(\"foo\")", NO_GROUP, "by(\"foo\")")]
#[case("{} | quantile_over_time(duration, 2)", "quantile must be between 0 and 1", "quantile_over_time(duration, 2.0)")]
#[case("{ .a =~ .b }", "the right side of a regular expression match must be a string", ".a =~ .b")]
#[case("{ .a =~ \"[\" }", "invalid regex", "[: unclosed character class")]
#[case("{ .a =~ \"a)(b\" }", "invalid regex", "a)(b: unopened group")]
#[case(
    "{ .a =~ \"(\\\\w{100}){100}\" }",
    "invalid regex",
    "(\\w{100}){100}: Compiled regex exceeds size limit of 1048576 bytes."
)]
#[case("{ name = nil }", "name = nil is never true", "every span has intrinsics")]
#[case(
    "{ resource.service.name = nil }",
    "resource.service.name = nil is never true",
    "every resource has a service name"
)]
#[case("{} | rate() | topk(0)", "limit must be greater than 0", "| topk(0)")]
fn refuses_what_has_no_meaning(#[case] text: &str, #[case] rule: &str, #[case] what: &str) {
    let error = parse(text).unwrap_err();
    assert!(matches!(error, TraceQlError::Invalid { .. }), "{error:?}");
    assert_eq!(error.to_string(), format!("{rule}: {what}"));
}

#[rstest]
#[case("{ parent = nil }")]
#[case("{ } | select(parent)")]
fn the_parent_as_a_whole_is_refused_as_tempo_does(#[case] text: &str) {
    assert_eq!(parse(text).unwrap_err().to_string(), "parent not yet supported");
}

/// Tempo reads these, and does not evaluate them.
#[rstest]
#[case("{ parent.a != 3 }")]
#[case("{ parent.resource.a && true }")]
#[case("{ parent.span.a > 3 }")]
#[case("{ parent.resource.service.name = nil }")]
#[case("{ true } | max(parent.a) = 1")]
#[case("{ true } | select(parent.a)")]
fn attributes_of_the_parent_are_accepted(#[case] text: &str) {
    assert_eq!(parse(text).unwrap().to_string(), text);
}

#[rstest]
#[case::syntax("{ nmae = 2 }", "{ nmae = 2 }\n  ^")]
#[case::second_line("{ .a = 1 &&\n  nmae = 2 }", "  nmae = 2 }\n  ^")]
#[case::at_the_end("{ .a = 1", "{ .a = 1\n        ^")]
#[case::type_of_a_part("{ .a = 1 && (name = 1) }", "{ .a = 1 && (name = 1) }\n             ^")]
#[case::other_spelling("{ .a = 1 && span:name   = 0001 }", "{ .a = 1 && span:name   = 0001 }\n                 ^")]
#[case::regex("{ .b = 1 && .a =~ `[` }", "{ .b = 1 && .a =~ `[` }\n                  ^")]
#[case::aggregate("{} | avg( name ) > 1", "{} | avg( name ) > 1\n     ^")]
#[case::metrics("{} | rate() | topk(0)", "{} | rate() | topk(0)\n            ^")]
#[case::nil("{ .x && status=nil }", "{ .x && status=nil }\n        ^")]
#[case::unsupported("{ .x && parent = nil }", "{ .x && parent = nil }\n        ^")]
#[case::wide_characters("{ name = \"é😀\" && nmae = 2 }", "{ name = \"é😀\" && nmae = 2 }\n                 ^")]
fn shows_where_it_is_wrong(#[case] text: &str, #[case] shown: &str) {
    let error = parse(text).unwrap_err();
    assert_eq!(error.shown_in(text), format!("{error}\n{shown}"));
}

#[test]
fn of_a_long_line_a_part_is_shown() {
    let text = format!("{{ {}nmae = 1 && {} }}", ".a = 1 && ".repeat(50), ".b = 1".repeat(50));
    let shown = parse(&text).unwrap_err().shown_in(&text);
    let [_, line, caret] = shown.lines().collect::<Vec<_>>()[..] else { panic!("{shown}") };
    assert_eq!(line.chars().count(), 120);
    assert!(line.get(caret.find('^').unwrap()..).unwrap().starts_with("nmae"), "{shown}");
}

#[rstest]
#[case::scope("{ resorce.service.name = \"a\" }", "a scope; did you mean \"resource.service.name\"?")]
#[case::no_scope("{ http.status = 1 }", "a scope: one of span, resource, event, link, instrumentation")]
#[case::second_stage("{} | rate() | topq(3)", "\"topk\" or \"bottomk\"; did you mean \"topk\"?")]
#[case::function("{} | rat()", "a stage like { … }; did you mean \"rate\"?")]
#[case::status("{ status = eror }", "an intrinsic or a value; did you mean \"error\"?")]
fn names_the_nearest_valid_name(#[case] text: &str, #[case] expected: &str) {
    let error = parse(text).unwrap_err().to_string();
    assert!(error.ends_with(&format!(", expecting {expected}")), "{error}");
}

#[rstest]
#[case(".foo", Scope::Any, "foo")]
#[case("resource.service.name", Scope::Resource, "service.name")]
#[case("span.\"a b\"", Scope::Span, "a b")]
#[case("event.x", Scope::Event, "x")]
#[case("link.x/y", Scope::Link, "x/y")]
fn reads_the_name_of_an_attribute(#[case] text: &str, #[case] scope: Scope, #[case] name: &str) {
    let expected = Attribute { parent: false, scope, name: name.to_owned() };
    assert_eq!(parse_field(text), Ok(Field::Attribute(expected)));
}

#[rstest]
#[case("status", Intrinsic::Status)]
#[case("span:status", Intrinsic::Status)]
#[case("event:name", Intrinsic::EventName)]
fn reads_the_name_of_an_intrinsic(#[case] text: &str, #[case] intrinsic: Intrinsic) {
    assert_eq!(parse_field(text), Ok(Field::Intrinsic(intrinsic)));
}

#[test]
fn every_intrinsic_is_read_by_both_its_names() {
    for intrinsic in Intrinsic::ALL {
        let scoped = intrinsic.scoped_name().map(|(scope, name)| format!("{}:{name}", scope.name()));
        for name in intrinsic.plain_name().map(str::to_owned).into_iter().chain(scoped) {
            assert_eq!(parse_field(&name), Ok(Field::Intrinsic(intrinsic)), "{name}");
        }
    }
}

#[rstest]
#[case::whole("{ .a = 1 }", Some(".a = 1"))]
#[case::cut_off("{ .a = 1 && .b = ", Some(".a = 1"))]
#[case::closed("{ .a = 1 && .b = }", Some(".a = 1"))]
#[case::first_missing("{ .b = && .a = 1 }", Some(".a = 1"))]
#[case::two("{ .a = 1 && resource.x = \"y\" && .b =", Some(".a = 1 && resource.x = \"y\""))]
#[case::in_string("{ .a = 1 && .b = \"x", Some(".a = 1"))]
#[case::brackets("{ (.a = 1 || .b = 2) && .c = }", Some(".a = 1 || .b = 2"))]
#[case::or_hides("{ .a = 1 || .b = }", None)]
#[case::nothing("{ .b = }", None)]
#[case::empty("{ }", Some("true"))]
#[case::just_open("{", None)]
#[case::no_query("", None)]
#[case::pipeline("{ .a = 1 } | count() > 2", Some(".a = 1"))]
#[case::structure("{ .a = 1 } >> { .b = 1 }", None)]
fn understands_what_is_being_typed(#[case] text: &str, #[case] filter: Option<&str>) {
    assert_eq!(filter_of_unfinished(text).map(|expr| expr.to_string()).as_deref(), filter);
}

#[rstest]
#[case::brackets("{ ", "(", ".a", ")", " }")]
#[case::nots("{ ", "!", ".a", "", " }")]
#[case::minuses("{ ", "- ", ".a", "", " = 1 }")]
#[case::powers("{ ", "1 ^ ", "1", "", " = 1 }")]
#[case::additions("{ ", "1 + ", "1", "", " = 1 }")]
#[case::spansets("", "(", "{ .a }", ")", "")]
#[case::descendants("", "{ .a } >> ", "{ .a }", "", "")]
#[case::scalars("{} | ", "count() + ", "count()", "", " > 1")]
#[case::scalar_powers("{} | ", "count() ^ ", "count()", "", " > 1")]
#[case::alternating("{ ", "true || true && ", ".a", "", " }")]
#[case::second_stages("{} | rate()", " | topk(1)", "", "", "")]
#[case::metrics("", "1 + (", "{} | rate()", ")", "")]
fn deep_queries_are_an_error_not_a_crash(
    #[case] before: &str,
    #[case] open: &str,
    #[case] middle: &str,
    #[case] close: &str,
    #[case] after: &str,
) {
    for depth in [10, 5_000] {
        let text = format!("{before}{}{middle}{}{after}", open.repeat(depth), close.repeat(depth));
        let result = parser::parse(&text);
        if depth == 10 {
            assert_eq!(result.map(|_| ()), Ok(()));
        } else {
            let error = result.unwrap_err().to_string();
            assert!(error.ends_with("nested deeper than 100 levels"), "{error}");
        }
    }
}

#[test]
fn long_chains_are_no_deep_trees() {
    let chain = vec![".a = \"value\""; 7_000].join(" || ");
    let query = parse(&format!("{{ {chain} }}")).unwrap();
    assert_eq!(query.to_string(), format!("{{ {chain} }}"));
}

#[test]
fn the_deepest_tree_fits_a_small_stack() {
    let text = format!("{{ {}.a{} }}", "!(".repeat(48), ")".repeat(48));
    let small = std::thread::Builder::new().stack_size(512 << 10);
    let printed = small.spawn(move || parse(&text).unwrap().to_string()).unwrap().join().unwrap();
    assert_eq!(printed, format!("{{ {}.a }}", "!".repeat(48)));
}

#[test]
fn long_queries_are_refused() {
    let text = format!("{{ .a = \"{}\" }}", "x".repeat(MAX_QUERY_BYTES));
    let error = parse(&text).unwrap_err().to_string();
    assert_eq!(error, "TraceQL expression exceeds the configured maximum size of 131072 bytes. received 131083 bytes");
}
