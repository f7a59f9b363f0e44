//! Protobuf messages as JSON, the way Tempo writes it (gogo's `jsonpb`), which is not OTLP's JSON: bytes are base64, 64-bit
//! integers are strings, enums are names, fields with their default value are left away.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

/// A message that can be written as JSON.
pub(super) trait ToJson {
    /// Writes the fields.
    fn fields(&self, object: &mut Object<'_>);

    /// The whole message.
    fn to_json(&self) -> String {
        let mut text = String::new();
        write(&mut text, self);
        text
    }
}

fn write(text: &mut String, message: &(impl ToJson + ?Sized)) {
    let mut object = Object { text, first: true };
    object.text.push('{');
    message.fields(&mut object);
    object.text.push('}');
}

/// Writes fields between `{` and `}`.
pub(super) struct Object<'a> {
    text: &'a mut String,
    first: bool,
}

impl Object<'_> {
    fn key(&mut self, name: &str) {
        if !std::mem::take(&mut self.first) {
            self.text.push(',');
        }
        string(self.text, name);
        self.text.push(':');
    }

    /// Left away if it is empty.
    pub(super) fn string(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.oneof_string(name, value);
        }
    }

    /// Written even if it is empty: a choice that was made.
    pub(super) fn oneof_string(&mut self, name: &str, value: &str) {
        self.key(name);
        string(self.text, value);
    }

    /// Base64; left away if it is empty.
    pub(super) fn bytes(&mut self, name: &str, value: &[u8]) {
        self.string(name, &BASE64_STANDARD.encode(value));
    }

    /// A number; left away if it is 0.
    pub(super) fn u32(&mut self, name: &str, value: u32) {
        if value != 0 {
            self.key(name);
            self.text.push_str(&value.to_string());
        }
    }

    /// A number in a string; left away if it is 0.
    pub(super) fn u64(&mut self, name: &str, value: u64) {
        if value != 0 {
            self.oneof_string(name, &value.to_string());
        }
    }

    /// A number in a string; left away if it is 0.
    pub(super) fn i64(&mut self, name: &str, value: i64) {
        if value != 0 {
            self.oneof_string(name, &value.to_string());
        }
    }

    /// A floating-point number; left away if it is 0.
    pub(super) fn f64(&mut self, name: &str, value: f64) {
        if value != 0.0 {
            self.oneof_f64(name, value);
        }
    }

    /// A floating-point number.
    pub(super) fn oneof_f64(&mut self, name: &str, value: f64) {
        self.key(name);
        self.text.push_str(&float(value));
    }

    /// True or false.
    pub(super) fn oneof_bool(&mut self, name: &str, value: bool) {
        self.key(name);
        self.text.push_str(if value { "true" } else { "false" });
    }

    /// A message, even if it is empty.
    pub(super) fn message(&mut self, name: &str, value: &impl ToJson) {
        self.key(name);
        write(self.text, value);
    }

    /// A list of messages; left away if it is empty.
    pub(super) fn messages<T: ToJson>(&mut self, name: &str, values: &[T]) {
        if !values.is_empty() {
            self.list(name, values);
        }
    }

    /// A list of messages, even if it is empty.
    pub(super) fn list<T: ToJson>(&mut self, name: &str, values: &[T]) {
        self.items(name, values, write);
    }

    /// A list of texts, even if it is empty.
    pub(super) fn strings(&mut self, name: &str, values: &[String]) {
        self.items(name, values, |text, value| string(text, value));
    }

    /// A message for each key; left away if it is empty.
    pub(super) fn map<'m, T: ToJson + 'm>(
        &mut self,
        name: &str,
        entries: impl ExactSizeIterator<Item = (&'m String, &'m T)>,
    ) {
        if entries.len() == 0 {
            return;
        }
        self.key(name);
        self.text.push('{');
        let mut inner = Object { text: &mut *self.text, first: true };
        for (key, value) in entries {
            inner.message(key, value);
        }
        self.text.push('}');
    }

    fn items<T>(&mut self, name: &str, values: &[T], write: impl Fn(&mut String, &T)) {
        self.key(name);
        self.text.push('[');
        for (index, value) in values.iter().enumerate() {
            if index > 0 {
                self.text.push(',');
            }
            write(self.text, value);
        }
        self.text.push(']');
    }
}

/// A quoted text.
fn string(text: &mut String, value: &str) {
    let is_plain = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
    text.push('"');
    if value.bytes().all(is_plain) {
        text.push_str(value);
    } else {
        escape(text, value);
    }
    text.push('"');
}

fn escape(text: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            // The last two end lines in JavaScript.
            '\0'..='\x1f' | '\x7f' | '\u{2028}' | '\u{2029}' => text.extend(format!("\\u{:04x}", u32::from(c)).chars()),
            c => text.push(c),
        }
    }
}

/// A number as Go writes it; what is none is a text.
fn float(value: f64) -> String {
    if value.is_nan() {
        return "\"NaN\"".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "\"Infinity\"" } else { "\"-Infinity\"" }.to_owned();
    }
    let magnitude = value.abs();
    if magnitude != 0.0 && !(1e-6..1e21).contains(&magnitude) {
        let text = format!("{value:e}");
        // Go writes a plus before a positive exponent.
        return if magnitude >= 1e21 { text.replace('e', "e+") } else { text };
    }
    value.to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    struct Everything<'a> {
        text: &'a str,
        bytes: &'a [u8],
        number: u64,
        list: Vec<Everything<'a>>,
    }

    impl ToJson for Everything<'_> {
        fn fields(&self, object: &mut Object<'_>) {
            object.string("text", self.text);
            object.bytes("bytes", self.bytes);
            object.u32("small", self.number as u32);
            object.u64("large", self.number);
            object.messages("list", &self.list);
        }
    }

    #[test]
    fn defaults_are_left_away() {
        let empty = || Everything { text: "", bytes: &[], number: 0, list: Vec::new() };
        assert_eq!(empty().to_json(), "{}");
        let full = Everything { text: "a\"\\\n\u{1}é", bytes: &[1, 2, 255], number: 7, list: vec![empty(), empty()] };
        let expected = r#"{"text":"a\"\\\n\u0001é","bytes":"AQL/","small":7,"large":"7","list":[{},{}]}"#;
        assert_eq!(full.to_json(), expected);
    }

    #[rstest]
    #[case(0.0, "0")]
    #[case(-1.0, "-1")]
    #[case(0.033, "0.033")]
    #[case(1e20, "100000000000000000000")]
    #[case(1e21, "1e+21")]
    #[case(1e-6, "0.000001")]
    #[case(1.5e-7, "1.5e-7")]
    #[case(f64::NAN, "\"NaN\"")]
    #[case(f64::INFINITY, "\"Infinity\"")]
    #[case(f64::NEG_INFINITY, "\"-Infinity\"")]
    fn writes_floats_like_go(#[case] value: f64, #[case] text: &str) {
        assert_eq!(float(value), text);
    }

    proptest! {
        #[test]
        fn any_text_is_valid_json(value in any::<String>()) {
            let mut text = String::new();
            string(&mut text, &value);
            prop_assert_eq!(serde_json::from_str::<String>(&text).unwrap(), value);
        }

        #[test]
        fn any_float_is_valid_json(value in prop::num::f64::NORMAL | prop::num::f64::SUBNORMAL | prop::num::f64::ZERO) {
            let text = float(value);
            prop_assert!(serde_json::from_str::<f64>(&text).is_ok(), "{}", text);
            prop_assert_eq!(text.parse::<f64>().unwrap().to_bits(), value.to_bits());
        }
    }
}
