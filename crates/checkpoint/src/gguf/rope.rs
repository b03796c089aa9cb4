//! How rotations are scaled, in the words of llama.cpp and in those of a `config.json`.
//!
//! llama.cpp knows three ways: a factor that divides all frequencies (`linear`), yarn with the ramp of its
//! paper, and a tensor of one factor a frequency, which is how Llama 3.1 is stored. The parameters that such
//! factors came from are found again, and held against them.

use ir::{Llama3, Rotary, Scaling, Yarn};
use serde_json::{Value as Json, json};
use std::f64::consts::PI;

use super::architecture::Architecture;
use super::config::Keys;
use super::header::Value;

/// How a scaling is stored.
#[derive(Debug, Default)]
pub(crate) struct Written {
    /// Keys after `rope.scaling.`.
    pub(crate) keys: Vec<(&'static str, Value)>,
    /// What each frequency is divided by.
    pub(crate) factors: Option<Vec<f32>>,
}

/// How the rotations of heads of size `dim` are stored.
///
/// # Errors
/// If the architecture computes no such scaling.
pub(crate) fn written(
    architecture: &Architecture,
    rotary: &Rotary,
    dim: usize,
) -> Result<Written, String> {
    let name = architecture.name;
    match &rotary.scaling {
        Scaling::Default => Ok(Written::default()),
        Scaling::Linear(linear) => Ok(Written {
            keys: vec![("type", text("linear")), ("factor", Value::Float(linear.factor))],
            factors: None,
        }),
        Scaling::Yarn(yarn) => Ok(Written { keys: yarn_keys(name, yarn)?, factors: None }),
        Scaling::Llama3(_) if !architecture.factors => Err(format!(
            "its rotations are scaled as Llama 3.1's, and llama.cpp's {name:?} reads no factors of frequencies"
        )),
        Scaling::Llama3(scaling) => {
            let factors = waves(rotary.base, dim).map(|wave| scaling.factor_at(wave) as f32);
            let original = scaling.original as i64;
            Ok(Written {
                keys: vec![("original_context_length", Value::Integer(original))],
                factors: Some(factors.collect()),
            })
        }
    }
}

fn text(said: &str) -> Value {
    Value::Text(said.into())
}

/// llama.cpp has the ramp of the paper, and its own factor of sine and cosine, by which another is divided.
fn yarn_keys(architecture: &str, yarn: &Yarn) -> Result<Vec<(&'static str, Value)>, String> {
    let Yarn { factor, original, beta_fast, beta_slow, truncate, .. } = *yarn;
    if (beta_fast, beta_slow, truncate) != (32.0, 1.0, true) {
        return Err(format!(
            "its rotations are scaled by yarn with beta_fast = {beta_fast}, beta_slow = {beta_slow}, truncate = \
             {truncate}, and llama.cpp's {architecture:?} computes with 32, 1 and true only"
        ));
    }
    let mut keys = vec![
        ("type", text("yarn")),
        ("factor", Value::Float(factor)),
        ("original_context_length", Value::Integer(original as i64)),
    ];
    let share = yarn_magnitude(yarn) / grown(factor, 1.0);
    if share as f32 != 1.0 {
        keys.push(("attn_factor", Value::Float(share)));
    }
    Ok(keys)
}

/// What sines and cosines grow by.
fn grown(factor: f64, by: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * by * libm::log(factor) + 1.0 }
}

fn yarn_magnitude(yarn: &Yarn) -> f64 {
    // Zero counts as absent, as it does in transformers.
    let given = |m: Option<f64>| m.filter(|&m| m != 0.0);
    match (yarn.attention_factor, given(yarn.mscale), given(yarn.mscale_all_dim)) {
        (Some(factor), ..) => factor,
        (None, Some(m), Some(all)) => grown(yarn.factor, m) / grown(yarn.factor, all),
        _ => grown(yarn.factor, 1.0),
    }
}

