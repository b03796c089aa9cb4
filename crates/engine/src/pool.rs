//! The KV pool: blocks of 16 positions, counted references, prefixes that are computed once.
//!
//! Only whole blocks are shared, and only such as hold nothing but accepted tokens, so a block that
//! is written has one owner and nothing is ever copied. A freed block that holds a prefix stays
//! findable until its memory is wanted; the one that was freed first goes first.

use crate::prefix::{NodeId, Parent, Prefixes};
use std::collections::BTreeMap;

/// Positions of a block.
pub const BLOCK: usize = 16;

/// A block of a cache group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KvBlock(pub u32);

/// The block of each 16 positions of a sequence in one cache group; `None` where the group needs
/// them no longer.
pub type KvTable = Vec<Option<KvBlock>>;

/// What a cache group keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GroupKind {
    /// Every position.
    Full,
    /// The last so many positions.
    Window(u32),
}

/// The blocks of every cache group.
#[derive(Debug)]
pub struct KvPool {
    groups: Vec<Group>,
    prefixes: Prefixes,
}

/// What a sequence holds of a pool.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) tables: Vec<KvTable>,
    /// The node of the last block that is in the tree; held.
    last: Parent,
    /// Blocks that are in the tree.
    registered: usize,
}

#[derive(Debug)]
struct Group {
    kind: GroupKind,
    blocks: Vec<Block>,
    free: Vec<KvBlock>,
    /// Unreferenced blocks that hold a prefix, by when they were freed.
    idle: BTreeMap<u64, KvBlock>,
    freed: u64,
}

#[derive(Clone, Debug, Default)]
struct Block {
    references: u32,
    node: Option<NodeId>,
    /// When it was freed last.
    freed: u64,
}

impl GroupKind {
    /// The first position that is still seen from `position` on.
    fn first_seen(self, position: usize) -> usize {
        match self {
            Self::Full => 0,
            Self::Window(n) => (position + 1).saturating_sub(n as usize),
        }
    }

    /// The most blocks a sequence of `tokens` needs at once, computed `chunk` tokens at a time.
    pub(crate) fn most_blocks(self, tokens: usize, chunk: usize) -> usize {
        let all = tokens.div_ceil(BLOCK);
        match self {
            Self::Full => all,
            // The window before a chunk begins anywhere in a block, and the chunk ends anywhere.
            Self::Window(n) => all.min((n as usize).saturating_add(chunk).div_ceil(BLOCK) + 1),
        }
    }

    /// The most blocks that so many sequences of at most `tokens` need at once, of which a step
    /// computes `step` tokens together.
    pub fn blocks_of(self, sequences: usize, tokens: usize, step: usize) -> usize {
        let all = sequences.saturating_mul(tokens.div_ceil(BLOCK));
        match self {
            Self::Full => all,
            // What each computes ends anywhere in a block, and its window begins anywhere in one.
            Self::Window(n) => {
                let each = (n as usize).div_ceil(BLOCK) + 2;
                all.min(sequences.saturating_mul(each).saturating_add(step.div_ceil(BLOCK)))
            }
        }
    }
}

impl std::fmt::Display for GroupKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Full => f.write_str("full"),
            Self::Window(n) => write!(f, "window-{n}"),
        }
    }
}

impl KvPool {
    /// A pool of so many blocks a cache group.
    pub fn new(groups: &[(GroupKind, usize)]) -> Self {
        let group = |&(kind, blocks): &(GroupKind, usize)| Group {
            kind,
            blocks: vec![Block::default(); blocks],
            free: (0..blocks as u32).rev().map(KvBlock).collect(),
            idle: BTreeMap::new(),
            freed: 0,
        };
        let prefixes = Prefixes::new(groups.len());
        Self { groups: groups.iter().map(group).collect(), prefixes }
    }

    /// The cache groups and their blocks.
    pub fn groups(&self) -> impl Iterator<Item = (GroupKind, usize)> {
        self.groups.iter().map(|g| (g.kind, g.blocks.len()))
    }

    /// Referenced blocks of each group.
    pub fn used(&self) -> Vec<usize> {
        self.groups.iter().map(|g| g.blocks.len() - g.available()).collect()
    }

    /// Whether every reference count is zero and every block accounted for: so it is when no
    /// sequence runs.
    pub fn is_idle(&self) -> bool {
        self.groups
            .iter()
            .all(|g| g.available() == g.blocks.len() && g.blocks.iter().all(|b| b.references == 0))
    }

