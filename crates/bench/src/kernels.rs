//! Kernels one by one, on the shapes of a model's layer: what each takes, and what the machine would
//! allow. Inputs are so many that caches hold none when it is needed again.

use crate::noise::Noise;
use backend::{
    AttendPaged, Backend, BackendError, BackendExt, Buffer, DeviceWeight, KV_BLOCK, KvCache,
    KvDType, Linear, RankUpdate, Span,
};
use ir::{Block, Grid, Heads, Op, Params, Quantized, Spec, Weight};
use std::cell::RefCell;
use std::time::Instant;
use tensor::{DType, Tensor};

/// A kernel's work and time.
#[derive(Clone, Debug, PartialEq)]
pub struct Timed {
    /// What was run.
    pub name: String,
    /// Seconds of one run.
    pub seconds: f64,
    /// Bytes that it must read and write, each once.
    pub bytes: f64,
    /// Operations, a multiply-add two.
    pub operations: f64,
}

/// How large the work is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// Rows of a linear over a prompt.
    pub rows: usize,
    /// Positions of all sequences together, where many decode.
    pub context: usize,
    /// Positions of a prompt that attends to itself.
    pub prompt: usize,
    /// Bytes that are touched before one is touched again.
    pub cold: usize,
    /// Columns of a Gram matrix and its factor.
    pub columns: usize,
    /// Runs that are timed together, three times.
    pub runs: usize,
}

impl Default for Scale {
    fn default() -> Self {
        Self {
            rows: 4096,
            context: 1 << 16,
            prompt: 1 << 14,
            cold: 256 << 20,
            columns: 4096,
            runs: 20,
        }
    }
}

/// Times the kernels that a model like this layer needs, one after the other, telling `each` of them.
///
/// # Errors
/// If the device cannot do something.
pub fn kernels(
    backend: &dyn Backend,
    layer: &Block<Spec>,
    scale: &Scale,
    each: &mut dyn FnMut(&Timed),
) -> Result<Vec<Timed>, BackendError> {
    let mut bench = Bench { backend, scale, each, noise: Noise(1), all: Vec::new() };
    bench.linears(layer)?;
    if let Some((heads, _)) = layer.attention() {
        for dtype in [KvDType::Bf16, KvDType::Int8] {
            bench.attention(heads, dtype)?;
        }
    }
    bench.algebra()?;
    Ok(bench.all)
}

struct Bench<'a> {
    backend: &'a dyn Backend,
    scale: &'a Scale,
    each: &'a mut dyn FnMut(&Timed),
    noise: Noise,
    all: Vec<Timed>,
}

/// What a weight is stored as.
#[derive(Clone, Copy, PartialEq)]
enum Stored {
    Int4,
    Int8,
    Bf16,
}

impl Stored {
    fn name(self) -> &'static str {
        match self {
            Self::Int4 => "int4 groups of 128",
            Self::Int8 => "int8",
            Self::Bf16 => "bf16",
        }
    }

    /// Bytes of `out` by `width`.
    fn bytes(self, out: usize, width: usize) -> usize {
        match self {
            Self::Int4 => out * width / 2 + out * width.div_ceil(128) * 2,
            Self::Int8 => out * width + out * 2,
            Self::Bf16 => out * width * 2,
        }
    }
}

/// What a kernel must read and write, and compute.
struct Work {
    bytes: f64,
    operations: f64,
}

