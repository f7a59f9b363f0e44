//! Names in pieces, and which of these look like data.

/// What stands for data in a pattern: Tempo's.
pub(super) const WILDCARD: &str = "<_>";

/// Length of a UUID, and where its dashes are.
const UUID_LENGTH: usize = 36;
const UUID_DASHES: [usize; 4] = [8, 13, 18, 23];

/// A piece of a name: a word, or what stands between two words.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Token<'a> {
    pub(super) text: &'a str,
    /// Whether it looks like an id, a number or a time, and not like something that somebody called so.
    pub(super) is_data: bool,
}

/// The pieces of a name. One after the other they are the name.
pub(super) fn tokens(name: &str) -> impl Iterator<Item = Token<'_>> {
    let mut rest = name;
    std::iter::from_fn(move || {
        let (length, is_data) = first(rest.as_bytes());
        let (text, after) = rest.split_at_checked(length).filter(|_| length > 0)?;
        rest = after;
        Some(Token { text, is_data })
    })
}

/// Length of the first piece, and whether it looks like data. It ends before or behind a letter of one byte.
fn first(text: &[u8]) -> (usize, bool) {
    if text.starts_with(WILDCARD.as_bytes()) {
        return (WILDCARD.len(), true);
    }
    if is_uuid(text) {
        return (UUID_LENGTH, true);
    }
    let begins_word = text.first().is_some_and(|byte| is_of_word(*byte));
    let ends = |place: usize, byte: u8| {
        let wildcard = byte == b'<' && text.get(place..).is_some_and(|rest| rest.starts_with(WILDCARD.as_bytes()));
        is_of_word(byte) != begins_word || wildcard
    };
    let length = text.iter().enumerate().position(|(place, byte)| ends(place, *byte)).unwrap_or(text.len());
    (length, begins_word && text.get(..length).is_some_and(is_data))
}

const fn is_of_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || !byte.is_ascii()
}

fn is_uuid(text: &[u8]) -> bool {
    let Some(uuid) = text.get(..UUID_LENGTH) else { return false };
    let is_right = |(place, byte): (usize, &u8)| {
        if UUID_DASHES.contains(&place) { *byte == b'-' } else { byte.is_ascii_hexdigit() }
    };
    uuid.iter().enumerate().all(is_right) && !text.get(UUID_LENGTH).is_some_and(|byte| is_of_word(*byte))
}

/// Whether a word is rather data. What people call things has few digits, and these at its end: `v2`, `oauth2`, `sha256`.
fn is_data(word: &[u8]) -> bool {
    let digits = word.iter().filter(|byte| byte.is_ascii_digit()).count();
    let begins_with_digit = word.first().is_some_and(u8::is_ascii_digit);
    match digits {
        0 => false,
        _ if digits == word.len() => true,
        1 => word.len() >= 8 && word.iter().all(u8::is_ascii_hexdigit),
        2 | 3 => begins_with_digit || word.len() >= 16 || word.len() >= 8 && word.iter().all(u8::is_ascii_hexdigit),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    /// Pieces with `|` between them; data in brackets.
    fn shown(name: &str) -> String {
        let shown =
            tokens(name).map(|token| if token.is_data { format!("[{}]", token.text) } else { token.text.to_owned() });
        shown.collect::<Vec<_>>().join("|")
    }

    #[rstest]
    #[case::nothing("", "")]
    #[case::path("GET /users/123", "GET| /|users|/|[123]")]
    #[case::versions("/api/v2/oauth2/sha256/x86/4xx", "/|api|/|v2|/|oauth2|/|sha256|/|x86|/|4xx")]
    #[case::uuid("get 550e8400-e29b-41d4-a716-446655440000/x", "get| |[550e8400-e29b-41d4-a716-446655440000]|/|x")]
    #[case::nearly_a_uuid(
        "550e8400-e29b-41d4-a716-446655440000f",
        "[550e8400]|-|e29b|-|[41d4]|-|a716|-|[446655440000f]"
    )]
    #[case::hex("commit deadbee1 facade decade01", "commit| |[deadbee1]| |facade| |[decade01]")]
    #[case::words_with_numbers("order1234 job-7 node17", "[order1234]| |job|-|[7]| |node17")]
    #[case::time("at 2024-01-02T03:04:05Z", "at| |[2024]|-|[01]|-|[02T03]|:|[04]|:|[05Z]")]
    #[case::random("q aGVsbG8gd29ybGQh1x2", "q| |[aGVsbG8gd29ybGQh1x2]")]
    #[case::pattern("GET /users/<_>/x<_>", "GET| /|users|/|[<_>]|/|x|[<_>]")]
    #[case::other_brackets("a<b>_<_", "a|<|b|>_<_")]
    #[case::letters("größe/7", "größe|/|[7]")]
    fn names_in_pieces(#[case] name: &str, #[case] expected: &str) {
        assert_eq!(shown(name), expected);
    }

    proptest! {
        #[test]
        fn pieces_together_are_the_name(name in "(\\PC|[-/<_>0-9a-f]){0,60}") {
            prop_assert_eq!(tokens(&name).map(|token| token.text).collect::<String>(), name.clone());
            prop_assert!(tokens(&name).all(|token| !token.text.is_empty()));
        }
    }
}
