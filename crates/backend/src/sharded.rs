//! Tensor parallelism (Shoeybi et al. 2019): one backend over several of a host. Linears that read what
//! every device has are cut by outputs, those that read parts by inputs, and what the latter give is
//! summed in the order of the devices. Heads are divided in between. Programs and interpreter are those of
//! one device.

use crate::{
    Algebra, Attend, AttendPaged, Backend, BackendError, BackendExt, Buffer, DeviceWeight, Draws,
    Embed, Fold, Incoming, KvCache, KvDType, Leaving, Linear, Peers, Rope, Whole, dense,
    stored_bytes,
};
use ir::{Activation, Block, Grid, Heads, Op, Quantized, Spec, Value, Weight};
use std::ops::Range;
use tensor::{Bytes, Tensor};

/// How a weight is divided among devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Every device has all of it.
    Whole,
    /// By outputs: rows of a matrix, elements of a bias.
    Outputs,
    /// By inputs: columns of a matrix.
    Inputs,
    /// The first device has it, the others nothing: a bias of what is summed.
    First,
}

/// Several backends as one.
pub struct Sharded<'a> {
    devices: Vec<&'a dyn Backend>,
}

/// A buffer of every device.
struct Parts {
    all: Vec<Buffer>,
    /// Whether each holds the same whole rows, rather than a part of every row.
    whole: bool,
}

/// A weight of every device; `None` where a device has nothing.
struct Shards {
    all: Vec<Option<DeviceWeight>>,
    cut: Cut,
}

/// How each weight of a program is cut, by what reads it.
///
/// # Errors
/// If the program adds parts to what is whole, which no decoder does.
pub fn cuts<W>(block: &Block<W>) -> Result<Vec<Cut>, BackendError> {
    let mut cuts = vec![Cut::Whole; block.weights.len()];
    let mut whole = vec![true];
    let is_whole = |whole: &[bool], value: Value| whole.get(value.0 as usize).copied();
    for (index, op) in block.ops.iter().enumerate() {
        let inputs: Vec<Option<bool>> = op.inputs().iter().map(|v| is_whole(&whole, *v)).collect();
        let (Some(&first), true) = (inputs.first(), inputs.windows(2).all(|w| w[0] == w[1])) else {
            return Err(BackendError::Internal(format!("{} of parts and wholes", op.name())));
        };
        let first = first.unwrap_or(true);
        let result = Value(index as u32 + 1);
        // Every device must know all scores, and has all experts.
        let routes = block.uses(result).any(|op| matches!(block.ops[op], Op::Route { .. }));
        whole.push(match op {
            Op::Linear { .. } if routes && first => true,
            Op::Route { .. } | Op::Experts { .. } if !first => {
                return Err(BackendError::Internal(format!("{} of parts", op.name())));
            }
            Op::Linear { weight, bias, .. } => {
                let (of_weight, of_bias) =
                    if first { (Cut::Outputs, Cut::Outputs) } else { (Cut::Inputs, Cut::First) };
                cuts[weight.0 as usize] = of_weight;
                bias.iter().for_each(|bias| cuts[bias.0 as usize] = of_bias);
                !first
            }
            _ => first,
        });
    }
    Ok(cuts)
}

impl<'a> Sharded<'a> {
    /// One backend over `devices`, two at least.
    pub fn new(devices: Vec<&'a dyn Backend>) -> Self {
        Self { devices }
    }

    fn count(&self) -> usize {
        self.devices.len()
    }

    /// What of `n` belongs to a device.
    fn share(&self, device: usize, n: usize) -> Range<usize> {
        n * device / self.count()..n * (device + 1) / self.count()
    }

    /// The heads of each device.
    fn heads(&self, heads: Heads) -> Result<Heads, BackendError> {
        let n = self.count();
        if !heads.kv.is_multiple_of(n) {
            let kv = heads.kv;
            let rule = format!("{kv} key heads cannot be divided among {n} devices");
            return Err(BackendError::Refused(rule));
        }
        Ok(Heads { query: heads.query / n, kv: heads.kv / n, dim: heads.dim })
    }

