//! `optimize convert`: a model in another format, every value as it is.

use crate::args::StoreDtype;
use crate::args::convert::Convert;
use crate::failure::Failure;
use crate::model;
use crate::optimize;
use crate::request::{self, GGUF, Request};
use checkpoint::Format;
use compiler::{Calibration, Dtype, Gate, OutputRecipe, Recipe};
use ir::Grid;
use toml::{Table, Value};

/// The format of dense folders.
const DENSE: &str = "safetensors";

pub(crate) fn run(args: &Convert) -> Result<(), Failure> {
    let (format, dtype) = asked(&args.format)?;
    let opened = model::open(&args.model, &args.common)?;
    let stored = opened.checkpoint.tensors().iter().filter_map(|tensor| tensor.grid);
    let widest = stored.max_by_key(|grid| bits(*grid));
    let rounds = args.requantize || dtype.is_some_and(|dtype| dtype != StoreDtype::F32);
    let output = OutputRecipe {
        name: Some(format.name.into()),
        format: Some(format.name.into()),
        dtype: dtype.map_or(Dtype::AsSource, Into::into),
        head: Dtype::AsSource,
        shard_size: args.shard_size,
        rules: rules(args, format, dtype, widest),
    };
    let gate = Gate { max_kl: args.max_kl, ..Gate::default() };
    let (passes, calibration) = (Vec::new(), Calibration::default());
    let recipe = Recipe { calibration, imatrix: None, gate, passes, outputs: vec![output] };
    let request = Request::converting(recipe, args.format.replace(':', "-"))?;
    optimize::make(&args.as_compile(rounds), request, opened)
}

/// The format, and the dtype of what is dense, if one is named.
fn asked(text: &str) -> Result<(&'static Format, Option<StoreDtype>), Failure> {
    let (name, dtype) = text.split_once(':').map_or((text, None), |(f, d)| (f, Some(d)));
    let format = request::format(name)?;
    let Some(dtype) = dtype else { return Ok((format, None)) };
    let known = match dtype {
        "bf16" => Some(StoreDtype::Bf16),
        "f16" => Some(StoreDtype::F16),
        "f32" => Some(StoreDtype::F32),
        _ => None,
    };
    let dense = format.codecs.is_empty() || format.name == GGUF;
    match known.filter(|_| dense) {
        Some(dtype) => Ok((format, Some(dtype))),
        None if passes::mixes().any(|mix| mix == dtype) && format.name == GGUF => {
            let what =
                format!("--format {text}: a mix is chosen weight by weight, not converted to");
            Err(Failure::refused(what).with_hint(format!(
                "optimize --quant {dtype} MODEL makes one; --method rtn does without calibration"
            )))
        }
        None => {
            let what = format!("--format {text}: {dtype:?} is no dtype of {name}");
            let hint = "gguf and safetensors take bf16, f16 and f32, as in gguf:bf16";
            Err(Failure::refused(what).with_hint(hint))
        }
    }
}

/// What becomes of weights: nothing where all are to be dense.
fn rules(
    args: &Convert,
    format: &Format,
    dtype: Option<StoreDtype>,
    widest: Option<Grid>,
) -> Vec<Table> {
    let Some(widest) = widest.filter(|_| dtype.is_none() && format.name != DENSE) else {
        return Vec::new();
    };
    let all = || Value::Array(["layers", "head", "embedding"].map(Value::from).into());
    let table = |pairs: &[(&str, Value)]| -> Table {
        let own = pairs.iter().map(|(key, value)| ((*key).to_string(), value.clone()));
        std::iter::once(("of".to_string(), all())).chain(own).collect()
    };
    let keep = if args.requantize { "or-rounded" } else { "exactly" };
    let mut rules = vec![table(&[("keep", keep.into())])];
    if args.requantize {
        rules.push(table(&rounded(format, bits(widest))));
    }
    rules
}

/// How values of so many bits are rounded in a format that cannot hold them.
fn rounded(format: &Format, bits: u8) -> Vec<(&'static str, Value)> {
    let rtn = ("solver", Value::from("rtn"));
    if format.name == GGUF {
        let grid = match bits {
            0..=4 => "q4_k",
            5 => "q5_k",
            6 => "q6_k",
            _ => "q8_0",
        };
        return vec![("grid", grid.into()), rtn];
    }
    let wide = if bits <= 4 { 4 } else { 8 };
    vec![("bits", wide.into()), ("group", 32.into()), ("scale", "mse".into()), rtn]
}

/// Bits of a code.
fn bits(grid: Grid) -> u8 {
    match grid {
        Grid::Int { bits, .. } => bits,
        Grid::Block(kind) => kind.form().bits,
    }
}
