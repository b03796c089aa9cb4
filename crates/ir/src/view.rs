//! Where a weight lies in a stored tensor, and how its rows are read from there.
//!
//! Front ends hold views against the shapes of what is stored. Reading trusts none of them: what a view
//! names and is not there is an error.

use crate::print::write_name;
use crate::quantized::Quantized;
use crate::source::{ReadError, Source};
use std::fmt;
use std::ops::Range;
use tensor::{Bytes, Tensor};

/// Where a weight lies: `index` selects a matrix of a stack, which may be `transposed`, and `rows` says
/// which of its rows are the weight's.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct View {
    /// The stored tensor.
    pub tensor: String,
    /// Which matrix of a stack `[n, out, in]`: experts that are stored together.
    pub index: Option<usize>,
    /// The number of inputs of a matrix that is stored `[in, out]`, as GPT-2 stores its linears.
    pub transposed: Option<usize>,
    /// Which rows, and in which order.
    pub rows: RowMap,
}

/// Which rows of a stored matrix are a weight's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RowMap {
    /// All, in their order.
    #[default]
    All,
    /// As many as the weight has, from this one on: one of several that are stored as one, as a gate
    /// and what it is multiplied into are.
    From(usize),
    /// Of each head of so many rows, those of the first and the second half take turns: pairs that are
    /// rotated together lie side by side, as llama.cpp stores queries and keys.
    Paired(usize),
}

impl RowMap {
    /// The stored row that row `row` of the weight is.
    pub fn place(self, row: usize) -> usize {
        match self {
            Self::All => row,
            // No tensor has as many rows as where this ends.
            Self::From(first) => row.saturating_add(first),
            Self::Paired(_) => {
                let (head, half) = (self.span(), self.span() / 2);
                let (first, within) = (row / head * head, row % head);
                first
                    + match within {
                        _ if within < half => 2 * within,
                        _ if within < 2 * half => 2 * (within - half) + 1,
                        _ => within,
                    }
            }
        }
    }

    /// Rows that lie together whatever their order; never 0.
    pub fn span(self) -> usize {
        match self {
            Self::All | Self::From(_) => 1,
            Self::Paired(head) => head.max(1),
        }
    }

    /// The stored rows among which rows `rows` of the weight are.
    pub fn covering(self, rows: &Range<usize>) -> Range<usize> {
        let span = self.span();
        match self {
            Self::All | Self::From(_) => self.place(rows.start)..self.place(rows.end),
            Self::Paired(_) => {
                let end = rows.end.checked_next_multiple_of(span);
                rows.start / span * span..end.unwrap_or(usize::MAX)
            }
        }
    }
}

impl View {
    /// A tensor of its own.
    pub fn whole(tensor: impl Into<String>) -> Self {
        Self { tensor: tensor.into(), index: None, transposed: None, rows: RowMap::All }
    }

    /// Whether some rows are read without all others.
    pub fn by_rows(&self) -> bool {
        self.transposed.is_none()
    }

    /// Rows `rows` of the weight, of the stored dtype.
    pub(crate) fn read(
        &self,
        source: &(impl Source + ?Sized),
        rows: Range<usize>,
    ) -> Result<Tensor, ReadError> {
        self.check(&rows)?;
        let (name, lie) = (&self.tensor, self.rows.covering(&rows));
        let read = match (self.index, self.transposed) {
            (None, None) => source.read_rows(name, lie.clone())?,
            (Some(index), None) => source.read_stacked(name, index, lie.clone())?,
            (None, Some(inputs)) => columns(name, &source.read_rows(name, 0..inputs)?, &lie)?,
            (Some(index), Some(inputs)) => {
                columns(name, &source.read_stacked(name, index, 0..inputs)?, &lie)?
            }
        };
        match self.rows {
            RowMap::All | RowMap::From(_) => Ok(read),
            RowMap::Paired(_) => {
                some_rows(name, &read, rows.map(|row| self.rows.place(row) - lie.start))
            }
        }
    }