    fn buffer(&self, rows: usize, width: usize, all: Vec<Buffer>, whole: bool) -> Buffer {
        Buffer::new(rows, width, Parts { all, whole })
    }

    /// Does `op` on every device, over buffers that lie alike.
    fn each(
        &self,
        input: &Buffer,
        width: usize,
        op: impl Fn(usize, &dyn Backend, &Buffer) -> Result<Buffer, BackendError>,
    ) -> Result<Buffer, BackendError> {
        let parts: &Parts = input.data()?;
        let all = self.devices.iter().enumerate().zip(&parts.all);
        let all = all.map(|((i, device), part)| op(i, *device, part));
        Ok(self.buffer(input.rows(), width, all.collect::<Result<_, _>>()?, parts.whole))
    }

    /// The sum of what every device has, on every device: in the order of the devices.
    fn sum(&self, all: Vec<Buffer>, rows: usize, width: usize) -> Result<Buffer, BackendError> {
        let first = self.devices.first().ok_or_else(missing)?;
        let among = first.peers().map(|peers| peers.sum_among(&self.devices, &all));
        if let Some(sums) = among.transpose()?.flatten() {
            return Ok(self.buffer(rows, width, sums, true));
        }
        let leaving = self.devices.iter().zip(all).map(|(device, part)| device.leave(part));
        let leaving = leaving.collect::<Result<Vec<_>, _>>()?;
        let mut total: Option<Vec<f32>> = None;
        for part in leaving {
            let values = part.arrive()?;
            match &mut total {
                None => total = Some(values),
                Some(total) => total.iter_mut().zip(values).for_each(|(sum, x)| *sum += x),
            }
        }
        let total = total.unwrap_or_default();
        let all = self.devices.iter().map(|device| device.upload(width, total.clone()));
        Ok(self.buffer(rows, width, all.collect::<Result<_, _>>()?, true))
    }

    /// A weight of every device.
    fn shards(
        &self,
        shape: Vec<usize>,
        cut: Cut,
        make: impl Fn(usize, &dyn Backend) -> Result<DeviceWeight, BackendError>,
    ) -> Result<DeviceWeight, BackendError> {
        let one = |(i, device): (usize, &&dyn Backend)| match cut {
            Cut::First if i > 0 => Ok(None),
            _ => make(i, *device).map(Some),
        };
        let all = self.devices.iter().enumerate().map(one).collect::<Result<_, _>>()?;
        Ok(DeviceWeight::new(shape, Shards { all, cut }))
    }

    fn prepare_dense_cut(&self, weight: &Weight, cut: Cut) -> Result<DeviceWeight, BackendError> {
        let shape = weight.spec.shape.clone();
        self.shards(shape.clone(), cut, |i, device| {
            let [rows, columns] = match (cut, &shape[..]) {
                (Cut::Outputs, [out, rest @ ..]) => [self.share(i, *out), 0..rest.iter().product()],
                (Cut::Inputs, &[out, width]) => [0..out, self.share(i, width)],
                (_, [out, rest @ ..]) => [0..*out, 0..rest.iter().product()],
                (_, []) => [0..1, 0..1],
            };
            device.prepare_dense(part_of(weight, rows, columns)?)
        })
    }

    fn prepare_codes_cut(
        &self,
        tensor: &str,
        codes: &Quantized,
        cut: Cut,
    ) -> Result<DeviceWeight, BackendError> {
        let [out, width] = codes.shape;
        self.shards(vec![out, width], cut, |i, device| {
            let [rows, columns] = match cut {
                Cut::Outputs => [self.share(i, out), 0..width],
                Cut::Inputs => [0..out, self.share(i, width)],
                Cut::Whole | Cut::First => [0..out, 0..width],
            };
            device.prepare_quantized(tensor, codes_of(tensor, codes, rows, columns)?)
        })
    }
}

