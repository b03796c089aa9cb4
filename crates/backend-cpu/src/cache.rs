//! Keys and values in pages, and the choice of the kernel that attends over them.

use crate::attend::{Attend, InPages, Keys, Packed, Piece};
use crate::isa::Level;
use crate::pages::{PageWord, Pages};
use crate::{Cpu, check, check_attend, decode, host};
use backend::{AttendPaged, BackendError, Buffer};
use ir::Heads;
use std::ops::Range;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

/// The keys and values of a layer. Who reads holds the lock for a moment only, so that others who
/// share the cache can write their own blocks in between.
pub(crate) enum Cache {
    F32(RwLock<Pages<f32>>),
    Bf16(RwLock<Pages<u16>>),
    Int8(RwLock<Pages<i8>>),
}

pub(crate) fn new_pages<T: PageWord>(
    heads: Heads,
    blocks: usize,
) -> Result<RwLock<Pages<T>>, BackendError> {
    check(heads.kv > 0 && heads.dim > 0, "a cache has heads")?;
    let what = || "the keys and values of a layer".to_string();
    let bytes = Pages::<T>::bytes(heads, blocks);
    let short = || BackendError::Memory { what: what(), bytes: bytes.unwrap_or(u64::MAX) };
    Pages::new(heads, blocks).map(RwLock::new).ok_or_else(short)
}

/// What was being written when a thread panicked is nobody's: its sequence has ended.
fn read<T>(pages: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    pages.read().unwrap_or_else(PoisonError::into_inner)
}

/// Keys and values in blocks, looked up one piece at a time.
struct Shared<'a, T> {
    pages: &'a RwLock<Pages<T>>,
    /// The block of each 16 positions.
    blocks: &'a [u32],
}

impl<T: PageWord> Keys for Shared<'_, T> {
    fn pack(&self, level: Level, piece: &Piece, to: &mut Packed) {
        InPages { pages: &read(self.pages), blocks: self.blocks }.pack(level, piece, to);
    }
}

/// Query rows of a key head up to which pages are read as they lie.
const FEW: usize = 16;

impl Cpu {
    /// See [`backend::Backend::attend_paged`].
    pub(crate) fn attend_pages<T: PageWord>(
        &self,
        args: &AttendPaged<'_>,
        pages: &RwLock<Pages<T>>,
    ) -> Result<Buffer, BackendError> {
        let rows: Vec<Range<usize>> = args.spans.iter().map(|s| s.rows.clone()).collect();
        let gaps = check_attend(args.heads, [args.q, args.k, args.v], &rows)?;
        {
            let pages = read(pages);
            check(args.heads == pages.heads(), "a cache has its layer's heads")?;
            let fits = args.spans.iter().all(|s| s.fits(args.window, pages.blocks()));
            check(fits, "every position has a block")?;
        }
        let (rows, width) = (args.q.rows(), args.q.width());
        let mut out = self.unset(rows, width)?;
        for gap in gaps {
            out.values_mut()[gap.start * width..gap.end * width].fill(0.0);
        }
        let (k, v) = (host(args.k)?, host(args.v)?);
        pages.write().unwrap_or_else(PoisonError::into_inner).write(args.spans, k, v);
        let group = args.heads.query / args.heads.kv;
        // The kernel is chosen by the span alone; both give the same bits.
        let all = args.spans.iter().filter(|s| !s.rows.is_empty());
        let (few, many): (Vec<_>, Vec<_>) = all.partition(|s| s.rows.len() * group <= FEW);
        let many: Vec<_> = many.iter().map(|s| (s, Shared { pages, blocks: s.blocks })).collect();
        let spans = many.iter().map(|(s, keys)| (s.rows.clone(), s.start, keys as &dyn Keys));
        let (q, heads, scale, window) = (host(args.q)?, args.heads, args.scale, args.window);
        let (paired, spans) = (T::PAIRED, spans.collect());
        let attend = Attend { q, heads, scale, window, paired, spans };
        if !few.is_empty() {
            let pages = &*read(pages);
            let few =
                few.iter().map(|s| (s.rows.clone(), s.start, InPages { pages, blocks: s.blocks }));
            decode::run(&attend, &few.collect::<Vec<_>>(), self.level, out.values_mut());
        }
        attend.run(self.level, out.values_mut());
        Ok(Buffer::new(rows, width, out))
    }
}