    /// Takes a sequence in: the longest prefix of `tokens[..limit]` that is cached, and the number
    /// of its tokens. `None`, and nothing is held, if what is free does not suffice for the rest,
    /// computed `chunk` tokens at a time.
    pub(crate) fn admit(
        &mut self,
        salt: u64,
        tokens: &[u32],
        limit: usize,
        chunk: usize,
    ) -> Option<(Held, usize)> {
        let path = self.cached(salt, &tokens[..limit.min(tokens.len())]);
        let start = path.len() * BLOCK;
        let mut held = Held {
            tables: vec![vec![None; path.len()]; self.groups.len()],
            last: path.last().map_or(Parent::Root(salt), |&node| Parent::Node(node)),
            registered: path.len(),
        };
        if let Parent::Node(node) = held.last {
            self.prefixes.hold(node);
        }
        for (index, (group, table)) in self.groups.iter_mut().zip(&mut held.tables).enumerate() {
            for at in group.kind.first_seen(start) / BLOCK..path.len() {
                let block = self.prefixes.block(path[at], index);
                table[at] = block.inspect(|&block| group.refer(block));
            }
        }
        let fits = self.groups.iter().zip(&held.tables).all(|(group, table)| {
            let most = group.kind.most_blocks(tokens.len(), chunk);
            let has = table.iter().flatten().count();
            most.saturating_sub(has) <= group.available()
        });
        if fits {
            return Some((held, start));
        }
        self.release(held);
        None
    }

    /// Gives the sequence blocks for the positions up to `end`; `false`, and nothing changes, if
    /// there are not enough.
    pub(crate) fn grow(&mut self, held: &mut Held, end: usize) -> bool {
        let blocks = end.div_ceil(BLOCK);
        let all = self.groups.iter().zip(&held.tables);
        if all.into_iter().any(|(g, t)| blocks.saturating_sub(t.len()) > g.available()) {
            return false;
        }
        for (index, table) in held.tables.iter_mut().enumerate() {
            while table.len() < blocks {
                table.push(self.groups[index].take(index, &mut self.prefixes));
            }
        }
        true
    }

    /// The first `computed` of `tokens` are in the cache for good: whole blocks of them can be
    /// found from now on, and what has left a window is freed.
    pub(crate) fn commit(&mut self, held: &mut Held, tokens: &[u32], computed: usize) {
        let (whole, _) = tokens[..computed].as_chunks::<BLOCK>();
        for (at, tokens) in whole.iter().enumerate().skip(held.registered) {
            let node = self.prefixes.intern(held.last, *tokens);
            self.prefixes.hold(node);
            for (index, (group, table)) in self.groups.iter_mut().zip(&mut held.tables).enumerate()
            {
                let Some(ours) = table[at] else { continue };
                match self.prefixes.block(node, index) {
                    // Somebody else has computed the same: one copy is enough.
                    Some(theirs) => {
                        group.refer(theirs);
                        group.unrefer(ours);
                        table[at] = Some(theirs);
                    }
                    None => {
                        group.blocks[ours.0 as usize].node = Some(node);
                        self.prefixes.set_block(node, index, ours);
                    }
                }
            }
            if let Parent::Node(last) = std::mem::replace(&mut held.last, Parent::Node(node)) {
                self.prefixes.let_go(last);
            }
            held.registered = at + 1;
        }
        for (group, table) in self.groups.iter_mut().zip(&mut held.tables) {
            let seen = (group.kind.first_seen(computed) / BLOCK).min(table.len());
            // What was freed before is a run of nothing that ends here.
            for entry in table[..seen].iter_mut().rev().map_while(|e| e.is_some().then_some(e)) {
                entry.take().into_iter().for_each(|block| group.unrefer(block));
            }
        }
    }

    /// Takes everything back. The last blocks are freed first: a prefix outlives what follows it.
    pub(crate) fn release(&mut self, held: Held) {
        for (group, table) in self.groups.iter_mut().zip(held.tables) {
            table.into_iter().rev().flatten().for_each(|block| group.unrefer(block));
        }
        if let Parent::Node(node) = held.last {
            self.prefixes.let_go(node);
        }
    }

    /// The longest prefix of `tokens` whose blocks every group has, as far as it needs them.
    fn cached(&self, salt: u64, tokens: &[u32]) -> Vec<NodeId> {
        let (mut path, mut parent) = (Vec::new(), Parent::Root(salt));
        // Blocks in a row up to here, a group, and how long the path is where all have enough.
        let (mut runs, mut best) = (vec![0; self.groups.len()], 0);
        for tokens in tokens.as_chunks::<BLOCK>().0 {
            let Some(node) = self.prefixes.find(parent, *tokens) else { break };
            path.push(node);
            parent = Parent::Node(node);
            let mut enough = true;
            for (index, (group, run)) in self.groups.iter().zip(&mut runs).enumerate() {
                *run = if self.prefixes.block(node, index).is_some() { *run + 1 } else { 0 };
                let first = group.kind.first_seen(path.len() * BLOCK) / BLOCK;
                enough &= *run >= path.len() - first;
            }
            best = if enough { path.len() } else { best };
        }
        path.truncate(best);
        path
    }
}

impl Group {
    /// Blocks that can be taken.
    fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// A block for one owner. A prefix that nobody uses is forgotten for it if need be.
    fn take(&mut self, index: usize, prefixes: &mut Prefixes) -> Option<KvBlock> {
        let block = match self.free.pop() {
            Some(block) => block,
            None => {
                let (_, block) = self.idle.pop_first()?;
                let node = self.blocks[block.0 as usize].node.take();
                node.into_iter().for_each(|node| prefixes.clear_block(node, index));
                block
            }
        };
        self.blocks[block.0 as usize].references = 1;
        Some(block)
    }