impl Bench<'_> {
    /// Times `run`, which is told which of its inputs to take.
    fn time(
        &mut self,
        name: String,
        work: Work,
        runs: usize,
        run: impl Fn(usize) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        let mut best = f64::INFINITY;
        run(0)?;
        for round in 0..3 {
            self.backend.finish()?;
            let begun = Instant::now();
            (0..runs).try_for_each(|i| run(round * runs + i))?;
            self.backend.finish()?;
            best = best.min(begun.elapsed().as_secs_f64() / runs as f64);
        }
        let Work { bytes, operations } = work;
        let timed = Timed { name, seconds: best, bytes, operations };
        (self.each)(&timed);
        self.all.push(timed);
        Ok(())
    }

    fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.noise.uniform() as f32 - 0.5).collect()
    }

    /// As many copies of what takes `bytes` as no cache holds.
    fn copies(&self, bytes: usize) -> usize {
        self.scale.cold.div_ceil(bytes.max(1)).clamp(1, 256)
    }

    fn linears(&mut self, layer: &Block<Spec>) -> Result<(), BackendError> {
        let mut shapes: Vec<[usize; 2]> = Vec::new();
        for op in &layer.ops {
            let Op::Linear { weight, .. } = op else { continue };
            let shape = layer.weights.get(weight.0 as usize).map(|spec| &spec.shape[..]);
            if let Some(&[out, width]) = shape
                && !shapes.contains(&[out, width])
            {
                shapes.push([out, width]);
            }
        }
        for shape in shapes {
            for stored in [Stored::Int4, Stored::Int8, Stored::Bf16] {
                self.linear(shape, stored)?;
            }
        }
        Ok(())
    }

    fn linear(&mut self, [out, width]: [usize; 2], stored: Stored) -> Result<(), BackendError> {
        let bytes = stored.bytes(out, width);
        let first = self.weight([out, width], stored)?;
        let mut weights = vec![first];
        while weights.len() < self.copies(bytes) {
            weights.push(self.weight([out, width], stored)?);
        }
        for rows in [1, 8, 16, 64, self.scale.rows] {
            let x = self.values(rows * width);
            let input = self.backend.upload(width, x)?;
            let (name, backend) = (stored.name(), self.backend);
            let moved = bytes + rows * (width * 2 + out * 4);
            let work = Work { bytes: moved as f64, operations: 2.0 * (rows * width * out) as f64 };
            let decode = if rows <= 64 { rows } else { 0 };
            let name = format!("linear {name} {width} -> {out}, {rows} rows");
            self.time(name, work, self.scale.runs, |i| {
                let weight = &weights[i % weights.len()];
                backend.linear(&Linear { input: &input, weight, bias: None, decode }).map(drop)
            })?;
        }
        Ok(())
    }

    fn weight(
        &mut self,
        [out, width]: [usize; 2],
        stored: Stored,
    ) -> Result<DeviceWeight, BackendError> {
        let (bits, span) = match stored {
            Stored::Int4 => (4, ir::Span::Group(128)),
            Stored::Int8 => (8, ir::Span::Channel),
            Stored::Bf16 => {
                let values = self.values(out * width);
                let tensor = Tensor::from_f32(vec![out, width], &values);
                let tensor =
                    tensor.ok_or_else(|| BackendError::Internal("a weight of noise".into()))?;
                let spec = Spec::alone("noise", &[out, width], DType::F32);
                return self.backend.prepare_dense(Weight { spec, tensor });
            }
        };
        let grid = Grid::Int { bits, symmetric: true, span, scale: DType::BF16 };
        let (low, high) = grid.codes();
        let mut code = || (low + (self.noise.next() % (high - low + 1) as u64) as i32) as i8;
        let codes = (0..out * width).map(|_| code()).collect();
        let scales = vec![grid.stored_scale(0.01); out * span.groups(width)];
        let weight = Quantized {
            grid,
            shape: [out, width],
            codes,
            params: Params::Flat { scales, zeros: Vec::new() },
        };
        self.backend.prepare_quantized("noise", weight)
    }

    fn attention(&mut self, heads: Heads, dtype: KvDType) -> Result<(), BackendError> {
        let Scale { context, prompt, .. } = *self.scale;
        let short = 1024.min(context);
        for (sequences, length) in [(1, short), (context / short, short), (1, context)] {
            self.decode(heads, dtype, sequences, length)?;
        }
        let blocks: Vec<u32> = (0..prompt.div_ceil(KV_BLOCK) as u32).collect();
        let cache = self.backend.kv_cache(heads, dtype, blocks.len())?;
        let [q, k, v] = self.sides(heads, prompt)?;
        let spans = [Span { rows: 0..prompt, start: 0, blocks: &blocks }];
        // A position sees half of the others on average.
        let seen = prompt as f64 * (prompt + 1) as f64 / 2.0;
        let operations = 4.0 * seen * (heads.query * heads.dim) as f64;
        let bytes = prompt * (dtype.bytes(heads) + heads.query * heads.dim * 8);
        let (backend, args) = (self.backend, attend([&q, &k, &v], heads, &spans));
        let name = format!("attention of a prompt of {prompt}, {}", dtype.name());
        self.time(name, Work { bytes: bytes as f64, operations }, 1, |_| {
            backend.attend_paged(&args, &cache).map(drop)
        })
    }

    /// One more token for each of some sequences of a length.
    fn decode(
        &mut self,
        heads: Heads,
        dtype: KvDType,
        sequences: usize,
        length: usize,
    ) -> Result<(), BackendError> {
        let per = length.div_ceil(KV_BLOCK);
        let bytes = sequences * length * dtype.bytes(heads);
        let caches = (0..self.copies(bytes))
            .map(|_| self.backend.kv_cache(heads, dtype, sequences * per))
            .collect::<Result<Vec<KvCache>, _>>()?;
        let tables: Vec<Vec<u32>> = (0..sequences)
            .map(|s| (0..per).map(|i| (i * sequences + s) as u32).collect())
            .collect();
        let spans: Vec<Span<'_>> = tables
            .iter()
            .enumerate()
            .map(|(row, blocks)| Span { rows: row..row + 1, start: length - 1, blocks })
            .collect();
        let [q, k, v] = self.sides(heads, sequences)?;
        let args = attend([&q, &k, &v], heads, &spans);
        let operations = 4.0 * (sequences * length * heads.query * heads.dim) as f64;
        let name = format!("attention of {sequences} tokens, each over {length}, {}", dtype.name());
        let backend = self.backend;
        let work = Work { bytes: bytes as f64, operations };
        self.time(name, work, self.scale.runs, |i| {
            backend.attend_paged(&args, &caches[i % caches.len()]).map(drop)
        })
    }

    fn sides(&mut self, heads: Heads, rows: usize) -> Result<[Buffer; 3], BackendError> {
        let mut side = |of: usize| {
            let values = self.values(rows * of * heads.dim);
            self.backend.upload(of * heads.dim, values)
        };
        Ok([side(heads.query)?, side(heads.kv)?, side(heads.kv)?])
    }

    fn algebra(&mut self) -> Result<(), BackendError> {
        let (backend, n) = (self.backend, self.scale.columns);
        let algebra = backend.algebra()?;
        let rows = 4 * n.min(1024);
        let values = self.values(rows * n);
        let (x, sum) = (backend.upload(n, values)?, RefCell::new(backend.zeros(n, n)?));
        #[expect(clippy::single_range_in_vec_init, reason = "one sequence")]
        let sequences = [0..rows];
        let work =
            Work { bytes: ((rows * n + n * n) * 4) as f64, operations: (rows * n * n) as f64 };
        self.time(format!("gram of {n} columns, {rows} rows"), work, 1, |_| {
            algebra.gram(&x, &sequences, &mut sum.borrow_mut())
        })?;
        let sum = backend.download(sum.into_inner())?;
        let mut h: Vec<f64> = sum.iter().map(|&x| f64::from(x)).collect();
        (0..n).for_each(|i| h[i * n + i] += rows as f64);
        let work = Work { bytes: (n * n * 16) as f64, operations: (n * n * n) as f64 };
        self.time(format!("factor of an inverse of {n} columns"), work, 1, |_| {
            algebra.inverse_factor(&mut h.clone(), n).map(drop)
        })?;
        let depth = 128.min(n);
        let (a, b) = (self.values(n * depth), self.values(depth * n));
        let values = self.values(n * n);
        let c = RefCell::new(backend.upload(n, values)?);
        let work = Work { bytes: (n * n * 8) as f64, operations: 2.0 * (n * n * depth) as f64 };
        self.time(format!("update of {n} by {n}, depth {depth}"), work, 1, |_| {
            let args = RankUpdate { columns: 0..n, a: &a, b: &b, depth };
            algebra.rank_update(&mut c.borrow_mut(), &args)
        })
    }
}