    /// The codes of the same rows; `None` if the tensor is not stored on a grid.
    pub(crate) fn read_quantized(
        &self,
        source: &(impl Source + ?Sized),
        rows: Range<usize>,
    ) -> Result<Option<Quantized>, ReadError> {
        self.check(&rows)?;
        let name = &self.tensor;
        match (self.index, self.transposed, self.rows) {
            (None, None, RowMap::All | RowMap::From(_)) => {
                source.read_quantized(name, self.rows.covering(&rows))
            }
            _ if source.read_quantized(name, 0..1)?.is_some() => Err(wrong(
                name,
                "is stored on a grid: its rows are read as they lie, and from no stack",
            )),
            _ => Ok(None),
        }
    }

    fn check(&self, rows: &Range<usize>) -> Result<(), ReadError> {
        match rows.start <= rows.end {
            true => Ok(()),
            false => Err(wrong(&self.tensor, format!("rows {rows:?} end before they begin"))),
        }
    }
}

/// The tensor, then what is made of it, step by step: `down_proj[3]`, `gate_up_proj[3][28..]`, `c_fc[T 24]`,
/// `attn_q[paired 64]`.
impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_name(f, &self.tensor)?;
        self.index.map_or(Ok(()), |index| write!(f, "[{index}]"))?;
        self.transposed.map_or(Ok(()), |inputs| write!(f, "[T {inputs}]"))?;
        match self.rows {
            RowMap::All => Ok(()),
            RowMap::From(first) => write!(f, "[{first}..]"),
            RowMap::Paired(head) => write!(f, "[paired {head}]"),
        }
    }
}

fn wrong(name: &str, rule: impl fmt::Display) -> ReadError {
    ReadError::Input(format!("tensor {name:?}: {rule}"))
}

/// Rows of matrix `index` of the stack `name`, of which the whole matrix is read.
pub(crate) fn of_stack(
    source: &(impl Source + ?Sized),
    name: &str,
    index: usize,
    rows: Range<usize>,
) -> Result<Tensor, ReadError> {
    let beyond = || wrong(name, format!("there is no matrix {index}"));
    let read = source.read_rows(name, index..index.checked_add(1).ok_or_else(beyond)?)?;
    let &[1, height, width] = read.shape() else {
        return Err(wrong(name, format!("{:?} is no stack of matrices", read.shape())));
    };
    if rows.start > rows.end || rows.end > height {
        return Err(wrong(name, format!("rows {rows:?} of {height}, of matrix {index}")));
    }
    Matrix { name, tensor: &read, height, width }.take(rows, vec![width])
}

/// Rows of a tensor, in any order.
fn some_rows(
    name: &str,
    tensor: &Tensor,
    rows: impl ExactSizeIterator<Item = usize>,
) -> Result<Tensor, ReadError> {
    // A bias is a matrix of one column.
    let (height, row) = match *tensor.shape() {
        [height] => (height, vec![]),
        [height, width] => (height, vec![width]),
        _ => return Err(wrong(name, format!("{:?} is no matrix", tensor.shape()))),
    };
    let width = row.first().copied().unwrap_or(1);
    Matrix { name, tensor, height, width }.take(rows, row)
}

/// Columns of a matrix, as rows.
fn columns(name: &str, tensor: &Tensor, columns: &Range<usize>) -> Result<Tensor, ReadError> {
    let &[height, width] = tensor.shape() else {
        return Err(wrong(name, format!("{:?} is no matrix", tensor.shape())));
    };
    if columns.start > columns.end || columns.end > width {
        return Err(wrong(name, format!("columns {columns:?} of {width}")));
    }
    let matrix = Matrix { name, tensor, height, width };
    let (from, size) = (tensor.bytes(), matrix.element()?);
    let mut out = matrix.room(columns.len() * height * size)?;
    for (i, out) in out.as_mut_slice().chunks_exact_mut(size).enumerate() {
        let at = (i % height * width + columns.start + i / height) * size;
        out.copy_from_slice(&from[at..at + size]);
    }
    matrix.tensor(vec![columns.len(), height], out)
}

/// A tensor as a matrix `[height, width]`.
struct Matrix<'a> {
    name: &'a str,
    tensor: &'a Tensor,
    height: usize,
    width: usize,
}

