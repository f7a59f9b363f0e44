//! Numbers, durations and strings as Go writes them.

/// Units of a duration, longest names first, in nanoseconds. `µ` comes as U+00B5 and U+03BC.
const UNITS: [(&str, i64); 10] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
    ("w", 604_800_000_000_000),
];
const YEAR: (&str, i64) = ("y", 365 * 86_400_000_000_000);

/// Reads `1h30m`, `1.5s`, `100ms`, `2d` into nanoseconds: the units of Go and of Prometheus. `None` if it is none, or
/// does not fit.
pub fn parse_duration(text: &str) -> Option<i64> {
    let mut rest = text;
    let mut total: i64 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at_checked(digits)?;
        let letters = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at_checked(letters)?;
        let (_, nanos) = UNITS.iter().chain([&YEAR]).find(|(name, _)| *name == unit)?;
        total = total.checked_add(scaled(number, *nanos)?)?;
        rest = tail;
    }
    (!text.is_empty()).then_some(total)
}

/// `number * nanos`, without rounding where the fraction allows it.
fn scaled(number: &str, nanos: i64) -> Option<i64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut total = whole.checked_mul(nanos)?;
    let mut unit = nanos as f64;
    let mut part = 0.0;
    for digit in fraction.bytes() {
        unit /= 10.0;
        part += unit * f64::from(digit - b'0');
    }
    total = total.checked_add(part.round() as i64)?;
    Some(total)
}

/// Writes nanoseconds so that [`parse_duration`] reads them again: the longest unit that divides them.
pub(super) fn print_duration(nanos: i64) -> String {
    let magnitude = nanos.unsigned_abs();
    let sign = if nanos < 0 { "-" } else { "" };
    if magnitude == 0 {
        return "0s".to_owned();
    }
    for (name, unit) in [("h", 3_600_000_000_000), ("m", 60_000_000_000), ("s", 1_000_000_000), ("ms", 1_000_000)] {
        if magnitude.is_multiple_of(unit) {
            return format!("{sign}{}{name}", magnitude / unit);
        }
    }
    if magnitude.is_multiple_of(1_000) {
        format!("{sign}{}us", magnitude / 1_000)
    } else {
        format!("{sign}{magnitude}ns")
    }
}

/// Reads what stands between double quotes, with Go's escapes.
pub(super) fn unquote(body: &str) -> Result<String, &'static str> {
    let mut bytes = Vec::with_capacity(body.len());
    let mut chars = body.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        match chars.next().ok_or("invalid escape sequence")? {
            'a' => bytes.push(0x07),
            'b' => bytes.push(0x08),
            'f' => bytes.push(0x0c),
            'n' => bytes.push(b'\n'),
            'r' => bytes.push(b'\r'),
            't' => bytes.push(b'\t'),
            'v' => bytes.push(0x0b),
            c @ ('\\' | '"') => bytes.push(c as u8),
            'x' => bytes.push(u8::try_from(digits(&mut chars, 2, 16)?).map_err(|_| "invalid escape sequence")?),
            c @ '0'..='7' => {
                let first = c.to_digit(8).unwrap_or_default();
                let value = first * 64 + digits(&mut chars, 2, 8)?;
                bytes.push(u8::try_from(value).map_err(|_| "octal escape is over 255")?);
            }
            c @ ('u' | 'U') => {
                let value = digits(&mut chars, if c == 'u' { 4 } else { 8 }, 16)?;
                let c = char::from_u32(value).ok_or("escape is no Unicode character")?;
                bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            }
            _ => return Err("invalid escape sequence"),
        }
    }
    String::from_utf8(bytes).map_err(|_| "string is not valid UTF-8")
}

fn digits(chars: &mut std::str::Chars<'_>, count: u32, radix: u32) -> Result<u32, &'static str> {
    (0..count).try_fold(0, |value: u32, _| {
        let digit = chars.next().and_then(|c| c.to_digit(radix)).ok_or("invalid escape sequence")?;
        value.checked_mul(radix).and_then(|v| v.checked_add(digit)).ok_or("invalid escape sequence")
    })
}

/// Writes a string so that [`unquote`] reads it again.
pub(super) fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() => quoted.extend(format!("\\u{:04x}", u32::from(c)).chars()),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::go("1h30m", Some(5_400_000_000_000))]
    #[case::fraction("1.5s", Some(1_500_000_000))]
    #[case::small("100ns", Some(100))]
    #[case::micro("2µs", Some(2_000))]
    #[case::other_micro("2μs", Some(2_000))]
    #[case::prometheus("1d2h", Some(93_600_000_000_000))]
    #[case::year("1y", Some(31_536_000_000_000_000))]
    #[case::leading_point(".5s", Some(500_000_000))]
    #[case::exact("0.1s", Some(100_000_000))]
    #[case::no_unit("15", None)]
    #[case::no_number("s", None)]
    #[case::point_only(".s", None)]
    #[case::two_points("1.2.3s", None)]
    #[case::unknown_unit("1x", None)]
    #[case::empty("", None)]
    #[case::overflow("300y", None)]
    fn reads_durations(#[case] text: &str, #[case] nanos: Option<i64>) {
        assert_eq!(parse_duration(text), nanos);
    }

    #[rstest]
    #[case::plain("abc", Ok("abc"))]
    #[case::escapes(r#"a\"\\\n\t\r\a\b\f\v"#, Ok("a\"\\\n\t\r\u{7}\u{8}\u{c}\u{b}"))]
    #[case::unicode(r"\u00e9\U0001F600", Ok("é😀"))]
    #[case::bytes(r"\xc3\xa9\101", Ok("éA"))]
    #[case::unknown(r"\q", Err("invalid escape sequence"))]
    #[case::short(r"\u00e", Err("invalid escape sequence"))]
    #[case::end(r"\", Err("invalid escape sequence"))]
    #[case::surrogate(r"\ud800", Err("escape is no Unicode character"))]
    #[case::not_utf8(r"\xff", Err("string is not valid UTF-8"))]
    #[case::octal(r"\777", Err("octal escape is over 255"))]
    fn reads_strings(#[case] body: &str, #[case] expected: Result<&str, &str>) {
        assert_eq!(unquote(body).as_deref(), expected.as_ref().copied());
    }

    proptest! {
        #[test]
        fn durations_come_back(nanos in 0i64..) {
            prop_assert_eq!(parse_duration(&print_duration(nanos)), Some(nanos));
        }

        #[test]
        fn strings_come_back(text in any::<String>()) {
            let quoted = quote(&text);
            prop_assert_eq!(unquote(quoted.get(1..quoted.len() - 1).unwrap()), Ok(text));
        }

        #[test]
        fn any_text_is_survived(text in any::<String>()) {
            let _ = parse_duration(&text);
            let _ = unquote(&text);
        }
    }
}
