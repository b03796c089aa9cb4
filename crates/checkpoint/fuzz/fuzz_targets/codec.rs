#![no_main]
//! Stored bytes of a weight on integers, in every format that has such: no panic, and what is read is
//! whole, on its grid, and the same once it was written.

use checkpoint::{FORMATS, Grain, Slice};
use ir::{Grid, Quantized, Span};
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;
use tensor::{Bytes, DType, Tensor};

/// A tensor of `bytes`, over and over.
fn tensor(dtype: DType, shape: &[usize], bytes: &[u8]) -> Option<Tensor> {
    let all: Vec<u8> = bytes.iter().copied().cycle().take(dtype.bytes_of(shape)?).collect();
    Tensor::new(dtype, shape.to_vec(), Bytes::from_slice(&all))
}

fn columns(of: &Tensor, those: &std::ops::Range<usize>) -> Option<Tensor> {
    let (&width, before) = of.shape().split_last()?;
    let each = of.dtype().bits() / 8;
    let rows = of.bytes().chunks_exact((width * each).max(1));
    let part = rows.flat_map(|row| row[those.start * each..those.end * each].to_vec());
    let part: Vec<u8> = part.collect();
    let shape = before.iter().copied().chain([those.len()]).collect();
    Tensor::new(of.dtype(), shape, Bytes::from_slice(&part))
}

fn rows(of: &Tensor, those: &std::ops::Range<usize>) -> Option<Tensor> {
    let row = of.bytes().len() / of.shape().first()?.max(&1);
    let part = of.bytes().get(those.start * row..those.end * row)?;
    let shape = [those.len()].into_iter().chain(of.shape()[1..].iter().copied()).collect();
    Tensor::new(of.dtype(), shape, Bytes::from_slice(part))
}

fuzz_target!(|data: &[u8]| {
    let Some((&[format, kind, group, out, width], bytes)) = data.split_first_chunk() else { return };
    if bytes.is_empty() {
        return;
    }
    let format = &FORMATS[usize::from(format) % FORMATS.len()];
    let size = usize::from(group);
    let span = [Span::Channel, Span::Group(size), Span::Scattered(size)][usize::from(kind >> 4) % 3];
    let grid = Grid::Int { bits: kind & 15, symmetric: kind >= 128, span, scale: DType::F16 };
    let shape = [usize::from(out) * 8, usize::from(width) * 8];
    let Ok(codec) = format.codec(grid, shape) else { return };
    let Ok(parts) = codec.parts("x.weight", grid, shape) else { return };
    let by_columns = matches!(codec.holds(grid, shape), Ok(Grain::Columns(_)));
    let read = |stored: &BTreeMap<String, Tensor>| {
        let at = Slice { rows: 0..shape[0], shape };
        codec.decode("x.weight", grid, &at, &|part, those| {
            let cut = if by_columns { columns } else { rows };
            Ok(cut(&stored[part], &those).expect("rows that are there"))
        })
    };
    let stored = parts.iter().map(|p| Some((p.name.clone(), tensor(p.dtype, &p.shape, bytes)?)));
    let Some(stored) = stored.collect::<Option<BTreeMap<_, _>>>() else { return };
    let Ok(q) = read(&stored) else { return };
    assert!(q.is_whole());
    let (low, high) = grid.codes();
    assert!(q.codes.iter().chain(q.zeros()).all(|c| (low..=high).contains(&i32::from(*c))));
    let mut again: BTreeMap<String, Tensor> = BTreeMap::new();
    let at = Slice { rows: 0..shape[0], shape };
    let written = codec.encode("x.weight", &q, &at, &mut |part, _, bytes| {
        let planned = parts.iter().find(|p| p.name == part).expect("a part that was planned");
        again.insert(part.to_owned(), tensor(planned.dtype, &planned.shape, bytes).expect("bytes"));
        Ok(())
    });
    written.expect("what was read can be written");
    let same: Quantized = read(&again).expect("what was written can be read");
    assert_eq!(same, q);
});