impl Backend for Sharded<'_> {
    fn name(&self) -> &'static str {
        self.devices.first().map_or("nothing", |device| device.name())
    }

    fn numerics(&self) -> &'static str {
        "sharded"
    }

    fn is_apart(&self) -> bool {
        self.devices.iter().any(|device| device.is_apart())
    }

    fn free_memory(&self) -> Option<u64> {
        self.devices.iter().map(|device| device.free_memory()).sum()
    }

    fn finish(&self) -> Result<(), BackendError> {
        self.devices.iter().try_for_each(|device| device.finish())
    }

    fn awake(&self, steps: &mut dyn FnMut()) {
        steps();
    }

    fn algebra(&self) -> Result<&dyn Algebra, BackendError> {
        Err(BackendError::Refused("the compiler runs on one device".into()))
    }

    fn draws(&self) -> Option<&dyn Draws> {
        None
    }

    fn peers(&self) -> Option<&dyn Peers> {
        None
    }

    fn prepare(&self, weight: Incoming<'_>, cut: Cut) -> Result<DeviceWeight, BackendError> {
        match weight.whole()? {
            Whole::Dense(weight) => self.prepare_dense_cut(&weight, cut),
            // No device of several computes with it, and its columns can be cut nearly nowhere.
            Whole::On { tensor, codes } if codes.grid.int().is_none() => {
                self.prepare_dense_cut(&dense(tensor, &codes)?, cut)
            }
            Whole::On { tensor, codes } => self.prepare_codes_cut(tensor, &codes, cut),
        }
    }

    fn laid_out_bytes(&self, spec: &Spec, grid: Option<Grid>) -> u64 {
        stored_bytes(spec, grid)
    }

    fn upload(&self, width: usize, values: Vec<f32>) -> Result<Buffer, BackendError> {
        let rows = values.len() / width.max(1);
        let all = self.devices.iter().map(|device| device.upload(width, values.clone()));
        Ok(self.buffer(rows, width, all.collect::<Result<_, _>>()?, true))
    }

    fn zeros(&self, rows: usize, width: usize) -> Result<Buffer, BackendError> {
        let all = self.devices.iter().map(|device| device.zeros(rows, width));
        Ok(self.buffer(rows, width, all.collect::<Result<_, _>>()?, true))
    }

    fn download(&self, buffer: Buffer) -> Result<Vec<f32>, BackendError> {
        let (rows, width) = (buffer.rows(), buffer.width());
        let Parts { all, whole } = buffer.into_data()?;
        let mut parts = self.devices.iter().zip(all);
        if whole {
            let first = parts.next().map(|(device, part)| device.download(part));
            return first.unwrap_or_else(|| Ok(Vec::new()));
        }
        let (mut joined, mut begin) = (vec![0.0; rows * width], 0);
        for (device, part) in parts {
            let (own, values) = (part.width(), device.download(part)?);
            for (row, values) in joined.chunks_exact_mut(width).zip(values.chunks_exact(own.max(1)))
            {
                row[begin..begin + own].copy_from_slice(values);
            }
            begin += own;
        }
        Ok(joined)
    }

    fn leave(&self, buffer: Buffer) -> Result<Leaving, BackendError> {
        Ok(Leaving::arrived(self.download(buffer)?))
    }

    fn recycle(&self, values: Vec<f32>) {
        if let Some(first) = self.devices.first() {
            first.recycle(values);
        }
    }

    fn copy(&self, buffer: &Buffer) -> Result<Buffer, BackendError> {
        self.each(buffer, buffer.width(), |_, device, part| device.copy(part))
    }

    fn gather(&self, buffer: &Buffer, rows: &[usize]) -> Result<Buffer, BackendError> {
        let parts: &Parts = buffer.data()?;
        let all = self.devices.iter().zip(&parts.all).map(|(d, part)| d.gather(part, rows));
        let all = all.collect::<Result<_, _>>()?;
        Ok(self.buffer(rows.len(), buffer.width(), all, parts.whole))
    }

    fn embed(&self, args: &Embed<'_>, out: &mut Buffer) -> Result<(), BackendError> {
        let weights: &Shards = args.weight.data()?;
        let parts: &mut Parts = out.data_mut()?;
        for ((device, part), weight) in self.devices.iter().zip(&mut parts.all).zip(&weights.all) {
            let weight = weight.as_ref().ok_or_else(missing)?;
            device.embed(&Embed { tokens: args.tokens, weight, first: args.first }, part)?;
        }
        Ok(())
    }

    fn linears(&self, all: &[Linear<'_>]) -> Result<Vec<Buffer>, BackendError> {
        let Some(first) = all.first() else { return Ok(Vec::new()) };
        let input: &Parts = first.input.data()?;
        let mut outputs: Vec<Vec<Buffer>> = all.iter().map(|_| Vec::new()).collect();
        for (i, (device, part)) in self.devices.iter().zip(&input.all).enumerate() {
            let own = |args: &Linear<'_>| -> Result<_, BackendError> {
                let weight = args.weight.data::<Shards>()?.all[i].clone().ok_or_else(missing)?;
                let bias = args.bias.map(|bias| bias.data::<Shards>()).transpose()?;
                Ok((weight, bias.and_then(|bias| bias.all[i].clone())))
            };
            let weights = all.iter().map(own).collect::<Result<Vec<_>, _>>()?;
            let decode = first.decode;
            let linear = |(weight, bias)| Linear { input: part, weight, bias, decode };
            let parts: Vec<Linear<'_>> =
                weights.iter().map(|(weight, bias)| linear((weight, bias.as_ref()))).collect();
            let made = device.linears(&parts)?;
            outputs.iter_mut().zip(made).for_each(|(all, one)| all.push(one));
        }
        let finish = |(args, parts): (&Linear<'_>, Vec<Buffer>)| {
            let (rows, width) = (args.input.rows(), args.weight.shape()[0]);
            match args.weight.data::<Shards>()?.cut {
                Cut::Inputs => self.sum(parts, rows, width),
                Cut::Outputs => Ok(self.buffer(rows, width, parts, false)),
                Cut::Whole | Cut::First => Ok(self.buffer(rows, width, parts, true)),
            }
        };
        all.iter().zip(outputs).map(finish).collect()
    }

    fn norm(
        &self,
        input: &Buffer,
        weight: &DeviceWeight,
        eps: f32,
    ) -> Result<Buffer, BackendError> {
        let weights: &Shards = weight.data()?;
        if !input.data::<Parts>()?.whole && weight.shape()[0] == input.width() {
            return Err(BackendError::Refused("a norm over all heads cannot be divided".into()));
        }
        self.each(input, input.width(), |i, device, part| {
            device.norm(part, weights.all[i].as_ref().ok_or_else(missing)?, eps)
        })
    }

    fn rope(&self, args: &Rope<'_>, x: &mut Buffer) -> Result<(), BackendError> {
        let parts: &mut Parts = x.data_mut()?;
        self.devices.iter().zip(&mut parts.all).try_for_each(|(device, x)| device.rope(args, x))
    }

    fn attend(&self, args: &Attend<'_>) -> Result<Buffer, BackendError> {
        let heads = self.heads(args.heads)?;
        let (k, v): (&Parts, &Parts) = (args.k.data()?, args.v.data()?);
        self.each(args.q, args.heads.query * args.heads.dim, |i, device, q| {
            let &Attend { scale, window, sequences, .. } = args;
            device.attend(&Attend {
                q,
                k: &k.all[i],
                v: &v.all[i],
                heads,
                scale,
                window,
                sequences,
            })
        })
    }

    fn kv_cache(
        &self,
        heads: Heads,
        dtype: KvDType,
        blocks: usize,
    ) -> Result<KvCache, BackendError> {
        let heads = self.heads(heads)?;
        let all = self.devices.iter().map(|device| device.kv_cache(heads, dtype, blocks));
        Ok(KvCache::new(all.collect::<Result<Vec<KvCache>, _>>()?))
    }

    fn attend_paged(
        &self,
        args: &AttendPaged<'_>,
        cache: &KvCache,
    ) -> Result<Buffer, BackendError> {
        let (heads, caches) = (self.heads(args.heads)?, cache.data::<Vec<KvCache>>()?);
        let (k, v): (&Parts, &Parts) = (args.k.data()?, args.v.data()?);
        self.each(args.q, args.heads.query * args.heads.dim, |i, device, q| {
            let &AttendPaged { scale, window, spans, .. } = args;
            let (k, v) = (&k.all[i], &v.all[i]);
            device.attend_paged(&AttendPaged { q, k, v, heads, scale, window, spans }, &caches[i])
        })
    }

    fn activate(&self, kind: Activation, x: &mut Buffer) -> Result<(), BackendError> {
        let parts: &mut Parts = x.data_mut()?;
        self.devices.iter().zip(&mut parts.all).try_for_each(|(d, x)| d.activate(kind, x))
    }

    fn scale(&self, by: f32, x: &mut Buffer) -> Result<(), BackendError> {
        let parts: &mut Parts = x.data_mut()?;
        self.devices.iter().zip(&mut parts.all).try_for_each(|(d, x)| d.scale(by, x))
    }

    fn mul(&self, a: &mut Buffer, b: &Buffer) -> Result<(), BackendError> {
        let (a, b): (&mut Parts, &Parts) = (a.data_mut()?, b.data()?);
        let all = self.devices.iter().zip(&mut a.all).zip(&b.all);
        all.into_iter().try_for_each(|((device, a), b)| device.mul(a, b))
    }

    fn add(&self, a: &mut Buffer, b: &Buffer) -> Result<(), BackendError> {
        let (a, b): (&mut Parts, &Parts) = (a.data_mut()?, b.data()?);
        let all = self.devices.iter().zip(&mut a.all).zip(&b.all);
        all.into_iter().try_for_each(|((device, a), b)| device.add(a, b))
    }

    fn fold(&self, first: u32, slice: Fold<'_>) -> Result<(), BackendError> {
        // The vocabulary is divided among the devices; where all is on each, the first does.
        let mut first = first;
        match slice {
            Fold::Softmax { logits, rows } => {
                let parts: &Parts = logits.data()?;
                for (device, part) in self.devices.iter().zip(&parts.all) {
                    device.fold(first, Fold::Softmax { logits: part, rows })?;
                    if parts.whole {
                        break;
                    }
                    first += part.width() as u32;
                }
            }
            Fold::Divergence { logits, rows } => {
                let [p, q]: [&Parts; 2] = [logits[0].data()?, logits[1].data()?];
                if p.whole != q.whole {
                    return Err(BackendError::Internal("both logits lie alike".into()));
                }
                for ((device, a), b) in self.devices.iter().zip(&p.all).zip(&q.all) {
                    device.fold(first, Fold::Divergence { logits: [a, b], rows })?;
                    if p.whole {
                        break;
                    }
                    first += a.width() as u32;
                }
            }
        }
        Ok(())
    }
}

