use super::*;
use proptest::prelude::*;
use rstest::rstest;

/// Builds a blob by hand, type by type.
#[derive(Default)]
struct Builder {
    types: Vec<u8>,
    strings: Vec<u8>,
}

impl Builder {
    fn new() -> Self {
        Self { types: Vec::new(), strings: vec![0] }
    }

    fn name(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        let at = self.strings.len() as u32;
        self.strings.extend(name.bytes().chain([0]));
        at
    }

    fn words(&mut self, words: &[u32]) {
        self.types.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
    }

    fn simple(&mut self, name: &str, kind: u32, third: u32, rest: &[u32]) {
        let name = self.name(name);
        self.words(&[name, kind << 24, third]);
        self.words(rest);
    }

    /// Members are name, type, offset in bits and, where `bit_fields`, size of the bit field.
    fn composite(&mut self, name: &str, kind: u32, bit_fields: bool, members: &[(&str, u32, u32, u32)]) {
        let name = self.name(name);
        self.words(&[name, u32::from(bit_fields) << 31 | kind << 24 | members.len() as u32, 64]);
        for &(name, type_id, offset, size) in members {
            let name = self.name(name);
            self.words(&[name, type_id, size << 24 | offset]);
        }
    }

    /// Values of an enum, parameters of a function: names and numbers.
    fn pairs(&mut self, name: &str, kind: u32, third: u32, pairs: &[(&str, u32)]) {
        let name = self.name(name);
        self.words(&[name, kind << 24 | pairs.len() as u32, third]);
        for &(name, number) in pairs {
            let name = self.name(name);
            self.words(&[name, number]);
        }
    }

    fn build(self) -> Vec<u8> {
        let mut bytes = MAGIC.to_ne_bytes().to_vec();
        bytes.extend([VERSION, 0]);
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        for word in [24, 0, types, types, strings] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(self.types);
        bytes.extend(self.strings);
        bytes
    }
}

/// ```c
/// typedef const struct inner { int a; int b; } inner_t;        // 1 int, 2 inner, 3 const, 4 typedef
/// struct outer {                                                // 7
///     int first;
///     union { int in_union; struct { int pad; int deep; }; };   // 6, 5
///     inner_t part;
///     int bit:3; int plain;
/// };
/// enum color { RED, BLUE = 7 };                                 // 9
/// int paint(struct outer *what, enum color color);              // 10 prototype, 11 function
/// ```
fn sample() -> Vec<u8> {
    let mut blob = Builder::new();
    blob.simple("int", KIND_INT, 4, &[32]);
    blob.composite("inner", KIND_STRUCT, false, &[("a", 1, 0, 0), ("b", 1, 32, 0)]);
    blob.simple("", KIND_CONST, 2, &[]);
    blob.simple("inner_t", KIND_TYPEDEF, 3, &[]);
    blob.composite("", KIND_STRUCT, false, &[("pad", 1, 0, 0), ("deep", 1, 32, 0)]);
    blob.composite("", KIND_UNION, false, &[("in_union", 1, 0, 0), ("", 5, 0, 0)]);
    blob.composite(
        "outer",
        KIND_STRUCT,
        true,
        &[("first", 1, 0, 0), ("", 6, 64, 0), ("part", 4, 128, 0), ("bit", 1, 192, 3), ("plain", 1, 224, 0)],
    );
    blob.simple("list", KIND_ARRAY, 0, &[1, 1, 4]);
    blob.pairs("color", KIND_ENUM, 4, &[("RED", 0), ("BLUE", 7)]);
    blob.pairs("", KIND_FUNC_PROTO, 1, &[("what", 7), ("color", 9)]);
    blob.simple("paint", KIND_FUNC, 10, &[]);
    blob.simple("mad", KIND_FUNC, 1, &[]);
    blob.build()
}

#[rstest]
#[case::first("outer", "first", Some(0))]
#[case::in_anonymous_union("outer", "in_union", Some(8))]
#[case::two_anonymous_deep("outer", "deep", Some(12))]
#[case::named_struct("outer", "part", Some(16))]
#[case::through_typedef_and_const("outer", "part.b", Some(20))]
#[case::bit_field("outer", "bit", None)]
#[case::after_bit_field("outer", "plain", Some(28))]
#[case::other_struct("inner", "b", Some(4))]
fn fields_are_found(#[case] name: &str, #[case] path: &str, #[case] bytes: Option<u32>) {
    let blob = sample();
    assert_eq!(Btf::parse(&blob).unwrap().field(name, path).unwrap().bytes(), bytes);
}

