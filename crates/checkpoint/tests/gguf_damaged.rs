//! GGUF files that are damaged or mean harm: each is refused with the file, the tensor or key, and the rule.

#![expect(clippy::unwrap_used, reason = "a fixture that cannot be made fails its test")]

mod gguf_file;

use checkpoint::gguf::header::{Entry, HeaderError, parse};
use checkpoint::{Checkpoint, Error};
use gguf_file::{Writer, golden, open, text, value};
use ir::Source;

/// A change of a good file, and what the refusal says.
type Case<'a> = (&'a dyn Fn(&mut Writer), &'a [&'a str]);

/// What the first bytes of a file say.
#[test]
fn damaged_beginnings_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let whole = Writer::llama().bytes();
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = whole.clone();
        change(&mut bytes);
        open(dir.path(), &bytes).map(drop).unwrap_err().to_string()
    };
    let at = |find: &str| whole.windows(find.len()).position(|w| w == find.as_bytes()).unwrap();
    let (key, name) = (at("general.architecture"), at("blk.0.ffn_up.weight"));
    type Change<'a> = &'a dyn Fn(&mut Vec<u8>);
    let cases: [(Change<'_>, &str); 14] = [
        (&|b| b[0] = b'X', "GGUF"),
        (&|b| b[4] = 0, "version 0"),
        (&|b| b[4] = 1, "version 1"),
        (&|b| b[4] = 4, "version 4"),
        (&|b| b[4..8].reverse(), "big-endian"),
        (&|b| b[8..16].fill(255), "tensors: at most"),
        (&|b| b[8..16].fill(0), "ends beyond the file|has no tensors"),
        (&|b| b[16..24].fill(255), "keys: at most"),
        (&|b| b[key - 8..key].fill(255), "a text of"),
        (&|b| b[key] = 255, "not UTF-8"),
        (&|b| b[name + 19..name + 23].fill(255), "dimensions, at most 4"),
        (&|b| b[name + 39..name + 43].fill(99), "ggml's type"),
        (&|b| b.truncate(b.len() - 1), "ends beyond the file|the download is not complete"),
        (&|b| b.truncate(b.len() - 32), "ends beyond the file"),
    ];
    for (change, rules) in cases {
        let error = changed(change);
        let said = rules.split('|').any(|rule| error.contains(rule));
        assert!(said && error.contains("x.gguf"), "{rules}: {error}");
    }
}

/// Keys that no reader should believe.
#[test]
fn damaged_keys_are_refused() {
    let long =
        |kind: u32, count: u64| value(9, &[&kind.to_le_bytes()[..], &count.to_le_bytes()].concat());
    let nested = long(9, 1).repeat(100_000);
    let count = |n: u32| value(4, &n.to_le_bytes());
    let cases: &[Case<'_>] = &[
        (&|f| f.key("", &value(4, &[0; 4])), &["key 8 has no name"]),
        (&|f| f.key("a", &value(13, &[0; 8])), &["\"a\"", "type 13"]),
        (&|f| f.key("a", &value(u32::MAX, &[])), &["\"a\"", "type"]),
        (&|f| f.key("llama.block_count", &count(1)), &["\"llama.block_count\"", "twice"]),
        (&|f| f.key("general.alignment", &count(13)), &["general.alignment is 13"]),
        (&|f| f.key("general.alignment", &count(0)), &["general.alignment is 0"]),
        (&|f| f.key("general.alignment", &count(1 << 31)), &["general.alignment is 2147483648"]),
        (
            &|f| f.key("general.alignment", &value(5, &32i32.to_le_bytes())),
            &["general.alignment", "type 5"],
        ),
        (&|f| f.key("a", &value(7, &[2])), &["\"a\"", "a truth value is 2"]),
        (
            &|f| f.key("a", &value(8, &u64::MAX.to_le_bytes())),
            &["\"a\"", "a text of 18446744073709551615"],
        ),
        (
            &|f| f.key("a", &value(8, &(1u64 << 26).to_le_bytes())),
            &["\"a\"", "ends inside the header"],
        ),
        (&|f| f.key("a", &long(8, u64::MAX)), &["\"a\"", "elements"]),
        (&|f| f.key("a", &long(10, 1 << 60)), &["\"a\"", "elements"]),
        (&|f| f.key("a", &long(4, (1 << 23) + 1)), &["\"a\"", "elements"]),
        (&|f| f.key("a", &long(4, 1 << 22)), &["\"a\"", "ends inside the header"]),
        (&|f| f.key("a", &nested), &["\"a\"", "an array of arrays"]),
    ];
    refused(cases);
}

