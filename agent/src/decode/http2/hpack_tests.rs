use proptest::prelude::*;
use rstest::rstest;

use super::*;

fn bytes(hexadecimal: &str) -> Vec<u8> {
    let digit = |digit: u8| char::from(digit).to_digit(16).unwrap() as u8;
    hexadecimal.as_bytes().chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

fn text(field: &HeaderField) -> String {
    let part = |part: &Option<Bytes>| part.as_ref().map_or("?".into(), |it| String::from_utf8_lossy(it).into_owned());
    format!("{}: {}", part(&field.name), part(&field.value))
}

fn decode(decoder: &mut HeaderDecoder, block: &[u8]) -> Result<Vec<String>, HpackError> {
    let mut fields = Vec::new();
    decoder.decode(block, &mut |field| fields.push(text(&field)))?;
    Ok(fields)
}

/// What the standard shows of a table: its entries, newest first, and its size.
fn table(decoder: &HeaderDecoder) -> (Vec<String>, usize) {
    (decoder.entries.iter().map(text).collect(), decoder.size)
}

/// RFC 7541, appendix C.2.
#[rstest]
#[case::literal_with_indexing(
    "400a637573746f6d2d6b65790d637573746f6d2d686561646572",
    "custom-key: custom-header",
    &["custom-key: custom-header"]
)]
#[case::literal_without_indexing("040c2f73616d706c652f70617468", ":path: /sample/path", &[])]
#[case::literal_never_indexed("100870617373776f726406736563726574", "password: secret", &[])]
#[case::indexed("82", ":method: GET", &[])]
fn representations(#[case] block: &str, #[case] expected: &str, #[case] entries: &[&str]) {
    let mut decoder = HeaderDecoder::new();
    assert_eq!(decode(&mut decoder, &bytes(block)).unwrap(), [expected]);
    assert_eq!(table(&decoder).0, entries);
}

const REQUESTS: [&[&str]; 3] = [
    &[":method: GET", ":scheme: http", ":path: /", ":authority: www.example.com"],
    &[":method: GET", ":scheme: http", ":path: /", ":authority: www.example.com", "cache-control: no-cache"],
    &[
        ":method: GET",
        ":scheme: https",
        ":path: /index.html",
        ":authority: www.example.com",
        "custom-key: custom-value",
    ],
];

/// RFC 7541, appendices C.3 and C.4: the same requests, without and with the Huffman code.
#[rstest]
#[case::plain([
    "828684410f7777772e6578616d706c652e636f6d",
    "828684be58086e6f2d6361636865",
    "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
])]
#[case::huffman([
    "828684418cf1e3c2e5f23a6ba0ab90f4ff",
    "828684be5886a8eb10649cbf",
    "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
])]
fn requests(#[case] blocks: [&str; 3]) {
    let mut decoder = HeaderDecoder::new();
    for (block, expected) in blocks.iter().zip(REQUESTS) {
        assert_eq!(decode(&mut decoder, &bytes(block)).unwrap(), expected);
    }
    let entries = ["custom-key: custom-value", "cache-control: no-cache", ":authority: www.example.com"];
    assert_eq!(table(&decoder), (entries.map(str::to_owned).to_vec(), 164));
}

/// RFC 7541, appendices C.5 and C.6: responses, with a table of 256 bytes.
#[rstest]
#[case::plain([
    "4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d54\
     6e1768747470733a2f2f7777772e6578616d706c652e636f6d",
    "4803333037c1c0bf",
    "88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f3d4153444a4b48514b42\
     5a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b2076657273696f6e3d31",
])]
#[case::huffman([
    "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3",
    "4883640effc1c0bf",
    "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f\
     3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
])]
fn responses(#[case] blocks: [&str; 3]) {
    let mut decoder = HeaderDecoder::new();
    decoder.resize(256);
    let (date, later) = ("date: Mon, 21 Oct 2013 20:13:21 GMT", "date: Mon, 21 Oct 2013 20:13:22 GMT");
    let (private, location) = ("cache-control: private", "location: https://www.example.com");
    let cookie = "set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1";
    let [first, second, third] = blocks.map(bytes);
    assert_eq!(decode(&mut decoder, &first).unwrap(), [":status: 302", private, date, location]);
    assert_eq!(table(&decoder).1, 222);
    assert_eq!(decode(&mut decoder, &second).unwrap(), [":status: 307", private, date, location]);
    assert_eq!(table(&decoder).0, [":status: 307", location, date, private]);
    let fields = [":status: 200", private, later, location, "content-encoding: gzip", cookie];
    assert_eq!(decode(&mut decoder, &third).unwrap(), fields);
    assert_eq!(table(&decoder), ([cookie, "content-encoding: gzip", later].map(str::to_owned).to_vec(), 215));
}