#[rstest]
#[case::no_struct("nothing", "a", "the kernel has no `struct nothing`")]
#[case::no_field("outer", "gone", "the kernel has no field `gone` in `struct outer`")]
#[case::no_inner_field("outer", "part.gone", "the kernel has no field `gone` in `struct outer`")]
#[case::not_a_struct("outer", "first.gone", "the kernel has no field `gone` in `struct outer`")]
#[case::empty("outer", "", "the kernel has no field `` in `struct outer`")]
fn what_is_missing_is_named(#[case] name: &str, #[case] path: &str, #[case] message: &str) {
    let blob = sample();
    assert_eq!(Btf::parse(&blob).unwrap().field(name, path).unwrap_err().to_string(), message);
}

#[rstest]
#[case::value("color", "BLUE", Some(7))]
#[case::no_value("color", "GREEN", None)]
#[case::no_enum("colour", "RED", None)]
#[case::a_struct("outer", "first", None)]
fn values_of_enums_are_found(#[case] name: &str, #[case] value: &str, #[case] expected: Option<u32>) {
    let blob = sample();
    assert_eq!(Btf::parse(&blob).unwrap().enumerator(name, value), expected);
}

#[rstest]
#[case::first("paint", "what", Some(0))]
#[case::second("paint", "color", Some(1))]
#[case::no_parameter("paint", "why", None)]
#[case::no_function("color", "RED", None)]
#[case::not_of_a_prototype("mad", "what", None)]
fn parameters_are_found(#[case] function: &str, #[case] parameter: &str, #[case] expected: Option<u32>) {
    let blob = sample();
    let btf = Btf::parse(&blob).unwrap();
    assert_eq!(btf.parameter(function, parameter), expected);
    assert_eq!(btf.has_function(function), function != "color");
}

#[test]
fn every_prefix_is_refused() {
    let blob = sample();
    for len in 0..blob.len() {
        let error = Btf::parse(&blob[..len]).unwrap_err();
        assert!(matches!(error, BtfError::Cut { .. }), "{len} bytes: {error}");
    }
}

#[test]
fn other_headers_are_refused() {
    let mut swapped = sample();
    swapped.swap(0, 1);
    assert!(matches!(Btf::parse(&swapped), Err(BtfError::Magic { .. })));
    let mut newer = sample();
    newer[2] = 2;
    assert_eq!(Btf::parse(&newer).unwrap_err(), BtfError::Version { found: 2 });
}

#[test]
fn an_unknown_kind_is_refused() {
    let mut blob = Builder::new();
    blob.simple("int", KIND_INT, 4, &[32]);
    blob.simple("strange", 31, 0, &[]);
    assert_eq!(Btf::parse(&blob.build()).unwrap_err(), BtfError::Kind { id: 2, kind: 31 });
}

/// A struct that contains itself without a name, and a qualifier of itself: no such thing in C.
#[test]
fn loops_end() {
    let mut blob = Builder::new();
    blob.composite("loop", KIND_STRUCT, false, &[("", 1, 8, 0)]);
    blob.simple("", KIND_CONST, 2, &[]);
    blob.composite("other", KIND_STRUCT, false, &[("", 2, 0, 0)]);
    let blob = blob.build();
    let btf = Btf::parse(&blob).unwrap();
    assert!(btf.field("loop", "x").is_err());
    assert!(btf.field("other", "x").is_err());
}

proptest! {
    /// Whatever the bytes are, reading ends with a value or an error.
    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        if let Ok(btf) = Btf::parse(&bytes) {
            let _ = btf.field("outer", "part.b");
        }
    }

    /// The same for a sound blob of which one byte is another.
    #[test]
    fn any_flipped_byte_is_survived(at in 0..sample().len(), value: u8) {
        let mut bytes = sample();
        bytes[at] = value;
        if let Ok(btf) = Btf::parse(&bytes) {
            for path in ["first", "deep", "part.b", "bit"] {
                let _ = btf.field("outer", path);
            }
            let _ = (btf.enumerator("color", "BLUE"), btf.parameter("paint", "color"));
        }
    }
}

/// The machine's own, where there is one.
#[test]
fn the_running_kernel_is_read() {
    let Ok(bytes) = std::fs::read("/sys/kernel/btf/vmlinux") else {
        println!("SKIPPED: this kernel has no /sys/kernel/btf/vmlinux; the reader is tested on hand-made input only");
        return;
    };
    let btf = Btf::parse(&bytes).unwrap();
    // Both are part of the system call interface, so the answer is the same on every 64-bit kernel.
    assert_eq!(btf.field("user_msghdr", "msg_iov").unwrap().bytes(), Some(16));
    assert_eq!(btf.field("iovec", "iov_len").unwrap().bytes(), Some(8));
    assert!(btf.field("task_struct", "files").unwrap().bytes().unwrap() > 0);
    assert_eq!(btf.parameter("tcp_sendmsg", "sk"), Some(0));
    assert!(btf.enumerator("iter_type", "ITER_IOVEC").is_some());
}