fn attend<'a>([q, k, v]: [&'a Buffer; 3], heads: Heads, spans: &'a [Span<'a>]) -> AttendPaged<'a> {
    let scale = (heads.dim as f32).sqrt().recip();
    AttendPaged { q, k, v, heads, scale, window: None, spans }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backend::Reference;
    use ir::{BlockId, CacheId, Value, WeightId};

    #[test]
    fn every_kernel_of_a_layer_is_timed() {
        let spec = |out, width| Spec::alone("w", &[out, width], DType::F32);
        let linear =
            |weight| Op::Linear { input: Value::INPUT, weight: WeightId(weight), bias: None };
        let heads = Heads { query: 2, kv: 1, dim: 8 };
        let [q, k, v] = [Value::INPUT; 3];
        let attend = Op::Attend { q, k, v, heads, scale: 1.0, window: None, cache: CacheId(0) };
        let layer = Block {
            id: BlockId::Layer(0),
            ops: vec![linear(0), linear(1), linear(2), attend],
            weights: vec![spec(16, 32), spec(16, 32), spec(8, 32)],
        };
        let scale = Scale { rows: 70, context: 64, prompt: 40, cold: 4096, columns: 24, runs: 2 };
        let mut told = 0;
        let all = kernels(&Reference, &layer, &scale, &mut |_| told += 1).unwrap();
        assert_eq!(told, all.len());
        // Two shapes in three grids with five numbers of rows; four attentions of two kinds of keys.
        assert_eq!(all.len(), 2 * 3 * 5 + 2 * 4 + 3);
        assert!(all.iter().all(|k| k.seconds > 0.0 && k.bytes > 0.0 && k.operations > 0.0));
        let named = |name: &str| all.iter().find(|k| k.name == name).unwrap();
        let one = named("linear int4 groups of 128 32 -> 16, 1 rows");
        assert_eq!((one.bytes, one.operations), (16.0 * 16.0 + 32.0 + 64.0 + 64.0, 1024.0));
        let prompt = named("attention of a prompt of 40, bf16");
        assert_eq!(prompt.operations, 4.0 * 40.0 * 41.0 / 2.0 * 16.0);
    }
}