#[test]
fn who_joins_late_knows_what_is_added_later_and_nothing_else() {
    let mut whole = HeaderDecoder::new();
    let mut late = HeaderDecoder::joined();
    let [first, second, third] = [
        "828684410f7777772e6578616d706c652e636f6d",
        "828684be58086e6f2d6361636865",
        "828785bfbe400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
    ]
    .map(bytes);
    decode(&mut whole, &first).unwrap();
    decode(&mut whole, &second).unwrap();
    let known = [":method: GET", ":scheme: http", ":path: /", "?: ?", "cache-control: no-cache"];
    assert_eq!(decode(&mut late, &second).unwrap(), known);
    let known = [
        ":method: GET",
        ":scheme: https",
        ":path: /index.html",
        "?: ?",
        "cache-control: no-cache",
        "custom-key: custom-value",
    ];
    assert_eq!(decode(&mut late, &third).unwrap(), known);
    assert_eq!(decode(&mut whole, &third).unwrap()[3], ":authority: www.example.com");
    // A new value for a name that is not known: still one more entry.
    assert_eq!(decode(&mut late, b"\x7f\x02\x01x\xbe\xbf").unwrap(), ["?: x", "?: x", "custom-key: custom-value"]);
}

#[test]
fn a_table_that_is_emptied_forgets() {
    let mut decoder = HeaderDecoder::new();
    decode(&mut decoder, &bytes("400a637573746f6d2d6b65790d637573746f6d2d686561646572")).unwrap();
    assert_eq!(decode(&mut decoder, b"\x20\x3f\xe1\x1f\x82").unwrap(), [":method: GET"]);
    assert_eq!((table(&decoder), decoder.max_size), ((vec![], 0), 4096));
    assert_eq!(decode(&mut decoder, b"\xbe"), Err(HpackError::Index { index: 62, entries: 61 }));
    assert_eq!(decode(&mut decoder, b"\xbe").unwrap(), ["?: ?"], "after an error the table is not known");
}

#[test]
fn an_entry_larger_than_the_table_empties_it() {
    let mut decoder = HeaderDecoder::new();
    decode(&mut decoder, b"\x40\x01a\x01b").unwrap();
    decoder.resize(40);
    assert_eq!(table(&decoder).1, 34);
    decode(&mut decoder, b"\x40\x05large\x05large").unwrap();
    assert_eq!(table(&decoder), (vec![], 0));
}

/// Whatever the ends agree on, memory is bounded; what was given up is unknown.
#[test]
fn a_huge_table_is_kept_in_part() {
    let mut decoder = HeaderDecoder::new();
    decode(&mut decoder, b"\x3f\xe1\xff\xff\x03").unwrap();
    let entry = [b"\x40\x01a\x7f\x81\x07".as_slice(), &[b'x'; 1024]].concat();
    for _ in 0..100 {
        decode(&mut decoder, &entry).unwrap();
    }
    assert!(decoder.size <= SIZE_LIMIT && decoder.entries.len() < 64);
    assert_eq!(decode(&mut decoder, b"\xff\x01").unwrap(), ["?: ?"]);
}

#[rstest]
#[case::index_zero(b"\x80", HpackError::Index { index: 0, entries: 61 })]
#[case::number_without_end(b"\xff\x80\x80\x80\x80\x80\x01", HpackError::Number { at: 0 })]
#[case::string_behind_the_end(b"\x40\x7f\xff\xff\xff\x7f", HpackError::Cut { len: 6 })]
#[case::huffman(b"\x40\x81\x00", HpackError::Huffman { at: 2 })]
fn what_is_no_block(#[case] block: &[u8], #[case] expected: HpackError) {
    assert_eq!(decode(&mut HeaderDecoder::new(), block), Err(expected));
}

#[test]
fn every_beginning_of_a_block_is_an_error_or_fewer_fields() {
    let blocks = ["828684410f7777772e6578616d706c652e636f6d", "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf"];
    for block in blocks.map(bytes) {
        let whole = decode(&mut HeaderDecoder::joined(), &block).unwrap();
        for len in 0..block.len() {
            match decode(&mut HeaderDecoder::joined(), &block[..len]) {
                Ok(fields) => assert_eq!(fields, whole[..fields.len()], "{len} bytes"),
                Err(error) => assert_eq!(error, HpackError::Cut { len }),
            }
        }
    }
}

/// A sender as the standard wants it: chooses how each field is written, and keeps the same table.
#[derive(Debug)]
struct Encoder {
    entries: Vec<(Vec<u8>, Vec<u8>)>,
    max_size: usize,
}