fn missing() -> BackendError {
    BackendError::Internal("every device has its part".into())
}

/// Some rows and columns of a weight; what is not a matrix is a column.
fn part_of(
    weight: &Weight,
    rows: Range<usize>,
    columns: Range<usize>,
) -> Result<Weight, BackendError> {
    let mut spec = weight.spec.clone();
    let width = spec.shape.get(1).copied().unwrap_or(1);
    let size = spec.dtype.bytes_of(&[1]).unwrap_or(0);
    let bytes = weight.tensor.bytes();
    let mut part = Vec::with_capacity(rows.len() * columns.len() * size);
    for row in rows.clone() {
        let at = (row * width + columns.start) * size;
        let run = bytes.get(at..at + columns.len() * size).ok_or_else(missing)?;
        part.extend_from_slice(run);
    }
    spec.shape = match weight.spec.shape.len() {
        1 => vec![rows.len()],
        _ => vec![rows.len(), columns.len()],
    };
    let tensor = Tensor::new(spec.dtype, spec.shape.clone(), Bytes::from_slice(&part));
    Ok(Weight { spec, tensor: tensor.ok_or_else(missing)? })
}

/// Some rows and columns of a weight on a grid, whole groups of columns.
fn codes_of(
    tensor: &str,
    weight: &Quantized,
    rows: Range<usize>,
    columns: Range<usize>,
) -> Result<Quantized, BackendError> {
    let (begin, end) = (columns.start, columns.end);
    weight.cut(rows, columns).ok_or_else(|| BackendError::Weight {
        tensor: tensor.into(),
        rule: format!(
            "columns {begin}..{end} of a device are whole groups of {}",
            weight.grid.block().map_or(1, |block| block.get())
        ),
    })
}
