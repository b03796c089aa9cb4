//! Keys and values in pages, and the choice of the kernel that attends over them.

use crate::attend::{Attend, InPages, Keys};
use crate::pages::{PageWord, Pages};
use crate::{Cpu, check, check_attend, decode, host, internal};
use backend::{AttendPaged, BackendError, Buffer};
use ir::Heads;
use std::ops::Range;

/// The keys and values of a layer.
pub(crate) enum Cache {
    F32(Pages<f32>),
    Bf16(Pages<u16>),
    Int8(Pages<i8>),
}

pub(crate) fn new_pages<T: PageWord>(
    heads: Heads,
    blocks: usize,
) -> Result<Pages<T>, BackendError> {
    check(heads.kv > 0 && heads.dim > 0, "a cache has heads")?;
    Pages::new(heads, blocks).ok_or_else(|| internal("there is memory for the cache"))
}

/// Query rows of a key head up to which pages are read as they lie.
const FEW: usize = 16;

impl Cpu {
    /// See [`backend::Backend::attend_paged`].
    pub(crate) fn attend_pages<T: PageWord>(
        &self,
        args: &AttendPaged<'_>,
        pages: &mut Pages<T>,
    ) -> Result<Buffer, BackendError> {
        let rows: Vec<Range<usize>> = args.spans.iter().map(|s| s.rows.clone()).collect();
        let gaps = check_attend(args.heads, [args.q, args.k, args.v], &rows)?;
        check(args.heads == pages.heads(), "a cache has its layer's heads")?;
        let fits = args.spans.iter().all(|s| s.fits(args.window, pages.blocks()));
        check(fits, "every position has a block")?;
        let (rows, width) = (args.q.rows(), args.q.width());
        let mut out = self.unset(rows, width)?;
        for gap in gaps {
            out.values_mut()[gap.start * width..gap.end * width].fill(0.0);
        }
        pages.write(args.spans, host(args.k)?, host(args.v)?);
        let pages = &*pages;
        let group = args.heads.query / args.heads.kv;
        // The kernel is chosen by the span alone; both give the same bits.
        let all = args
            .spans
            .iter()
            .filter(|s| !s.rows.is_empty())
            .map(|s| (s.rows.clone(), s.start, InPages { pages, blocks: s.blocks }));
        let (few, many): (Vec<_>, Vec<_>) = all.partition(|(rows, ..)| rows.len() * group <= FEW);
        let many = many.iter().map(|(rows, start, keys)| (rows.clone(), *start, keys as &dyn Keys));
        let (q, heads, scale, window) = (host(args.q)?, args.heads, args.scale, args.window);
        let attend = Attend { q, heads, scale, window, spans: many.collect() };
        decode::run(&attend, &few, self.level, out.values_mut());
        attend.run(self.level, out.values_mut());
        Ok(Buffer::new(rows, width, out))
    }
}