/// Tensors that do not lie where a tensor can.
#[test]
fn damaged_tensors_are_refused() {
    let (wide, name) = (1u64 << 62, "blk.0.attn_norm.bias");
    let long = "x".repeat(64);
    let cases: &[Case<'_>] = &[
        (&|f| f.info(&long, &[8], 0, 0), &["a text of 64 bytes, at most 63"]),
        (&|f| f.info("", &[8], 0, 0), &["tensor 11", "its name is empty"]),
        (&|f| f.info("../x", &[8], 0, 0), &["tensor 11", "looks like a path"]),
        (&|f| f.info("a\u{202e}", &[8], 0, 0), &["tensor 11", "control or formatting"]),
        (&|f| f.info(name, &[1, 1, 1, 1, 1], 0, 0), &[name, "5 dimensions"]),
        (&|f| f.info(name, &[u64::MAX], 0, 0), &[name, "a dimension of 18446744073709551615"]),
        (&|f| f.info(name, &[0], 0, 0), &[name, "a dimension of 0"]),
        (&|f| f.info(name, &[0, 8], 8, 0), &[name, "a dimension of 0"]),
        (&|f| f.info(name, &[1 << 40; 4], 0, 0), &[name, "overflow"]),
        (&|f| f.info(name, &[wide - 1], 0, 0), &[name, "a dimension of"]),
        (&|f| f.info(name, &[0x7fff_ffff_ffff_ffc0, 2], 0, 0), &[name, "a dimension of"]),
        // Of which the bytes wrap to four.
        (&|f| f.info(name, &[1 << 38, 1 << 24, 1, 1], 0, 0), &[name, "overflow"]),
        (&|f| f.info(name, &[1 << 40, 1 << 40, 1 << 40], 2, 0), &[name, "overflow"]),
        (&|f| f.info(name, &[33], 2, 0), &[name, "not whole blocks"]),
        (&|f| f.info(name, &[8], 4, 0), &[name, "ggml's type 4"]),
        (&|f| f.info(name, &[8], u32::MAX, 0), &[name, "ggml's type"]),
        (&|f| f.info(name, &[8], 0, u64::MAX), &[name, "begins at 18446744073709551615"]),
        (&|f| f.info(name, &[8], 0, u64::MAX - 31), &[name, "ends beyond the file"]),
        (&|f| f.info(name, &[8], 0, 4), &[name, "no multiple of 32"]),
        (&|f| f.info(name, &[8], 0, 32), &[name, "overlap"]),
        (&|f| f.info(name, &[1 << 30], 0, 0), &[name, "ends beyond the file"]),
        (&|f| f.tensor("output_norm.weight", &[8]), &["output_norm.weight", "is there twice"]),
        (
            &|f| f.tensor("blk.00.attn_norm.weight", &[8]),
            &["blk.00.attn_norm.weight", "none that is known"],
        ),
        (&|f| f.tensor("blk.+0.attn_norm.weight", &[8]), &["blk.+0", "none that is known"]),
        (
            &|f| f.tensor("direction.1073741824", &[8]),
            &["direction.1073741824", "none that is known"],
        ),
        (&|f| f.tensor("rope_freqs.weight", &[2, 2]), &["rope_freqs.weight", "no list"]),
        (&|f| f.tensor("rope_freqs.weight", &[3]), &["3 factors"]),
        (&|f| f.tensor("blk.0.ffn_up_exps.weight", &[2, 4, 8]), &["ffn_up_exps", "of 2 experts"]),
        (&|f| f.tensor("blk.0.ffn_up_exps.weight", &[4, 8]), &["ffn_up_exps", "no stack"]),
        (&|f| f.raw("output.weight", &[1, 3, 32], 8, &[0; 102]), &["output.weight", "no matrix"]),
    ];
    refused(cases);
}

