//! Models of noise, of the true shapes of known ones: for speed and memory, the weights mean
//! nothing. Nothing is read from a file; each row is made when it is asked for, always the same.

use crate::noise::Noise;
use ir::{Grid, IntGrid, Params, Quantized, ReadError, Source, Span};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::ops::Range;
use tensor::{Bytes, DType, Tensor};

/// What the linears of a synthetic model are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyntheticGrid {
    /// All weights dense.
    Bf16,
    /// 8 bits, a scale a row, the head too.
    Int8,
    /// 4 bits in groups of 128, the head 8 bits with a scale a row.
    Int4,
}

impl SyntheticGrid {
    /// How it is spelled in arguments and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }
}

/// A model of noise.
#[derive(Clone, Debug)]
pub struct Synthetic {
    config: Map<String, Value>,
    tensors: BTreeMap<String, (DType, Vec<usize>)>,
    grid: SyntheticGrid,
    seed: u64,
}

/// Configurations of known models, by the names of their shapes. A shape is added by its file and a line
/// here.
const SHAPES: [(&str, &str); 5] = [
    ("qwen2.5-0.5b", include_str!("../shapes/qwen2.5-0.5b.json")),
    ("qwen3-0.6b", include_str!("../shapes/qwen3-0.6b.json")),
    ("llama-3.2-1b", include_str!("../shapes/llama-3.2-1b.json")),
    ("llama-3.1-8b", include_str!("../shapes/llama-3.1-8b.json")),
    ("qwen3-8b", include_str!("../shapes/qwen3-8b.json")),
];

const HEAD: &str = "lm_head.weight";

impl Synthetic {
    /// The model of noise of the shape `name`; `None` if there is no such shape.
    pub fn new(name: &str, grid: SyntheticGrid, seed: u64) -> Option<Self> {
        let (_, text) = SHAPES.iter().find(|(known, _)| *known == name)?;
        let mut config: Map<String, Value> = serde_json::from_str(text).ok()?;
        if grid != SyntheticGrid::Bf16 {
            // A head of integers has a weight of its own.
            config.insert("tie_word_embeddings".into(), false.into());
        }
        let model = arch::imagine(&config, DType::BF16).ok()?.model;
        let tensors = model.tensors().into_iter();
        let tensors = tensors.map(|s| (s.tensor.clone(), (s.dtype, s.shape.clone()))).collect();
        Some(Self { config, tensors, grid, seed })
    }

    /// The shapes that there are.
    pub fn names() -> impl Iterator<Item = &'static str> {
        SHAPES.iter().map(|(name, _)| *name)
    }

    /// Its configuration, as a `config.json` has it.
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// Its tensors, as they are read dense.
    pub fn tensors(&self) -> &BTreeMap<String, (DType, Vec<usize>)> {
        &self.tensors
    }

    /// The bytes that a tensor would take in a file; 0 if there is none.
    pub fn bytes(&self, name: &str) -> u64 {
        let Some((dtype, shape)) = self.tensors.get(name) else { return 0 };
        match (self.grid(name), &shape[..]) {
            (Some(grid), &[rows, width]) => grid.bytes([rows, width]),
            _ => dtype.bytes_of(shape).unwrap_or(0) as u64,
        }
    }

    /// The grid of a tensor; `None` if it is dense.
    pub fn grid(&self, name: &str) -> Option<Grid> {
        let int = |bits, span| Grid::Int { bits, symmetric: true, span, scale: DType::BF16 };
        let linear = name == HEAD || name.ends_with("proj.weight");
        match self.grid {
            _ if !linear => None,
            SyntheticGrid::Bf16 => None,
            SyntheticGrid::Int4 if name != HEAD => Some(int(4, Span::Group(128))),
            SyntheticGrid::Int8 | SyntheticGrid::Int4 => Some(int(8, Span::Channel)),
        }
    }

    /// The shape of these rows of a tensor.
    fn rows(&self, name: &str, rows: &Range<usize>) -> Result<Vec<usize>, ReadError> {
        let found = self.tensors.get(name).map(|(_, shape)| shape.clone());
        let shape = found.filter(|s| rows.start <= rows.end && rows.end <= s[0]);
        let wrong = || ReadError::Input(format!("no rows {rows:?} of a tensor {name:?}"));
        let mut shape = shape.ok_or_else(wrong)?;
        shape[0] = rows.len();
        Ok(shape)
    }

    fn noise(&self, name: &str, row: usize) -> Noise {
        // FNV-1a of the name, so that tensors differ.
        let hash = |h: u64, b: u8| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3);
        let name = name.bytes().fold(0xcbf2_9ce4_8422_2325, hash);
        let mut noise = Noise(name ^ self.seed.rotate_left(32));
        Noise(noise.next() ^ row as u64)
    }
}

