//! Against the `safetensors` crate: what we accept it accepts too, and reads as the same tensors.

#![expect(clippy::unwrap_used, reason = "a fixture that cannot be made fails its test")]

use checkpoint::header;
use proptest::prelude::*;
use safetensors::SafeTensors;
use tensor::DType;

/// Holds our reading of `file` against the crate's; whether we accept it.
fn agree(file: &[u8]) -> bool {
    let Ok(ours) = header::parse(file, file.len() as u64) else { return false };
    let theirs = SafeTensors::deserialize(file).expect("we accept only what the crate accepts");
    assert_eq!(ours.entries.len(), theirs.len());
    let data = usize::try_from(ours.data).unwrap();
    for entry in &ours.entries {
        let view = theirs.tensor(&entry.name).unwrap();
        let range = data + entry.begin as usize..data + entry.end as usize;
        assert_eq!(view.data(), &file[range]);
        assert_eq!(view.shape(), entry.shape);
        assert_eq!(view.dtype().to_string(), entry.dtype.name());
    }
    true
}

fn file(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![7; data]].concat()
}

/// A good file of tensors with these dtypes and shapes, and some of the freedoms of the format.
fn good(tensors: &[(DType, Vec<usize>)], pad: usize) -> Vec<u8> {
    moved(tensors, pad, &[])
}

/// The same, but each tensor begins so many bytes after the end of the one before it.
fn moved(tensors: &[(DType, Vec<usize>)], pad: usize, gaps: &[isize]) -> Vec<u8> {
    let (mut entries, mut end) = (vec![r#""__metadata__":{"format":"pt"}"#.to_owned()], 0usize);
    for (i, (dtype, shape)) in tensors.iter().enumerate() {
        let begin = gaps.get(i).map_or(end, |&gap| end.saturating_add_signed(gap));
        end = begin + dtype.bytes_of(shape).unwrap();
        entries.push(format!(
            r#""t{i}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin}, {end}]}}"#
        ));
    }
    // Entries may come in any order.
    entries.reverse();
    file(&format!("{{{}}}{}", entries.join(","), " ".repeat(pad)), end)
}

/// Tensors whose elements fill whole bytes.
fn tensors() -> impl Strategy<Value = Vec<(DType, Vec<usize>)>> {
    let dtypes: Vec<DType> = DType::names().filter_map(DType::parse).collect();
    let shape = prop::collection::vec(0..4usize, 0..=header::RANK_MAX);
    let tensor = (prop::sample::select(dtypes), shape)
        .prop_filter("fills whole bytes", |(dtype, shape)| dtype.bytes_of(shape).is_some());
    prop::collection::vec(tensor, 0..6)
}

/// What breaks headers: pieces of JSON that mean something here.
const PIECES: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\\u0074",
    "\\",
    " ",
    "\n",
    "0",
    "1",
    "-",
    ".0",
    "e0",
    "null",
    "\"t0\":",
    "\"dtype\":\"U8\",",
    "\"shape\":[0],",
    "\"data_offsets\":[0,0]",
    "\"__metadata__\":{},",
    "18446744073709551615",
    "\0",
    "\u{202e}",
    "/../",
    "\"x\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},",
];

/// A change to the file's bytes, and whether the length word follows it.
#[derive(Clone, Debug)]
enum Edit {
    Flip(usize),
    Insert(usize, &'static str),
    Remove(usize, usize),
    Copy(usize, usize, usize),
    /// Replaces one number by another, so that the JSON stays good and the layout does not.
    Number(usize, u64),
    /// Adds or takes bytes of data.
    Data(isize),
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let at = || any::<prop::sample::Index>().prop_map(|i| i.index(1 << 16));
    let edit = prop_oneof![
        1 => at().prop_map(Edit::Flip),
        1 => (at(), prop::sample::select(PIECES)).prop_map(|(i, piece)| Edit::Insert(i, piece)),
        1 => (at(), 1..20usize).prop_map(|(i, n)| Edit::Remove(i, n)),
        1 => (at(), at(), 1..60usize).prop_map(|(i, j, n)| Edit::Copy(i, j, n)),
        4 => (at(), 0..20u64).prop_map(|(i, n)| Edit::Number(i, n)),
        1 => (-3..4isize).prop_map(Edit::Data),
    ];
    prop::collection::vec(edit, 1..4)
}

/// The file with its header edited. The length word stays right, so that the edit is looked at.
fn edited(file: &[u8], edits: &[Edit]) -> Vec<u8> {
    let data = header::LENGTH_BYTES + header::length(file, file.len() as u64).unwrap();
    let mut json = file[header::LENGTH_BYTES..data].to_vec();
    let mut rest = file[data..].to_vec();
    for edit in edits {
        let at = |i: usize| i % (json.len() + 1);
        let range = |i: usize, n: usize| at(i)..(at(i) + n).min(json.len());
        match *edit {
            Edit::Flip(bit) if !json.is_empty() => {
                let byte = bit / 8 % json.len();
                json[byte] ^= 1 << (bit % 8);
            }
            Edit::Flip(_) => {}
            Edit::Insert(i, piece) => {
                let at = at(i);
                json.splice(at..at, piece.bytes());
            }
            Edit::Remove(i, n) => drop(json.drain(range(i, n))),
            Edit::Copy(i, j, n) => {
                let (copied, at) = (json[range(i, n)].to_vec(), at(j));
                json.splice(at..at, copied);
            }
            Edit::Number(i, n) => {
                let digit = |b: &u8| b.is_ascii_digit();
                let Some(start) = json[at(i).min(json.len())..].iter().position(digit) else {
                    continue;
                };
                let start = at(i) + start;
                let digits = json[start..].iter().take_while(|b| digit(b)).count();
                json.splice(start..start + digits, n.to_string().bytes());
            }
            Edit::Data(more) => rest.resize(rest.len().saturating_add_signed(more), 0),
        }
    }
    [&(json.len() as u64).to_le_bytes()[..], &json, &rest].concat()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4000) })]

    #[test]
    fn good_files_read_the_same(tensors in tensors(), pad in 0..9usize) {
        prop_assert!(agree(&good(&tensors, pad)));
    }

    #[test]
    fn edited_files_are_refused_or_read_the_same(tensors in tensors(), edits in edits()) {
        agree(&edited(&good(&tensors, 0), &edits));
    }

    #[test]
    fn tensors_with_holes_and_overlaps_are_refused_or_read_the_same(
        tensors in tensors(),
        gaps in prop::collection::vec(-1..=1isize, 1..6),
    ) {
        agree(&moved(&tensors, 0, &gaps));
    }

    #[test]
    fn any_bytes_are_refused_or_read_the_same(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        agree(&bytes);
    }
}

/// What the crate reads against its own specification, we do not.
#[test]
fn we_are_stricter() {
    let t = |name: &str| format!(r#""{name}":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#);
    for header in [
        format!("{{{},{}}}", t("a"), t("a")),
        format!("{{{},{}}}", t("a"), t("\\u0061")),
        format!(" {{{}}}", t("a")),
        format!("{{{}}}\n", t("a")),
        format!("{{{}}}", t("")),
        format!("{{{}}}", t("../../etc/passwd")),
        format!("{{{}}}", t("a").replace("[4],", "[4],\"x\":0,")),
    ] {
        let file = file(&header, 4);
        assert!(SafeTensors::deserialize(&file).is_ok(), "{header}");
        assert!(header::parse(&file, file.len() as u64).is_err(), "{header}");
    }
}