/// What the keys of a model say and nobody computes.
#[test]
fn what_is_not_computed_is_refused() {
    let count = |n: u32| value(4, &n.to_le_bytes());
    let float = |x: f32| value(6, &x.to_le_bytes());
    let said = |said: &str| value(8, &text(said));
    let cases: &[Case<'_>] = &[
        (
            &|f| f.key("llama.attention.key_length", &count(5)),
            &["rope.dimension_count|rotated in pairs"],
        ),
        (
            &|f| f.key("llama.attention.value_length", &count(6)),
            &["llama.attention.value_length is 6"],
        ),
        (&|f| f.key("llama.rope.dimension_count", &count(2)), &["llama.rope.dimension_count is 2"]),
        (
            &|f| f.key("llama.rope.scaling.type", &said("longrope")),
            &["rope.scaling.type is \"longrope\""],
        ),
        (
            &|f| f.key("llama.rope.scaling.factor", &said("4")),
            &["llama.rope.scaling.factor", "finite number"],
        ),
        (&|f| f.key("llama.rope.scaling.factor", &float(f32::NAN)), &["llama.rope.scaling.factor"]),
        (&|f| f.key("llama.rope.scaling.attn_factor", &float(2.0)), &["attn_factor is for yarn"]),
        (&|f| f.key("llama.rope.freq_base", &float(0.0)), &["llama.rope.freq_base is 0"]),
        (
            &|f| f.key("llama.attention.sliding_window", &count(8)),
            &["llama.attention.sliding_window is 8"],
        ),
        (
            &|f| f.key("llama.attention.causal", &value(7, &[0])),
            &["llama.attention.causal is false"],
        ),
        (&|f| f.key("llama.expert_count", &count(1 << 20)), &["llama.expert_count is 1048576"]),
        (&|f| f.key("llama.expert_count", &count(2)), &["llama.expert_used_count", "missing"]),
        (&|f| f.key("split.count", &value(2, &[3, 0])), &["split.no is None"]),
        (&|f| f.key("split.count", &value(4, &[255; 4])), &["split.count is 4294967295"]),
        (&|f| f.key("tokenizer.ggml.bos_token_id", &said("x")), &["tokenizer.ggml.bos_token_id"]),
        (&|f| f.key("tokenizer.chat_template", &count(1)), &["tokenizer.chat_template"]),
        (&|f| f.key("tokenizer.chat_template.../x", &said("")), &["no name of a template"]),
    ];
    refused(cases);
}

/// Every case is refused, in the words of one of its alternatives and with the file.
fn refused(cases: &[Case<'_>]) {
    let dir = tempfile::tempdir().unwrap();
    for (change, said) in cases {
        let mut file = Writer::llama();
        change(&mut file);
        let error = open(dir.path(), &file.bytes()).map(drop);
        let error = error.expect_err(&format!("{said:?}")).to_string();
        let says = |part: &&str| part.split('|').any(|part| error.contains(part));
        assert!(error.contains("x.gguf") && said.iter().all(says), "{said:?}: {error}");
        // Names are shown as they are, but no more of them than fits.
        assert!(error.len() < 1000, "{error}");
    }
}

/// Sizes that fit no machine are refused by who makes programs of them, and before anything is allocated.
#[test]
fn sizes_that_fit_no_machine_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let whole = Writer::llama().bytes();
    for (key, said) in [
        ("llama.attention.head_count", "head_count is 0"),
        ("llama.block_count", "num_hidden_layers"),
        ("llama.embedding_length", "hidden_size"),
        ("llama.feed_forward_length", "intermediate_size"),
    ] {
        let mut bytes = whole.clone();
        let at =
            bytes.windows(key.len()).position(|w| w == key.as_bytes()).unwrap() + key.len() + 4;
        bytes[at..at + 4].fill(if key.ends_with("head_count") { 0 } else { 255 });
        let loaded = open(dir.path(), &bytes).map_err(|e| e.to_string());
        let loaded = loaded.and_then(|opened| {
            arch::load(opened.config(), &opened).map(drop).map_err(|e| e.to_string())
        });
        let error = loaded.unwrap_err();
        assert!(error.contains(said) || error.contains("head"), "{key}: {error}");
    }
}

