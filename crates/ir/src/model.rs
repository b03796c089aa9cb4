//! A whole decoder as data: everything the configuration determines before a weight is read.

use crate::block::{Block, Spec};
use crate::cache::Cache;
use crate::rotary::Rotary;

/// A decoder: its embedding, its layers, its head.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// The family's name as configurations spell it, such as `llama`.
    pub family: &'static str,
    /// The width of the hidden state between blocks.
    pub hidden: usize,
    /// Rows of the embedding and of the head.
    pub vocab: usize,
    /// The longest context the model was made for, in tokens.
    pub context: usize,
    /// Whether the head reads the embedding's weight.
    pub tied: bool,
    /// What the frequencies in its programs are made of.
    pub rotary: Rotary,
    /// What its programs keep of earlier tokens.
    pub caches: Vec<Cache>,
    /// Token ids to hidden states: rows of a table, and what is done to them.
    pub embedding: Block<Spec>,
    /// The decoder layers, in order.
    pub layers: Vec<Block<Spec>>,
    /// Hidden states to logits: a program that ends in a linear.
    pub head: Block<Spec>,
}

impl ModelSpec {
    /// Every block, in order of execution.
    pub fn blocks(&self) -> impl Iterator<Item = &Block<Spec>> {
        std::iter::once(&self.embedding).chain(&self.layers).chain(std::iter::once(&self.head))
    }

    /// The table that the embedding selects rows of.
    pub fn table(&self) -> Option<&Spec> {
        self.embedding.weight(self.embedding.table()?)
    }

    /// The weight that projects to logits.
    pub fn projection(&self) -> Option<&Spec> {
        self.head.weight(self.head.projection()?)
    }

    /// The weights the model reads, each place where one lies once, in order of first use.
    pub fn tensors(&self) -> Vec<&Spec> {
        let mut seen = std::collections::HashSet::new();
        let all = self.blocks().flat_map(|b| &b.weights);
        all.filter(|spec| seen.insert(&spec.at)).collect()
    }
}
