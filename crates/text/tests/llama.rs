//! Folders whose tokenizer_config.json names `LlamaTokenizer`: tokenizer.json says what the ids are.

use std::fs;
use std::path::Path;
use text::{TokenFiles, Tokenizer};

/// Texts with blanks first and after special tokens, as Python's tokenizers 0.23.3 encodes them.
///
/// transformers 5.23.0 puts a normalizer of its own in the place of the file's for this class: it takes
/// one blank of each of these away, or leaves out the one that stands after a special token. On the
/// vocabulary of Llama 2 the file's own agrees with all 47 texts that llama.cpp is tested on, that of
/// transformers with 32.
const GOLDEN: &[(&str, &[u32])] = &[
    ("a", &[1, 261]),
    (" a", &[1, 410, 261]),
    ("  a", &[1, 410, 410, 261]),
    ("<s>a", &[1, 1, 261]),
    ("a</s>b", &[1, 261, 2, 268]),
    ("a</s> b", &[1, 261, 2, 410, 268]),
    (" ", &[1, 410, 410]),
    ("\u{2581}a", &[1, 410, 261]),
    ("a b\n c", &[1, 261, 268, 13, 280]),
];

#[test]
fn the_normalizer_of_the_file_is_kept() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"));
    let file = fs::read(path.join("../../tests/models/stories260k/tokenizer.json")).unwrap();
    for class in ["LlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast"] {
        for legacy in ["true", "false"] {
            let config = format!(
                r#"{{"tokenizer_class": "{class}", "legacy": {legacy}, "add_prefix_space": {legacy},
                     "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}}"#
            );
            let files =
                TokenFiles { tokenizer_config: Some(config.as_bytes()), ..TokenFiles::default() };
            let tokenizer = Tokenizer::load(&file, &files).unwrap();
            for (text, ids) in GOLDEN {
                assert_eq!(&tokenizer.encode(text).unwrap(), ids, "{class} {legacy} {text:?}");
            }
        }
    }
}