/// A key of the architecture that is not known goes on to who knows the family, and is refused there by name.
#[test]
fn a_key_that_is_not_known_is_refused_by_its_family() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = Writer::llama();
    file.key("llama.attention.scale", &value(6, &0.5f32.to_le_bytes()));
    let opened = open(dir.path(), &file.bytes()).unwrap();
    let error = arch::load(opened.config(), &opened).unwrap_err().to_string();
    assert!(error.contains("llama.attention.scale"), "{error}");
}

/// Tensors begin at multiples of what the file says.
#[test]
fn another_alignment_is_honoured() {
    let dir = tempfile::tempdir().unwrap();
    for alignment in [8u32, 64, 4096] {
        let mut file = Writer::new();
        file.alignment = alignment as usize;
        file.llama_keys();
        file.key("general.alignment", &value(4, &alignment.to_le_bytes()));
        file.llama_tensors();
        let opened = open(dir.path(), &file.bytes()).unwrap();
        let read = opened.read_rows("model.layers.0.self_attn.v_proj.weight", 1..2).unwrap();
        assert_eq!(read.to_f32().unwrap(), [8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0]);
    }
}

/// A file that ends at any byte of its header, or every few bytes of its data, is refused.
#[test]
fn every_truncation_is_refused() {
    for whole in [Writer::llama().bytes(), golden()] {
        let end = parse(&whole, whole.len() as u64).unwrap().entries[0].begin as usize;
        for length in (0..end).chain((end..whole.len()).step_by(509)) {
            assert!(parse(&whole[..length], length as u64).is_err(), "{length}");
        }
        // More of the file is asked for as long as the header has not ended.
        for length in 0..end - 32 {
            let read = parse(&whole[..length], whole.len() as u64);
            assert!(matches!(read, Err(HeaderError::Ends(_))), "{length}");
        }
    }
}

/// Any bit of a header may be another: the file is refused, or says another model, whose tensors lie in it.
#[test]
fn no_flipped_bit_makes_the_reader_panic() {
    let dir = tempfile::tempdir().unwrap();
    for (whole, is_model) in [(Writer::llama().bytes(), true), (golden(), false)] {
        let end = parse(&whole, whole.len() as u64).unwrap().entries[0].begin as usize;
        // The header of the other one is large: a low and a high bit of each byte.
        for bit in (0..8 * end).filter(|bit| is_model || matches!(bit % 8, 0 | 7)) {
            let mut changed = whole[..end].to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            let Ok(header) = parse(&changed, whole.len() as u64) else { continue };
            let inside = |e: &Entry| e.begin + e.bytes <= whole.len() as u64;
            assert!(header.entries.iter().all(inside));
            if is_model {
                changed.extend(&whole[end..]);
                walk(open(dir.path(), &changed));
            }
        }
    }
}

/// Reads everything that an open file offers.
fn walk(opened: Result<Checkpoint, Error>) {
    let Ok(opened) = opened else { return };
    for info in opened.tensors() {
        let rows = info.shape.first().copied().unwrap_or(1);
        let read = opened.read_rows(&info.name, rows - 1..rows).unwrap();
        assert_eq!(read.shape()[0], 1);
    }
    opened.side_files().iter().for_each(|name| drop(opened.read_side_file(name)));
    drop(arch::load(opened.config(), &opened));
}