impl Matrix<'_> {
    /// Some rows, each of the shape `row`.
    fn take(
        &self,
        rows: impl ExactSizeIterator<Item = usize>,
        row: Vec<usize>,
    ) -> Result<Tensor, ReadError> {
        let (from, size, count) = (self.tensor.bytes(), self.width * self.element()?, rows.len());
        let all = count.checked_mul(size).filter(|_| count <= self.height);
        let mut out = self.room(all.ok_or_else(|| self.beyond(count))?)?;
        // Where rows have no bytes, none is looked for.
        for (out, row) in out.as_mut_slice().chunks_exact_mut(size.max(1)).zip(rows) {
            let at = Some(row).filter(|row| *row < self.height).map(|row| row * size);
            let at = at.ok_or_else(|| self.beyond(row))?;
            out.copy_from_slice(&from[at..at + size]);
        }
        self.tensor(std::iter::once(count).chain(row).collect(), out)
    }

    /// Bytes of an element.
    fn element(&self) -> Result<usize, ReadError> {
        let dtype = self.tensor.dtype();
        let parts = || wrong(self.name, format!("elements of {dtype} are not whole bytes"));
        dtype.bytes_of(&[1]).filter(|&bytes| bytes > 0).ok_or_else(parts)
    }

    fn room(&self, bytes: usize) -> Result<Bytes, ReadError> {
        let full = || format!("tensor {:?}: no memory for {bytes} bytes of it", self.name);
        Bytes::try_zeroed(bytes).ok_or_else(|| ReadError::Machine(full()))
    }

    fn tensor(&self, shape: Vec<usize>, bytes: Bytes) -> Result<Tensor, ReadError> {
        let lost = || wrong(self.name, "its rows are not as long as they must be");
        Tensor::new(self.tensor.dtype(), shape, bytes).ok_or_else(lost)
    }

    fn beyond(&self, row: usize) -> ReadError {
        wrong(self.name, format!("row {row} of {}", self.height))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stack of two matrices `[8, 3]`, whose elements are 100 x matrix + 10 x row + column; the first
    /// of them alone, and that one transposed.
    struct Stored;

    impl Source for Stored {
        fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Tensor, ReadError> {
            let element = |m: usize, r: usize, c: usize| (100 * m + 10 * r + c) as f32;
            let (shape, value): (&[usize], &dyn Fn(usize) -> f32) = match name {
                "stack" => (&[2, 8, 3], &|i| element(i / 24, i / 3 % 8, i % 3)),
                "turned" => (&[3, 8], &|i| element(0, i % 8, i / 8)),
                "bias" => (&[8], &|i| element(0, i, 0)),
                _ => (&[8, 3], &|i| element(0, i / 3, i % 3)),
            };
            if rows.start > rows.end || rows.end > shape[0] {
                return Err(wrong(name, format!("rows {rows:?}")));
            }
            let row: usize = shape[1..].iter().product();
            let values: Vec<f32> = (rows.start * row..rows.end * row).map(value).collect();
            let shape = [&[rows.len()], &shape[1..]].concat();
            Ok(Tensor::from_f32(shape, &values).unwrap())
        }
    }

    fn plain() -> View {
        View::whole("plain")
    }

    fn stack(index: usize) -> View {
        View { index: Some(index), ..View::whole("stack") }
    }

    fn read(view: &View, rows: Range<usize>) -> Vec<f32> {
        let read = Stored.read_view(view, rows.clone()).unwrap();
        assert_eq!(read.shape()[0], rows.len());
        read.to_f32().unwrap()
    }

    #[test]
    fn a_weight_is_read_from_where_it_lies() {
        assert_eq!(read(&plain(), 1..3), [10.0, 11.0, 12.0, 20.0, 21.0, 22.0]);
        assert_eq!(read(&View { rows: RowMap::From(5), ..plain() }, 1..2), [60.0, 61.0, 62.0]);
        assert_eq!(read(&stack(1), 7..8), [170.0, 171.0, 172.0]);
        assert_eq!(read(&View { rows: RowMap::From(4), ..stack(1) }, 0..1), [140.0, 141.0, 142.0]);
        assert_eq!(read(&stack(1), 3..3), []);
        let of_stack = View { transposed: Some(8), rows: RowMap::From(1), ..stack(1) };
        let column = [101.0, 111.0, 121.0, 131.0, 141.0, 151.0, 161.0, 171.0];
        assert_eq!(read(&of_stack, 0..1), column);
    }

    #[test]
    fn a_transposed_tensor_reads_as_the_plain_one() {
        let turned = View { transposed: Some(3), ..View::whole("turned") };
        for rows in [0..8, 0..1, 3..7, 8..8] {
            let [a, b] = [&turned, &plain()].map(|v| Stored.read_view(v, rows.clone()).unwrap());
            assert_eq!(a, b, "{rows:?}");
        }
        assert!(plain().by_rows() && !turned.by_rows());
    }

    /// `LlamaModel.permute` of llama.cpp's `convert_hf_to_gguf.py` stores rows 0 1 2 3 of a head of four
    /// as 0 2 1 3: `w.reshape(heads, 2, dim / 2, width).swapaxes(1, 2)`.
    #[test]
    fn halves_that_are_stored_in_turns_are_put_together() {
        let paired = View { rows: RowMap::Paired(4), ..plain() };
        let first = |values: Vec<f32>| values.into_iter().step_by(3).collect::<Vec<_>>();
        assert_eq!(first(read(&paired, 0..8)), [0.0, 20.0, 10.0, 30.0, 40.0, 60.0, 50.0, 70.0]);
        assert_eq!(first(read(&paired, 3..6)), [30.0, 40.0, 60.0]);
        let bias = View { rows: RowMap::Paired(8), ..View::whole("bias") };
        let in_turns = [0.0, 20.0, 40.0, 60.0, 10.0, 30.0, 50.0, 70.0];
        assert_eq!(read(&bias, 0..8), in_turns);
    }

    /// Of a head of any length, even one that no model has.
    #[test]
    fn every_row_has_one_place() {
        for head in 0..9 {
            let map = RowMap::Paired(head);
            let mut places: Vec<usize> = (0..3 * map.span()).map(|i| map.place(i)).collect();
            for (row, place) in places.iter().enumerate() {
                assert_eq!(row / map.span(), place / map.span(), "{head}");
            }
            places.sort_unstable();
            assert!(places.into_iter().eq(0..3 * map.span()), "{head}");
        }
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        let views = [
            View { rows: RowMap::From(8), ..plain() },
            View { rows: RowMap::From(usize::MAX), ..plain() },
            View { rows: RowMap::From(usize::MAX - 1), ..stack(0) },
            View { rows: RowMap::From(7), ..stack(0) },
            View { rows: RowMap::Paired(usize::MAX), ..plain() },
            View { rows: RowMap::Paired(16), ..plain() },
            View { rows: RowMap::Paired(4), ..View::whole("stack") },
            stack(2),
            stack(usize::MAX),
            View { index: Some(0), ..plain() },
            View { transposed: Some(9), ..plain() },
            View { transposed: Some(usize::MAX), ..stack(0) },
            View { transposed: Some(8), rows: RowMap::From(2), ..plain() },
            View { transposed: Some(8), rows: RowMap::From(usize::MAX), ..plain() },
            View { transposed: Some(8), ..View::whole("bias") },
            View { transposed: Some(2), ..View::whole("stack") },
        ];
        for view in views {
            assert!(Stored.read_view(&view, 0..2).is_err(), "{view}");
        }
        let (start, end) = (2, 1);
        assert!(Stored.read_view(&plain(), start..end).is_err());
        assert!(Stored.read_view(&stack(0), usize::MAX..usize::MAX).is_err());
        assert!(Stored.read_view(&stack(0), 0..usize::MAX).is_err());
    }

    #[test]
    fn a_view_is_printed_step_by_step() {
        let fused = View { rows: RowMap::From(28), transposed: Some(3), ..stack(1) };
        let heads = View { rows: RowMap::Paired(64), ..View::whole("two words") };
        let said = [plain(), stack(0), fused, heads].map(|view| view.to_string());
        assert_eq!(said, ["plain", "stack[0]", "stack[1][T 3][28..]", "\"two words\"[paired 64]"]);
    }
}
