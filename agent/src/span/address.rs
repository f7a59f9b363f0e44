//! Names and ports out of the `Host` header.

use std::net::IpAddr;

/// `host[:port]`, of a `Host` header or an absolute target.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Authority<'a> {
    /// Host and port without user information.
    pub(super) text: &'a str,
    /// Name or address; an IPv6 one without its brackets.
    pub(super) name: &'a str,
    /// Port, if one is there.
    pub(super) port: Option<u16>,
}

impl<'a> Authority<'a> {
    /// Splits `text`. User information is dropped: it may be a password. So is the scheme that clients of etcd send with it.
    pub(super) fn parse(mut text: &'a str) -> Self {
        // Seldom there, and to look for one of a few bytes costs a tenth of looking for texts.
        if text.bytes().any(|byte| matches!(byte, b'/' | b'@' | b'[')) {
            text = text.split_once("://").map_or(text, |(_, authority)| authority);
            text = text.rsplit_once('@').map_or(text, |(_, host)| host);
            if let Some((name, rest)) = text.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
                return Self { text, name, port: rest.strip_prefix(':').and_then(parse_port) };
            }
        }
        let colon = text.bytes().position(|byte| byte == b':');
        match colon.and_then(|colon| text.split_at_checked(colon)) {
            // An IPv6 address without brackets has no port.
            Some((name, rest)) if !rest.bytes().skip(1).any(|byte| byte == b':') => {
                Self { text, name, port: rest.strip_prefix(':').and_then(parse_port) }
            }
            _ => Self { text, name: text, port: None },
        }
    }
}

/// An address as text that takes no memory of its own: every span has one or two.
#[derive(Clone, Copy, Debug)]
pub(super) struct AddressText {
    bytes: [u8; MOST],
    len: usize,
}

/// More than the longest IPv6 address has.
const MOST: usize = 48;

impl AddressText {
    pub(super) fn of(address: IpAddr) -> Self {
        let mut text = Self { bytes: [0; MOST], len: 0 };
        match address {
            // Nearly all are: this is several times faster than to format them.
            IpAddr::V4(address) => {
                for octet in address.octets() {
                    if text.len > 0 {
                        text.push(b'.');
                    }
                    for divisor in [100, 10, 1] {
                        if octet >= divisor || divisor == 1 {
                            text.push(b'0' + octet / divisor % 10);
                        }
                    }
                }
            }
            IpAddr::V6(address) => address.to_string().bytes().for_each(|byte| text.push(byte)),
        }
        text
    }

    fn push(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(self.len) {
            *place = byte;
            self.len += 1;
        }
    }

    pub(super) fn as_str(&self) -> &str {
        self.bytes.get(..self.len).and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default()
    }
}

fn parse_port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port > 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    proptest! {
        #[test]
        fn addresses_are_written_as_everywhere(address: IpAddr) {
            let text = AddressText::of(address);
            prop_assert_eq!(text.as_str(), address.to_string());
        }
    }

    #[rstest]
    #[case::name("shop", "shop", "shop", None)]
    #[case::name_and_port("shop.local:8080", "shop.local:8080", "shop.local", Some(8080))]
    #[case::empty_port("shop:", "shop:", "shop", None)]
    #[case::bad_port("shop:http", "shop:http", "shop", None)]
    #[case::port_too_large("shop:99999", "shop:99999", "shop", None)]
    #[case::ipv4("10.0.0.1:80", "10.0.0.1:80", "10.0.0.1", Some(80))]
    #[case::ipv6("[::1]:80", "[::1]:80", "::1", Some(80))]
    #[case::ipv6_without_port("[::1]", "[::1]", "::1", None)]
    #[case::ipv6_without_brackets("fe80::1", "fe80::1", "fe80::1", None)]
    #[case::open_bracket("[::1", "[::1", "[::1", None)]
    #[case::user("user:secret@shop:80", "shop:80", "shop", Some(80))]
    #[case::scheme("http://127.0.0.1:2379", "127.0.0.1:2379", "127.0.0.1", Some(2379))]
    #[case::empty("", "", "", None)]
    fn parts(#[case] text: &str, #[case] without_user: &str, #[case] name: &str, #[case] port: Option<u16>) {
        assert_eq!(Authority::parse(text), Authority { text: without_user, name, port });
    }
}
