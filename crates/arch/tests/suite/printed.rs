//! Programs as text, and back.

use crate::common::committed;
use ir::{Block, Spec};
use tensor::DType;

#[test]
fn every_block_is_parsed_from_what_is_printed() {
    for (name, config) in committed() {
        let model = arch::imagine(&config, DType::BF16).unwrap().model;
        for block in model.blocks() {
            let text = block.to_string();
            let parsed: Block<Spec> =
                text.parse().unwrap_or_else(|error| panic!("{name}, {}: {error}", block.id));
            assert_eq!(parsed, *block, "{name}");
            assert_eq!(parsed.to_string(), text, "{name}");
        }
    }
}