    fn refer(&mut self, id: KvBlock) {
        let block = &mut self.blocks[id.0 as usize];
        if block.references == 0 {
            self.idle.remove(&block.freed);
        }
        block.references += 1;
    }

    fn unrefer(&mut self, id: KvBlock) {
        let block = &mut self.blocks[id.0 as usize];
        block.references -= 1;
        if block.references > 0 {
            return;
        }
        if block.node.is_none() {
            return self.free.push(id);
        }
        self.freed += 1;
        block.freed = self.freed;
        self.idle.insert(self.freed, id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(n: usize) -> Vec<u32> {
        (0..n as u32).collect()
    }

    /// Computes all of `tokens` and returns what is held, and how much was cached.
    fn compute(pool: &mut KvPool, tokens: &[u32]) -> (Held, usize) {
        let (mut held, cached) = pool.admit(0, tokens, tokens.len() - 1, tokens.len()).unwrap();
        assert!(pool.grow(&mut held, tokens.len()));
        pool.commit(&mut held, tokens, tokens.len());
        (held, cached)
    }

    #[test]
    fn a_prefix_is_found_while_its_blocks_are_and_never_whole() {
        let mut pool = KvPool::new(&[(GroupKind::Full, 4)]);
        let (held, cached) = compute(&mut pool, &tokens(48));
        assert_eq!((cached, pool.used()), (0, vec![3]));
        let (again, cached) = compute(&mut pool, &tokens(48));
        assert_eq!((cached, pool.used()), (32, vec![3]), "the last token is computed, and shared");
        pool.release(held);
        pool.release(again);
        assert!(pool.is_idle());
        let (other, cached) = compute(&mut pool, &[vec![9], tokens(32)].concat());
        assert_eq!(cached, 0);
        pool.release(other);
        // The end of the first was freed first, so it went first.
        let (held, cached) = compute(&mut pool, &tokens(48));
        assert_eq!(cached, 16);
        pool.release(held);
        assert!(pool.is_idle());
        assert!(pool.admit(1, &tokens(48), 47, 48).is_some_and(|(_, cached)| cached == 0), "salt");
    }

    #[test]
    fn a_window_frees_what_leaves_it_and_needs_no_more_for_a_hit() {
        let groups = [(GroupKind::Full, 8), (GroupKind::Window(20), 5)];
        let mut pool = KvPool::new(&groups);
        let all = tokens(100);
        let (mut held, _) = pool.admit(0, &all, 99, 16).unwrap();
        for end in (16..=96).step_by(16) {
            assert!(pool.grow(&mut held, end));
            pool.commit(&mut held, &all, end);
        }
        // From position 96 on, 77..96 are seen: blocks 4 and 5.
        assert_eq!(pool.used(), [6, 2]);
        pool.release(held);
        let (held, cached) = pool.admit(0, &all, 99, 16).unwrap();
        assert_eq!((cached, pool.used()), (96, vec![6, 2]));
        pool.release(held);
        assert!(pool.is_idle());
    }

    /// However the tokens of steps fall on sequences: a window group that is sized so never says no.
    #[test]
    fn sequences_fit_the_blocks_that_are_said() {
        let mut seed = 1u32;
        let mut random = |n: usize| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as usize % n
        };
        for (window, step) in [(1, 1), (7, 40), (16, 16), (33, 5), (100, 64), (500, 20)] {
            let kind = GroupKind::Window(window);
            let blocks = kind.blocks_of(3, 300, step);
            assert!(blocks >= kind.most_blocks(300, step), "{window}");
            let mut pool = KvPool::new(&[(kind, blocks)]);
            let all: Vec<Vec<u32>> = (0..3).map(|i| vec![i; 300]).collect();
            let mut held: Vec<(Held, usize)> = Vec::new();
            while held.iter().any(|(_, computed)| *computed < 300) || held.len() < 3 {
                if held.len() < 3 && random(2) == 0 {
                    held.push((pool.admit(0, &all[held.len()], 0, step).unwrap().0, 0));
                }
                let mut budget = step;
                for (held, computed) in &mut held {
                    let count = random(budget + 1).min(300 - *computed);
                    assert!(pool.grow(held, *computed + count), "{window} {step}");
                    (*computed, budget) = (*computed + count, budget - count);
                }
                for ((held, computed), tokens) in held.iter_mut().zip(&all) {
                    pool.commit(held, tokens, *computed);
                }
            }
            held.into_iter().for_each(|(held, _)| pool.release(held));
            assert!(pool.is_idle());
        }
    }

    #[test]
    fn too_little_is_said_before_anything_is_held() {
        let mut pool = KvPool::new(&[(GroupKind::Full, 4)]);
        let (first, _) = compute(&mut pool, &tokens(33));
        assert!(pool.admit(0, &[7; 32], 31, 32).is_none());
        assert_eq!(pool.used(), [3]);
        let (mut held, _) = pool.admit(0, &[7; 16], 15, 16).unwrap();
        assert!(pool.grow(&mut held, 16));
        assert!(!pool.grow(&mut held, 17));
        pool.release(held);
        pool.release(first);
        assert!(pool.is_idle());
    }
}