impl Source for Synthetic {
    fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Tensor, ReadError> {
        let shape = self.rows(name, &rows)?;
        let width: usize = shape[1..].iter().product();
        // A norm's weights lie around 1, all else around 0, uniform of this deviation.
        let (middle, deviation) = match name {
            _ if name.ends_with("norm.weight") => (1.0, 0.1),
            _ if shape.len() == 1 || name.contains("embed") => (0.0, 0.02),
            _ => (0.0, 1.0 / (width as f32).sqrt()),
        };
        let unit = deviation * 3f32.sqrt() / 32_768.0;
        let mut bytes = Bytes::zeroed(2 * width * rows.len());
        for (row, words) in rows.zip(bytes.as_mut_slice().chunks_exact_mut(2 * width)) {
            let mut noise = self.noise(name, row);
            for words in words.chunks_mut(8) {
                let mut draw = noise.next();
                for word in words.chunks_exact_mut(2) {
                    let value = middle + f32::from(draw as i16) * unit;
                    // The upper half of an f32 is a bf16.
                    word.copy_from_slice(&((value.to_bits() >> 16) as u16).to_le_bytes());
                    draw >>= 16;
                }
            }
        }
        let internal = || ReadError::Input(format!("tensor {name:?} has another size"));
        Tensor::new(DType::BF16, shape, bytes).ok_or_else(internal)
    }

