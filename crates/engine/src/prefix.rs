//! Which blocks hold which prefixes: a tree whose nodes are 16 tokens after a parent.
//!
//! A prefix's key is its parent and its own tokens, compared in full, so a chain of nodes is
//! exactly one text: a collision of hashes costs time and never a wrong hit. A node stays while a
//! block holds it, a sequence goes on from it, or a child does.

use crate::pool::{BLOCK, KvBlock};
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

/// A node of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct NodeId(u32);

/// What a node follows: nothing, for prefixes of one salt, or another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Parent {
    Root(u64),
    Node(NodeId),
}

type Key = (Parent, [u32; BLOCK]);

#[derive(Debug)]
struct Node {
    key: Key,
    /// The block of each cache group that holds these positions.
    blocks: Vec<Option<KvBlock>>,
    /// Children, and sequences that go on from here.
    users: u32,
}

/// The tree.
#[derive(Debug)]
pub(crate) struct Prefixes<S = RandomState> {
    groups: usize,
    nodes: Vec<Option<Node>>,
    free: Vec<u32>,
    index: HashMap<Key, NodeId, S>,
}

impl<S: BuildHasher + Default> Prefixes<S> {
    /// An empty tree for so many cache groups.
    pub(crate) fn new(groups: usize) -> Self {
        Self { groups, nodes: Vec::new(), free: Vec::new(), index: HashMap::default() }
    }

    /// The node of `tokens` after `parent`.
    pub(crate) fn find(&self, parent: Parent, tokens: [u32; BLOCK]) -> Option<NodeId> {
        self.index.get(&(parent, tokens)).copied()
    }

    /// The node of `tokens` after `parent`, made if there is none.
    pub(crate) fn intern(&mut self, parent: Parent, tokens: [u32; BLOCK]) -> NodeId {
        let key = (parent, tokens);
        if let Some(&id) = self.index.get(&key) {
            return id;
        }
        let node = Some(Node { key, blocks: vec![None; self.groups], users: 0 });
        let id = match self.free.pop() {
            Some(slot) => {
                self.nodes[slot as usize] = node;
                NodeId(slot)
            }
            None => {
                self.nodes.push(node);
                NodeId(self.nodes.len() as u32 - 1)
            }
        };
        self.index.insert(key, id);
        if let Parent::Node(parent) = parent {
            self.hold(parent);
        }
        id
    }

    /// The block of a node in a group.
    pub(crate) fn block(&self, id: NodeId, group: usize) -> Option<KvBlock> {
        self.node(id).and_then(|node| node.blocks[group])
    }

    /// Says which block of a group holds a node.
    pub(crate) fn set_block(&mut self, id: NodeId, group: usize, block: KvBlock) {
        if let Some(node) = self.node_mut(id) {
            node.blocks[group] = Some(block);
        }
    }

    /// A node's block in a group is gone.
    pub(crate) fn clear_block(&mut self, id: NodeId, group: usize) {
        if let Some(node) = self.node_mut(id) {
            node.blocks[group] = None;
        }
        self.drop_unused(id);
    }

    /// A sequence or a child goes on from a node.
    pub(crate) fn hold(&mut self, id: NodeId) {
        if let Some(node) = self.node_mut(id) {
            node.users += 1;
        }
    }

    /// It does no longer.
    pub(crate) fn let_go(&mut self, id: NodeId) {
        if let Some(node) = self.node_mut(id) {
            node.users -= 1;
        }
        self.drop_unused(id);
    }

    /// The number of nodes.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    /// Drops a node that nobody needs, and then perhaps its parent.
    fn drop_unused(&mut self, mut id: NodeId) {
        loop {
            let unused = |n: &Node| n.users == 0 && n.blocks.iter().all(Option::is_none);
            let Some(node) = self.nodes[id.0 as usize].take_if(|n| unused(n)) else { return };
            self.index.remove(&node.key);
            self.free.push(id.0);
            let Parent::Node(parent) = node.key.0 else { return };
            if let Some(node) = self.node_mut(parent) {
                node.users -= 1;
            }
            id = parent;
        }
    }

    fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.0 as usize).and_then(Option::as_ref)
    }

    fn node_mut(&mut self, id: NodeId) -> Option<&mut Node> {
        self.nodes.get_mut(id.0 as usize).and_then(Option::as_mut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hash::{BuildHasherDefault, Hasher};

    /// Every key collides with every other.
    #[derive(Default)]
    struct Constant;

    impl Hasher for Constant {
        fn finish(&self) -> u64 {
            42
        }

        fn write(&mut self, _: &[u8]) {}
    }

    #[test]
    fn texts_whose_hashes_collide_are_told_apart() {
        let mut tree = Prefixes::<BuildHasherDefault<Constant>>::new(1);
        let mut parents = vec![Parent::Root(0), Parent::Root(1)];
        for depth in 0..3 {
            let mut next = Vec::new();
            for &parent in &parents {
                for last in 0..4 {
                    let mut tokens = [depth; BLOCK];
                    tokens[BLOCK - 1] = last;
                    assert_eq!(tree.find(parent, tokens), None);
                    let id = tree.intern(parent, tokens);
                    assert_eq!(tree.find(parent, tokens), Some(id));
                    tree.set_block(id, 0, KvBlock(tree.len() as u32));
                    next.push(Parent::Node(id));
                }
            }
            parents = next;
        }
        assert_eq!(tree.len(), 2 * (4 + 16 + 64));
    }

    #[test]
    fn a_node_stays_while_a_block_a_child_or_a_sequence_needs_it() {
        let mut tree = Prefixes::<RandomState>::new(2);
        let a = tree.intern(Parent::Root(0), [1; BLOCK]);
        tree.set_block(a, 1, KvBlock(7));
        let b = tree.intern(Parent::Node(a), [2; BLOCK]);
        tree.hold(b);
        tree.clear_block(a, 1);
        assert_eq!(tree.len(), 2, "its child needs it");
        tree.let_go(b);
        assert_eq!(tree.len(), 0);
        assert_eq!(tree.intern(Parent::Root(0), [3; BLOCK]), a, "slots are used again");
    }
}