/// The `rope_scaling` of a configuration that says what the keys and factors of a file do; null for none.
///
/// # Errors
/// If it has no words for it, or llama.cpp computes otherwise than the keys say.
pub(crate) fn scaling(
    keys: &Keys<'_>,
    base: f64,
    dim: usize,
    factors: Option<&[f32]>,
) -> Result<Json, String> {
    let kind = match keys.has("rope.scaling.type") {
        true => keys.text("rope.scaling.type")?,
        false => "linear",
    };
    let named = ["rope.scaling.factor", "rope.scale_linear"].into_iter().find(|key| keys.has(key));
    // Zero is none, as llama.cpp has it.
    let factor = named.map_or(Ok(1.0), |key| keys.float(key))?;
    let factor = if factor == 0.0 || kind == "none" { 1.0 } else { factor };
    if let Some(factors) = factors {
        if kind == "yarn" || factor != 1.0 {
            return Err(format!("scales rotations twice: by a tensor of factors, and as {kind:?}"));
        }
        let original = keys.has("rope.scaling.original_context_length");
        let original = original.then(|| keys.count("rope.scaling.original_context_length"));
        return found(base, dim, factors, original.transpose()?);
    }
    let share = match keys.has("rope.scaling.attn_factor") {
        true => keys.float("rope.scaling.attn_factor")?,
        false => 1.0,
    };
    match kind {
        "yarn" => yarn(keys, factor, share),
        _ if share != 1.0 => Err("rope.scaling.attn_factor is for yarn alone".into()),
        "none" | "linear" if factor == 1.0 => Ok(Json::Null),
        "linear" => Ok(json!({ "rope_type": "linear", "factor": factor })),
        other => Err(format!("rope.scaling.type is {other:?}: none, linear and yarn are read")),
    }
}

fn yarn(keys: &Keys<'_>, factor: f64, share: f64) -> Result<Json, String> {
    // What llama.cpp computes with, whatever these keys say; converters write them all the same.
    for (key, value) in [
        ("rope.scaling.yarn_beta_fast", 32.0),
        ("rope.scaling.yarn_beta_slow", 1.0),
        ("rope.scaling.yarn_ext_factor", 1.0),
        ("rope.scaling.yarn_log_multiplier", 0.0),
        ("rope.scaling.yarn_attn_factor", grown(factor, 1.0)),
    ] {
        if keys.has(key) && (keys.float(key)? - value).abs() > 1e-6 {
            let said = keys.float(key)?;
            return Err(format!(
                "{key} is {said}, and llama.cpp computes with {value} whatever it says"
            ));
        }
    }
    let original = match keys.has("rope.scaling.original_context_length") {
        true => keys.count("rope.scaling.original_context_length")?,
        false => keys.count("context_length")?,
    };
    let mut said = json!({
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
    });
    if share != 1.0 {
        said["attention_factor"] = json!(share * grown(factor, 1.0));
    }
    Ok(said)
}

/// The wavelengths of all frequencies, in tokens.
fn waves(base: f64, dim: usize) -> impl Iterator<Item = f64> {
    (0..dim / 2).map(move |i| 2.0 * PI * libm::pow(base, 2.0 * i as f64 / dim as f64))
}

/// What a frequency is divided by.
trait Factor {
    fn factor_at(&self, wave: f64) -> f64;
}

impl Factor for Llama3 {
    fn factor_at(&self, wave: f64) -> f64 {
        let turns = self.original / wave;
        if turns < self.low {
            return self.factor;
        }
        if turns > self.high {
            return 1.0;
        }
        let smooth = (turns - self.low) / (self.high - self.low);
        1.0 / ((1.0 - smooth) / self.factor + smooth)
    }
}

/// The scaling that gives these factors.
fn found(base: f64, dim: usize, factors: &[f32], original: Option<u64>) -> Result<Json, String> {
    let all: Vec<(f64, f64)> =
        waves(base, dim).zip(factors.iter().map(|&f| f64::from(f))).collect();
    if factors.len() != dim / 2 || all.iter().any(|(_, f)| !(1e-6..=1e6).contains(f)) {
        let count = factors.len();
        return Err(format!(
            "has {count} factors of frequencies, or some that are none, where heads have {}",
            dim / 2
        ));
    }
    let last = all.last().map_or(1.0, |(_, factor)| *factor);
    if all.iter().all(|(_, factor)| *factor == last) {
        return Ok(match last == 1.0 {
            true => Json::Null,
            false => json!({ "rope_type": "linear", "factor": last }),
        });
    }
    let contexts: Vec<f64> = original.map(|n| n as f64).into_iter().chain([8192.0]).collect();
    let usual =
        contexts.iter().map(|&original| Llama3 { factor: last, original, low: 1.0, high: 4.0 });
    let fitted = fitted(&all, last, contexts[0]);
    let good = |scaling: &Llama3| {
        let near = |(wave, factor): &(f64, f64)| {
            let ours = scaling.factor_at(*wave);
            (ours / factor - 1.0).abs() <= 5e-7 * last.max(1.0)
        };
        scaling.high > scaling.low && scaling.low > 0.0 && all.iter().all(near)
    };
    let scaling = usual.chain(fitted).find(good).ok_or(
        "has factors of frequencies (rope_freqs.weight) that no scaling of a config.json gives: give the \
         Hugging Face checkpoint",
    )?;
    Ok(json!({
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low,
        "high_freq_factor": scaling.high,
        "original_max_position_embeddings": scaling.original as u64,
    }))
}

