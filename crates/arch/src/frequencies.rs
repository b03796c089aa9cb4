//! Rotary inverse frequencies, in the arithmetic of torch: which steps are `f32`, which are `f64`,
//! and in which order.
//!
//! torch raises the base to a power with its own vectorized `powf`, which is good to one unit in
//! the last place; here the power is taken in `f64` and rounded, so that it is the same on every
//! machine. Every later step is torch's, bit for bit.

use ir::{Llama3, Rotary, Scaling, Yarn};
use std::f64::consts::PI;

/// Frequencies and the factor of sine and cosine.
pub(crate) struct Frequencies {
    /// Radians a position, `[dim / 2]`.
    pub(crate) inv_freq: Vec<f32>,
    /// Multiplied into sine and cosine.
    pub(crate) magnitude: f64,
}

/// The frequencies of heads of size `dim`.
pub(crate) fn frequencies(rotary: &Rotary, dim: usize) -> Frequencies {
    let base = rotary.base;
    match &rotary.scaling {
        Scaling::Default => plain(base, dim),
        Scaling::Linear(linear) => divided(base, dim, linear.factor),
        Scaling::Llama3(scaling) => llama3(base, dim, scaling),
        Scaling::Yarn(scaling) => yarn(base, dim, scaling),
    }
}

/// `1 / base^(2i / dim)`.
fn plain(base: f64, dim: usize) -> Frequencies {
    let inv_freq = powers(base, dim).map(recip).collect();
    Frequencies { inv_freq, magnitude: 1.0 }
}

/// Every frequency divided by `factor`.
fn divided(base: f64, dim: usize, factor: f64) -> Frequencies {
    let inv_freq = powers(base, dim).map(|p| recip(p) / factor as f32).collect();
    Frequencies { inv_freq, magnitude: 1.0 }
}

/// Long wavelengths are divided by `factor`, short ones kept, those between interpolated.
fn llama3(base: f64, dim: usize, scaling: &Llama3) -> Frequencies {
    let inv_freq = powers(base, dim).map(|p| llama3_one(recip(p), scaling)).collect();
    Frequencies { inv_freq, magnitude: 1.0 }
}

/// Interpolated and extrapolated frequencies blended along a ramp over the dimensions.
fn yarn(base: f64, dim: usize, scaling: &Yarn) -> Frequencies {
    let (low, high) = correction_range(base, dim, scaling);
    // torch's ramp is degenerate when the ends meet.
    let span = if low == high { high + 0.001 - low } else { high - low };
    let blend = |(i, power): (usize, f32)| {
        let interpolated = recip(scaling.factor as f32 * power);
        let ramp = ((i as f32 - low as f32) / span as f32).clamp(0.0, 1.0);
        let extrapolation = 1.0 - ramp;
        interpolated * (1.0 - extrapolation) + recip(power) * extrapolation
    };
    let inv_freq = powers(base, dim).enumerate().map(blend).collect();
    Frequencies { inv_freq, magnitude: yarn_magnitude(scaling) }
}

/// `base^(2i / dim)` as `f32`.
fn powers(base: f64, dim: usize) -> impl Iterator<Item = f32> {
    let base = f64::from(base as f32);
    (0..dim).step_by(2).map(move |i| {
        let exponent = i as f32 / dim as f32;
        libm::pow(base, f64::from(exponent)) as f32
    })
}

/// torch writes a scalar over a tensor as the reciprocal times the scalar.
fn recip(x: f32) -> f32 {
    1.0 / x
}

fn llama3_one(inv_freq: f32, scaling: &Llama3) -> f32 {
    let factor = scaling.factor as f32;
    let wavelength = recip(inv_freq) * (2.0 * PI) as f32;
    let longest = (scaling.original / scaling.low) as f32;
    let shortest = (scaling.original / scaling.high) as f32;
    if wavelength > longest {
        return inv_freq / factor;
    }
    if wavelength < shortest {
        return inv_freq;
    }
    let turns = recip(wavelength) * scaling.original as f32;
    let smooth = (turns - scaling.low as f32) / (scaling.high - scaling.low) as f32;
    (1.0 - smooth) * inv_freq / factor + smooth * inv_freq
}

/// The first and the last dimension of the ramp.
fn correction_range(base: f64, dim: usize, scaling: &Yarn) -> (f64, f64) {
    let turning = |rotations: f64| {
        let log = libm::log(scaling.original / (rotations * 2.0 * PI));
        (dim as f64 * log) / (2.0 * libm::log(base))
    };
    let (mut low, mut high) = (turning(scaling.beta_fast), turning(scaling.beta_slow));
    if scaling.truncate {
        (low, high) = (libm::floor(low), libm::ceil(high));
    }
    let last = dim as f64 - 1.0;
    (if low > 0.0 { low } else { 0.0 }, if high < last { high } else { last })
}

fn yarn_magnitude(scaling: &Yarn) -> f64 {
    let grow = |by: f64| {
        if scaling.factor <= 1.0 { 1.0 } else { 0.1 * by * libm::log(scaling.factor) + 1.0 }
    };
    // Zero counts as absent, as it does in Python.
    let given = |m: Option<f64>| m.filter(|&m| m != 0.0);
    match (scaling.attention_factor, given(scaling.mscale), given(scaling.mscale_all_dim)) {
        (Some(factor), ..) => factor,
        (None, Some(m), Some(all)) => grow(m) / grow(all),
        _ => grow(1.0),
    }
}