impl Encoder {
    fn number(block: &mut Vec<u8>, bits: u32, flags: u8, mut number: usize) {
        let most = (1 << bits) - 1;
        if number < most {
            return block.push(flags | number as u8);
        }
        block.push(flags | most as u8);
        number -= most;
        while number >= 0x80 {
            block.push(number as u8 | 0x80);
            number >>= 7;
        }
        block.push(number as u8);
    }

    fn string(block: &mut Vec<u8>, is_coded: bool, text: &[u8]) {
        let coded = if is_coded { huffman::encode(text) } else { text.to_vec() };
        Self::number(block, 7, if is_coded { 0x80 } else { 0 }, coded.len());
        block.extend(coded);
    }

    fn field(&mut self, block: &mut Vec<u8>, name: &[u8], value: &[u8], way: u8) {
        let is_coded = way & 4 != 0;
        let all = || STATIC.iter().map(|(a, b)| (*a, *b)).chain(self.entries.iter().map(|(a, b)| (&a[..], &b[..])));
        if way & 8 != 0
            && let Some(place) = all().position(|entry| entry == (name, value))
        {
            return Self::number(block, 7, 0x80, place + 1);
        }
        let named = if way & 16 != 0 { all().position(|entry| entry.0 == name) } else { None };
        let (bits, flags) = [(6, 0x40), (4, 0), (4, 0x10), (6, 0x40)][usize::from(way & 3)];
        Self::number(block, bits, flags, named.map_or(0, |place| place + 1));
        if named.is_none() {
            Self::string(block, is_coded, name);
        }
        Self::string(block, is_coded, value);
        if flags == 0x40 {
            self.entries.insert(0, (name.to_vec(), value.to_vec()));
            self.evict();
        }
    }

    fn resize(&mut self, block: &mut Vec<u8>, size: usize) {
        Self::number(block, 5, 0x20, size);
        self.max_size = size;
        self.evict();
    }

    fn evict(&mut self) {
        let size = |entries: &[(Vec<u8>, Vec<u8>)]| entries.iter().map(|(a, b)| a.len() + b.len() + 32).sum::<usize>();
        while size(&self.entries) > self.max_size {
            self.entries.pop();
        }
    }
}

type Block = (Option<usize>, Vec<(Vec<u8>, Vec<u8>, u8)>);

fn blocks() -> impl Strategy<Value = Vec<Block>> {
    let name = prop_oneof![Just(b":path".to_vec()), Just(b"grpc-status".to_vec()), "[a-c]{1,2}".prop_map(Vec::from)];
    let value = prop_oneof![Just(b"/".to_vec()), prop::collection::vec(any::<u8>(), 0..20)];
    let fields = prop::collection::vec((name, value, any::<u8>()), 0..8);
    prop::collection::vec((prop::option::weighted(0.2, 0_usize..300), fields), 1..8)
}

proptest! {
    /// What was sent comes out, and who has missed the first blocks gets each field right or unknown.
    #[test]
    fn blocks_come_back(blocks in blocks(), missed in 0_usize..4) {
        let mut encoder = Encoder { entries: Vec::new(), max_size: DEFAULT_SIZE };
        let (mut decoder, mut late) = (HeaderDecoder::new(), HeaderDecoder::joined());
        for (index, (size, fields)) in blocks.iter().enumerate() {
            let mut block = Vec::new();
            if let Some(size) = size {
                encoder.resize(&mut block, *size);
            }
            for (name, value, way) in fields {
                encoder.field(&mut block, name, value, *way);
            }
            let mut found = Vec::new();
            decoder.decode(&block, &mut |field| found.push((field.name.unwrap(), field.value.unwrap()))).unwrap();
            let sent: Vec<_> = fields.iter().map(|(a, b, _)| (Bytes::from(a.clone()), Bytes::from(b.clone()))).collect();
            prop_assert_eq!(&found, &sent);
            prop_assert!(decoder.entries.iter().map(HeaderField::size).sum::<usize>() == decoder.size);
            if index >= missed {
                let mut known = Vec::new();
                late.decode(&block, &mut |field| known.push(field)).unwrap();
                prop_assert_eq!(known.len(), sent.len());
                for (known, (name, value)) in known.into_iter().zip(sent) {
                    prop_assert!(known.name.is_none_or(|it| it == name) && known.value.is_none_or(|it| it == value));
                }
            }
        }
    }

    #[test]
    fn any_bytes_are_taken(blocks: Vec<Vec<u8>>) {
        let mut decoder = HeaderDecoder::new();
        for block in blocks {
            let _ = decoder.decode(&block, &mut |_| {});
            prop_assert!(decoder.size <= decoder.max_size.max(SIZE_LIMIT));
        }
    }
}
