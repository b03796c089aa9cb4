//! What damaged weights look like: zero or constant where no training leaves them so, as files do
//! whose copy ended early on a disk that fills holes with zeros.

use crate::CompileError;
use crate::pass::PassError;
use ir::Weight;
use tensor::Tensor;

/// The fewest rows in a run that is a sign of damage.
const ROWS_LEAST: usize = 16;

/// What kind of weight is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A linear. Single rows may be dead; a run of an eighth of all is no accident.
    Linear,
    /// An embedding or a head: rows of tokens that nobody uses are often zero, those that pad the
    /// vocabulary in one run.
    Table,
}

/// Runs of rows that each hold one value, in a weight that comes by slices.
#[derive(Debug)]
pub(crate) struct Flat {
    kind: Kind,
    rows: usize,
    seen: usize,
    begin: usize,
    longest: (usize, usize),
}

impl Flat {
    /// Of a weight of so many rows.
    pub(crate) fn new(kind: Kind, rows: usize) -> Self {
        Self { kind, rows, seen: 0, begin: 0, longest: (0, 0) }
    }

    /// Looks at the next rows.
    pub(crate) fn see(&mut self, part: &Tensor) {
        let bytes = part.bytes();
        let (n, element) = (part.shape()[0], part.dtype().bits() / 8);
        let row = bytes.len() / n.max(1);
        // A row of one element is always of one value.
        if element == 0 || row <= element {
            return;
        }
        for values in bytes.chunks_exact(row) {
            self.seen += 1;
            if values[element..] != values[..row - element] {
                self.begin = self.seen;
            }
            if self.seen - self.begin > self.longest.1 - self.longest.0 {
                self.longest = (self.begin, self.seen);
            }
        }
    }

    /// Refuses what is no accident.
    pub(crate) fn check(&self, name: &str) -> Result<(), CompileError> {
        let (from, to) = self.longest;
        let least = match self.kind {
            Kind::Linear => (self.rows / 8).max(ROWS_LEAST.min(self.rows)),
            Kind::Table => self.rows / 4 + 1,
        };
        if to - from < least.max(1) {
            return Ok(());
        }
        let what = match to - from == self.rows {
            true => "is zero or constant in every row".to_string(),
            false => format!("rows {from} to {} are each zero or constant", to - 1),
        };
        let rule = format!(
            "{what}: the file is damaged, or they were pruned on purpose, which --allow-zero permits"
        );
        Err(PassError::Weight { tensor: name.into(), rule }.into())
    }
}

/// Refuses a weight that is zero or constant: the whole of it, or many of its rows; of a norm, which
/// may well be constant, a weight of zeros.
pub(crate) fn check_damage(name: &str, kind: Kind, whole: &Tensor) -> Result<(), CompileError> {
    match whole.shape() {
        [rows, _] => {
            let mut flat = Flat::new(kind, *rows);
            flat.see(whole);
            flat.check(name)
        }
        _ if !name.ends_with(".bias") && whole.bytes().iter().all(|b| *b == 0) => {
            let rule = "is zero in every element: the file is damaged, or it was pruned on purpose, \
                        which --allow-zero permits";
            Err(PassError::Weight { tensor: name.into(), rule: rule.into() }.into())
        }
        _ => Ok(()),
    }
}

/// Refuses a weight that is damaged, unless that is allowed.
pub(crate) fn sound(weight: &Weight, allow_zero: bool) -> Result<(), CompileError> {
    match allow_zero {
        true => Ok(()),
        false => check_damage(&weight.spec.tensor, Kind::Linear, &weight.tensor),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(kind: Kind, values: &[f32], width: usize) -> Option<String> {
        let shape = vec![values.len() / width, width];
        let tensor = Tensor::from_f32(shape, values).unwrap();
        check_damage("w", kind, &tensor).err().map(|e| e.to_string())
    }

    #[test]
    fn runs_of_flat_rows_are_refused_and_single_ones_are_not() {
        let sound: Vec<f32> = (0..64 * 8).map(|n| n as f32).collect();
        assert_eq!(said(Kind::Linear, &sound, 8), None);
        let with = |rows: std::ops::Range<usize>, value: f32| {
            let mut values = sound.clone();
            values[rows.start * 8..rows.end * 8].fill(value);
            values
        };
        assert_eq!(said(Kind::Linear, &with(3..4, 0.0), 8), None);
        assert_eq!(said(Kind::Linear, &with(3..18, 0.0), 8), None);
        for value in [0.0, 1.5] {
            let rule = said(Kind::Linear, &with(48..64, value), 8).unwrap();
            assert!(rule.contains("rows 48 to 63 are each zero or constant"), "{rule}");
        }
        assert!(said(Kind::Linear, &with(0..64, 2.0), 8).unwrap().contains("in every row"));
        // Padding of a vocabulary.
        assert_eq!(said(Kind::Table, &with(50..64, 0.0), 8), None);
        assert!(said(Kind::Table, &with(40..64, 0.0), 8).unwrap().contains("rows 40 to 63"));
    }

    #[test]
    fn a_run_goes_on_from_slice_to_slice() {
        let mut flat = Flat::new(Kind::Linear, 32);
        let sound = Tensor::from_f32(vec![8, 2], &(0..16).map(|n| n as f32).collect::<Vec<_>>());
        let zero = Tensor::from_f32(vec![8, 2], &[0.0; 16]).unwrap();
        flat.see(&sound.unwrap());
        flat.see(&zero);
        assert!(flat.check("w").is_ok());
        flat.see(&zero);
        assert!(flat.check("w").unwrap_err().to_string().contains("rows 8 to 23"));
    }

    #[test]
    fn norms_may_be_ones_and_biases_zeros() {
        let vector = |value: f32| Tensor::from_f32(vec![8], &[value; 8]).unwrap();
        assert!(check_damage("n.weight", Kind::Linear, &vector(1.0)).is_ok());
        assert!(check_damage("n.bias", Kind::Linear, &vector(0.0)).is_ok());
        assert!(check_damage("n.weight", Kind::Linear, &vector(0.0)).is_err());
    }
}
