use proptest::prelude::*;
use rstest::rstest;

use super::*;

fn read(text: &str) -> Result<Vec<Statement>, SyntaxError> {
    parse(text, &|name| (name == "TOKEN").then(|| "secret".to_owned()))
}

fn value(text: &str) -> Data {
    match read(&format!("a = {text}")).unwrap().as_slice() {
        [Statement::Attribute(_, node)] => node.data.clone(),
        other => panic!("{other:?}"),
    }
}

fn text(text: &str) -> Data {
    Data::Text(text.to_owned())
}

#[rstest]
#[case::string(r#""a b""#, text("a b"))]
#[case::escapes(r#""a\n\"\\\u00e9\x41""#, text("a\n\"\\éA"))]
#[case::raw_string("`a\\n\nb`", text("a\\n\nb"))]
#[case::number("12", text("12"))]
#[case::negative("-1.5", text("-1.5"))]
#[case::exponent("1.5e-3", text("1.5e-3"))]
#[case::truth("true", text("true"))]
#[case::nothing("null", Data::Nothing)]
#[case::reference("otelcol.exporter.otlp.x.input", Data::Expression("otelcol.exporter.otlp.x.input".into()))]
#[case::variable(r#"sys.env("TOKEN")"#, text("secret"))]
#[case::old_variable(r#"env("TOKEN")"#, text("secret"))]
#[case::unset_variable(r#"sys.env("X")"#, text(""))]
#[case::sum(r#""Bearer " + sys.env("TOKEN")"#, text("Bearer secret"))]
#[case::parentheses(r#"("a" + ("b"))"#, text("ab"))]
#[case::not_sensitive(r#"convert.nonsensitive("a")"#, text("a"))]
#[case::arithmetic("1 + x.y * 2", Data::Expression("1 + x.y * 2".into()))]
#[case::negation("!x", Data::Expression("!x".into()))]
#[case::call(r#"f("a", [1])"#, Data::Expression(r#"f("a", [1])"#.into()))]
#[case::place_and_name("f(1)[0].b", Data::Expression("f(1)[0].b".into()))]
#[case::empty_list("[]", Data::List(vec![]))]
fn values(#[case] source: &str, #[case] expected: Data) {
    assert_eq!(value(source), expected);
}

#[test]
fn lists_and_objects_may_have_lines_of_their_own() {
    let source = "[\n  \"a\", // first\n  {\n    b   = 1,\n    \"c-d\" = [x.y],\n  },\n]";
    let Data::List(items) = value(source) else { panic!() };
    assert_eq!(items[0].data, text("a"));
    assert_eq!(items[0].line, 2);
    assert_eq!(items[1].get("b").unwrap().text(), Some("1"));
    assert_eq!(items[1].get("c-d").unwrap().line, 5);
}

#[test]
fn blocks_have_labels_bodies_and_lines() {
    let source = "// comment\nbeyla.ebpf \"default\" { /* x\n */ routes { unmatched = \"heuristic\" patterns = [\"/a\"] }\n}\nb = 1";
    let statements = read(source).unwrap();
    let [Statement::Block(block), Statement::Attribute(name, node)] = &statements[..] else { panic!("{statements:?}") };
    assert_eq!((block.name.as_str(), block.label.as_deref(), block.line), ("beyla.ebpf", Some("default"), 2));
    let [Statement::Block(routes)] = &block.body[..] else { panic!("{block:?}") };
    assert_eq!((routes.name.as_str(), routes.label.as_deref(), routes.line, routes.body.len()), ("routes", None, 3, 2));
    assert_eq!((name.as_str(), node.line), ("b", 5));
}

#[rstest]
#[case::no_value("a =", 1, "a value")]
#[case::no_body("a", 1, "`=`, a label or `{`")]
#[case::open_block("a {\n b = 1\n", 3, "`}`")]
#[case::open_string("a = \"x\nb = 1", 1, "the end of the string")]
#[case::open_raw_string("a = `x\nb", 1, "the end of the string")]
#[case::open_list("a = [1,\n2", 2, "`,` or the end of the list")]
#[case::no_comma("a = [1 2]", 1, "`,` or the end of the list")]
#[case::closed_too_often("a = 1\n}", 2, "a block, an attribute or the end of the file")]
#[case::escape(r#"a = "\q""#, 1, "an escape such as `\\n` or `\\u00e9`")]
#[case::surrogate(r#"a = "\ud800""#, 1, "hexadecimal digits of a character")]
#[case::symbol("a = @", 1, "a value")]
#[case::no_name("= 1", 1, "a block or an attribute")]
#[case::object_without_value("a = {b}", 1, "`=`")]
fn mistakes(#[case] source: &str, #[case] line: u64, #[case] expected: &'static str) {
    assert_eq!(read(source), Err(SyntaxError { line, expected }));
}

#[rstest]
#[case("[", "]")]
#[case("(", ")")]
#[case("a { ", "}")]
#[case("-", "1")]
fn depth_is_bounded(#[case] open: &str, #[case] close: &str) {
    let start = if open.starts_with('a') { "" } else { "x = " };
    let source = format!("{start}{}{}", open.repeat(100_000), close.repeat(100_000));
    assert!(read(&source).is_err());
}

#[test]
fn takes_every_prefix() {
    let source = include_str!("fixtures/alloy.alloy");
    for length in (0..=source.len()).filter(|length| source.is_char_boundary(*length)) {
        let _ = read(source.get(..length).unwrap());
    }
    assert!(read(source).is_ok());
}

/// Values, and how they are written.
fn values_and_texts() -> impl Strategy<Value = (Data, String)> {
    let string = ".{0,12}".prop_map(|it| {
        let escaped = it.chars().map(|letter| format!("\\U{:08x}", u32::from(letter))).collect::<Vec<_>>().concat();
        (Data::Text(it), format!("\"{escaped}\""))
    });
    let leaf = prop_oneof![string, Just((Data::Nothing, "null".to_owned())), Just((text("7"), "7".to_owned()))];
    leaf.prop_recursive(3, 16, 4, |inner| {
        let node = |data| Node { line: 1, data };
        let list = proptest::collection::vec(inner.clone(), 0..4).prop_map(move |items| {
            let texts: Vec<String> = items.iter().map(|(_, text)| text.clone()).collect();
            let items = items.into_iter().map(|(data, _)| node(data)).collect();
            (Data::List(items), format!("[{}]", texts.join(", ")))
        });
        let map = proptest::collection::vec(("[a-z]{1,5}", inner), 0..4).prop_map(move |entries| {
            let texts: Vec<String> = entries.iter().map(|(key, (_, text))| format!("{key} = {text}")).collect();
            let entries = entries.into_iter().map(|(key, (data, _))| (key, node(data))).collect();
            (Data::Map(entries), format!("{{ {} }}", texts.join(", ")))
        });
        prop_oneof![list, map]
    })
}

proptest! {
    #[test]
    fn takes_any_text(source in ".{0,200}") {
        let _ = read(&source);
    }

    #[test]
    fn takes_anything_of_its_own_letters(source in r#"[a.=\{\}\[\]\(\)",`\\ 1+!/*\n-]{0,80}"#) {
        let _ = read(&source);
    }

    #[test]
    fn reads_what_is_written((data, source) in values_and_texts()) {
        prop_assert_eq!(value(&source), data);
    }
}