/// Scalings that may give factors whose largest is `factor`, best first. Those between say where the ramp
/// ends, up to the context, which scales both ends.
fn fitted(all: &[(f64, f64)], factor: f64, original: f64) -> Vec<Llama3> {
    // Of each factor on the ramp the frequency, and how far up it is.
    let ramp: Vec<(f64, f64)> = all
        .iter()
        .filter(|(_, f)| *f != 1.0 && *f != factor)
        .map(|(wave, f)| (1.0 / wave, (1.0 / f - 1.0 / factor) / (1.0 - 1.0 / factor)))
        .collect();
    let count = all.iter().take_while(|(_, f)| *f == 1.0).count();
    let above = count.checked_sub(1).and_then(|i| all.get(i)).map_or(0.0, |(wave, _)| *wave);
    let below = all.get(count + ramp.len()).map_or(f64::INFINITY, |(wave, _)| *wave);
    let ends: Vec<(f64, f64)> = match ramp[..] {
        // Neither end is seen: anywhere between.
        [] => vec![(below.cbrt().powi(2) * above.cbrt(), below.cbrt() * above.cbrt().powi(2))],
        // One end may be anywhere beyond; the other follows.
        [(turn, up)] => (1..20)
            .map(|i| {
                let longest = (1.0 / turn) * (below * turn).powf(f64::from(i) / 20.0);
                (longest, 1.0 / ((turn - 1.0 / longest) / up + 1.0 / longest))
            })
            .collect(),
        [first, .., last] => {
            let slope = (first.1 - last.1) / (first.0 - last.0);
            let low = last.0 - last.1 / slope;
            vec![(1.0 / low, 1.0 / (low + 1.0 / slope))]
        }
    };
    let whole = |x: f64| (x * 1000.0).round() / 1000.0;
    let scaling = |(longest, shortest): (f64, f64)| {
        let (low, high) = (original / longest, original / shortest);
        [(whole(low), whole(high)), (low, high)].map(|(low, high)| Llama3 {
            factor,
            original,
            low,
            high,
        })
    };
    ends.into_iter().flat_map(scaling).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Factors as `generate_extra_tensors` of llama.cpp's converter makes them, found again.
    #[test]
    fn parameters_are_found_in_the_factors() {
        let cases = [
            (500_000.0, 128, [8.0, 8192.0, 1.0, 4.0], true),
            (500_000.0, 64, [32.0, 8192.0, 1.0, 4.0], true),
            (500.0, 12, [8.0, 64.0, 1.0, 4.0], true),
            (10_000.0, 128, [16.0, 4096.0, 1.5, 6.25], true),
            // Of one on the ramp, and of none, any parameters that give the same do.
            (1e6, 16, [8.0, 8192.0, 1.0, 4.0], false),
            (1e6, 8, [8.0, 8192.0, 1.0, 1.1], false),
        ];
        for (base, dim, [factor, original, low, high], same) in cases {
            let scaling = Llama3 { factor, original, low, high };
            let factors: Vec<f32> = waves(base, dim).map(|w| scaling.factor_at(w) as f32).collect();
            let said = found(base, dim, &factors, Some(original as u64))
                .unwrap_or_else(|e| panic!("{dim}: {e}"));
            let get = |key: &str| said[key].as_f64().unwrap_or(f64::NAN);
            let again = Llama3 {
                factor: get("factor"),
                original: get("original_max_position_embeddings"),
                low: get("low_freq_factor"),
                high: get("high_freq_factor"),
            };
            assert!(!same || again == scaling, "{again:?}");
            for (wave, factor) in waves(base, dim).zip(factors) {
                assert!((again.factor_at(wave) as f32 / factor - 1.0).abs() < 1e-5, "{again:?}");
            }
        }
    }

    #[test]
    fn factors_that_no_scaling_gives_are_refused() {
        for factors in [[1.0, 2.0, 1.0, 8.0], [8.0, 1.0, 1.0, 1.0], [1.0, 1.0, f32::NAN, 8.0]] {
            assert!(found(10_000.0, 8, &factors, None).is_err(), "{factors:?}");
        }
        assert!(found(10_000.0, 8, &[1.0; 3], None).is_err());
        assert_eq!(found(10_000.0, 8, &[1.0; 4], None), Ok(Json::Null));
        assert_eq!(
            found(1e4, 8, &[2.0; 4], None).map(|said| said["rope_type"] == "linear"),
            Ok(true)
        );
    }
}