    fn read_quantized(
        &self,
        name: &str,
        rows: Range<usize>,
    ) -> Result<Option<Quantized>, ReadError> {
        let shape = self.rows(name, &rows)?;
        let (Some(grid), &[count, width]) = (self.grid(name), &shape[..]) else { return Ok(None) };
        let Some(IntGrid { bits, span, .. }) = grid.int() else { return Ok(None) };
        // Uniform codes of so many bits deviate by this.
        let deviation = f32::from(1u16 << bits) / 12f32.sqrt();
        let unit = 1.0 / (deviation * (width as f32).sqrt());
        let mut codes = vec![0i8; count * width];
        let mut scales = Vec::with_capacity(count * span.groups(width));
        let unused = 8 - u32::from(bits);
        for (row, codes) in rows.zip(codes.chunks_exact_mut(width)) {
            let mut noise = self.noise(name, row);
            for codes in codes.chunks_mut(64 / usize::from(bits)) {
                let mut draw = noise.next();
                for code in codes {
                    *code = ((draw as u8) << unused) as i8 >> unused;
                    draw >>= bits;
                }
            }
            let scale = || grid.stored_scale(unit * (0.75 + 0.5 * noise.uniform() as f32));
            scales.extend(std::iter::repeat_with(scale).take(span.groups(width)));
        }
        let params = Params::Flat { scales, zeros: Vec::new() };
        Ok(Some(Quantized { grid, shape: [count, width], codes, params }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINEAR: &str = "model.layers.3.mlp.down_proj.weight";

    fn deviation(values: &[f32]) -> f32 {
        (values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32).sqrt()
    }

    #[test]
    fn rows_are_the_same_in_any_cut_and_differ_by_name_and_seed() {
        let model = Synthetic::new("qwen2.5-0.5b", SyntheticGrid::Int4, 1).unwrap();
        let whole = model.read_quantized(LINEAR, 0..9).unwrap().unwrap();
        let part = model.read_quantized(LINEAR, 4..9).unwrap().unwrap();
        assert_eq!(part.codes, whole.codes[4 * 4864..]);
        assert_eq!(part.scales(), &whole.scales()[4 * 38..]);
        let dense = model.read_rows(LINEAR, 0..9).unwrap();
        assert_eq!(model.read_rows(LINEAR, 8..9).unwrap().bytes(), &dense.bytes()[8 * 9728..]);
        let up = model.read_quantized(&LINEAR.replace("layers.3", "layers.4"), 0..9);
        assert_ne!(up.unwrap().unwrap().codes, whole.codes);
        let other = Synthetic::new("qwen2.5-0.5b", SyntheticGrid::Int4, 2).unwrap();
        assert_ne!(other.read_quantized(LINEAR, 0..9).unwrap().unwrap().codes, whole.codes);
    }

    #[test]
    fn noise_has_the_deviation_that_keeps_a_model_sane() {
        let expected = 1.0 / 4864f32.sqrt();
        for grid in [SyntheticGrid::Int4, SyntheticGrid::Int8] {
            let model = Synthetic::new("qwen2.5-0.5b", grid, 0).unwrap();
            let values = model.read_quantized(LINEAR, 0..64).unwrap().unwrap().dequantize();
            assert!((deviation(&values) / expected - 1.0).abs() < 0.05, "{grid:?}");
        }
        let model = Synthetic::new("qwen2.5-0.5b", SyntheticGrid::Bf16, 0).unwrap();
        assert_eq!(model.read_quantized(LINEAR, 0..1).unwrap(), None);
        let values = model.read_rows(LINEAR, 0..64).unwrap().to_f32().unwrap();
        assert!((deviation(&values) / expected - 1.0).abs() < 0.05);
        let norm = model.read_rows("model.norm.weight", 0..896).unwrap().to_f32().unwrap();
        assert!((deviation(&norm) - 1.0).abs() < 0.05 && norm.iter().all(|x| *x > 0.8));
    }

    #[test]
    fn sizes_are_those_of_the_models() {
        let parameters = |name: &str| {
            let model = Synthetic::new(name, SyntheticGrid::Bf16, 0).unwrap();
            model.tensors().keys().map(|tensor| model.bytes(tensor)).sum::<u64>() / 2
        };
        assert_eq!(parameters("qwen2.5-0.5b"), 494_032_768);
        assert_eq!(parameters("qwen3-0.6b"), 596_049_920);
        assert_eq!(parameters("llama-3.2-1b"), 1_235_814_400);
        assert_eq!(parameters("llama-3.1-8b"), 8_030_261_248);
        assert_eq!(parameters("qwen3-8b"), 8_190_735_360);
        let int4 = Synthetic::new("qwen3-0.6b", SyntheticGrid::Int4, 0).unwrap();
        // Half a byte a code, two bytes a group of 128.
        assert_eq!(int4.bytes("model.layers.0.mlp.up_proj.weight"), 3072 * (512 + 16));
        assert_eq!(int4.bytes(HEAD), 151_936 * (1024 + 2));
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        assert!(Synthetic::new("qwen3-0.6B ", SyntheticGrid::Int4, 0).is_none());
        let model = Synthetic::new("qwen3-0.6b", SyntheticGrid::Int4, 0).unwrap();
        assert!(model.read_rows("model.norm.weight", 0..1025).is_err());
        assert!(model.read_quantized("lm_head.bias", 0..1).is_err());
        assert_eq!(model.bytes("lm_head.bias"), 0);
    }
}
