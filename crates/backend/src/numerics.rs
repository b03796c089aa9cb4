//! The default numerics class: what every sum's order is, and the exponential.
//!
//! Each rule can be kept by scalar code and by vectors of any width up to [`LANES`], so kernels
//! for different instruction sets give the same bits. No function here calls the system's libm.

use crate::Route;
use std::ops::Range;

/// Lanes of a horizontal sum: element `i` of a run goes to lane `i % LANES`.
pub const LANES: usize = 16;

/// A linear's dot product over `in` is cut at multiples of this. Each piece is summed in order from
/// zero with fused multiply-adds; the pieces are added in order.
pub const LINEAR_CHUNK: usize = 256;

/// A Gram matrix sums over tokens in pieces of so many of a sequence, as a linear's dot product.
pub const GRAM_CHUNK: usize = 256;

/// Attention over keys is cut at multiples of this position. Each piece has its own soft-max, and
/// the pieces are merged in order.
pub const ATTEND_CHUNK: usize = 128;

/// The most columns of activations that share a scale.
pub const ROUNDED_COLUMNS: usize = 128;

/// What attention over bf16 keys and values multiplies is a bf16, and zero below this. So no product
/// and no sum of products is subnormal, and it makes no difference that the instructions for such
/// products flush what is.
pub const LEAST_BF16: f32 = 1.0 / (1u64 << 40) as f32;

/// `x` rounded to the nearest bf16, ties to even; zero below [`LEAST_BF16`].
///
/// Attention over keys and values that are stored so rounds its queries, scaled, and its weights in
/// the same way, and sums in the order of [`paired`], as the dot products of bf16 pairs of x86-64
/// (`VDPBF16PS`) do.
#[inline(always)]
pub fn round_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000;
    let rounded = if x.abs() < LEAST_BF16 { 0 } else { rounded };
    f32::from_bits(if x.is_nan() { 0x7fc0_0000 } else { rounded })
}

/// Step `step` of `range` where pairs of products are summed: the odd one of each pair goes first.
#[inline(always)]
pub fn paired(step: usize, range: &Range<usize>) -> usize {
    let other = step ^ 1;
    if range.start <= other && other < range.end { other } else { step }
}

/// Below this [`exp`] would be subnormal.
const LEAST_EXP: f32 = -87.336_54;

/// The natural logarithm of 2 in two parts; products of the first with small integers are exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// Adding and subtracting 1.5 * 2^23 rounds to the nearest integer, ties to even.
const EXP_ROUND: f32 = 12_582_912.0;

/// `e^r` for what is left of an exponent.
#[inline(always)]
fn exp_rest(r: f32) -> f32 {
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    p * r * r + r + 1.0
}

/// `e^x`, within 2 units in the last place; 0 below -87.34 (results that would be subnormal), and
/// infinity above 88.72.
///
/// Multiplications and additions are not fused, so it vectorizes the same everywhere. Reduction by
/// Cody and Waite (1980), polynomial from Cephes' `expf`.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    let clamped = if x > LEAST_EXP { x } else { LEAST_EXP };
    let clamped = if clamped < 88.722_83 { clamped } else { 88.722_83 };
    let shifted = clamped * LOG2_E + EXP_ROUND;
    let n = shifted - EXP_ROUND;
    let y = exp_rest(clamped - n * LN2_HIGH - n * LN2_LOW);
    // n is in -126..=128; 2^n is applied in two steps so that 2^128 is not needed.
    let n = (shifted.to_bits() as i32).wrapping_sub(EXP_ROUND.to_bits() as i32);
    let half = n >> 1;
    let power = |e: i32| f32::from_bits(((e + 127) << 23) as u32);
    let scaled = y * power(half) * power(n - half);
    let low = if x < LEAST_EXP { 0.0 } else { scaled };
    let high = if x > 88.722_83 { f32::INFINITY } else { low };
    if x.is_nan() { x } else { high }
}

/// [`exp`] of what is not above zero, in fewer steps: one power of two is enough, and it is exact.
#[inline(always)]
pub fn exp_below(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    let clamped = if x > LEAST_EXP { x } else { LEAST_EXP };
    let shifted = clamped * LOG2_E + EXP_ROUND;
    let n = shifted - EXP_ROUND;
    let y = exp_rest(clamped - n * LN2_HIGH - n * LN2_LOW);
    let n = shifted.to_bits().wrapping_sub(EXP_ROUND.to_bits());
    let power = f32::from_bits(n.wrapping_add(127) << 23);
    let scaled = if x < LEAST_EXP { 0.0 } else { y * power };
    if x.is_nan() { x } else { scaled }
}

/// The sum of the lanes: halves are added until one is left.
#[inline(always)]
pub fn sum_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// The sum of `f(x)` over a run, in [`LANES`] lanes.
#[inline(always)]
pub fn sum_by(run: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let mut chunks = run.chunks_exact(LANES);
    for chunk in &mut chunks {
        for i in 0..LANES {
            lanes[i] += f(chunk[i]);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane += f(x);
    }
    sum_lanes(lanes)
}

/// The largest element; negative infinity for none. NaN is passed over.
#[inline(always)]
pub fn max(run: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut chunks = run.chunks_exact(LANES);
    for chunk in &mut chunks {
        for i in 0..LANES {
            lanes[i] = if chunk[i] > lanes[i] { chunk[i] } else { lanes[i] };
        }
    }
    let best = |a: f32, &b: &f32| if b > a { b } else { a };
    chunks.remainder().iter().fold(lanes.iter().fold(f32::NEG_INFINITY, best), best)
}

/// `x * sigmoid(x)`.
#[inline(always)]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// One over the root of the mean square of a run.
#[inline(always)]
pub fn inverse_rms(run: &[f32], eps: f32) -> f32 {
    let mean = sum_by(run, |x| x * x) / run.len() as f32;
    1.0 / (mean + eps).sqrt()
}

/// Rotates one head in place: `head[i]` with `head[i + rotary / 2]`.
#[inline(always)]
pub fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let half = cos.len();
    let (low, rest) = head.split_at_mut(half);
    for (((a, b), &c), &s) in low.iter_mut().zip(&mut rest[..half]).zip(cos).zip(sin) {
        let (x, y) = (*a, *b);
        *a = x * c - y * s;
        *b = y * c + x * s;
    }
}

/// What [`quantize`] with `scale` left of a run, as codes again with a scale of their own; 0, and
/// the codes are not set, unless most of the run is left.
///
/// One element that is far above the others sets the scale, and the others round to next to
/// nothing. That is so where more than half of the elements have a code of at most 2.
#[inline(always)]
pub fn quantize_rest(run: &[f32], codes: &[i8], scale: f32, rest: &mut [i8]) -> f32 {
    let lost = |(&x, &code): (&f32, &i8)| u32::from(x != 0.0 && code.unsigned_abs() <= 2);
    let lost: u32 = run.iter().zip(codes).map(lost).sum();
    if scale.is_nan() || scale <= 0.0 || 2 * lost as usize <= run.len() {
        return 0.0;
    }
    // Half a step is 126 finer ones.
    const FINER: f32 = 252.0;
    let inverse = FINER / scale;
    for ((to, x), &code) in rest.iter_mut().zip(run).zip(codes) {
        let left = f32::from(-i16::from(code)).mul_add(scale, *x);
        *to = (left * inverse + EXP_ROUND).to_bits() as i8;
    }
    scale / FINER
}

/// Columns whose activations share a scale, beside weights of fewer bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns {
    /// The columns.
    pub columns: Range<usize>,
    /// The group of the weight's scales that they belong to.
    pub group: usize,
}

/// How the `width` inputs of a linear over a weight on a grid are cut, of which `span` share the numbers that
/// a sum is multiplied by ([`crate::shared`]): every such group, and every [`ROUNDED_COLUMNS`] of it.
///
/// Each block of a row is rounded by [`quantize`]. An output is the sum over the blocks, in order
/// and from zero, of `fma(sum, activations' scale * weight's scale, total)`, where `sum` is the exact
/// integer sum of (level - zero) times the activation's code; where scales are integers times an outer number,
/// the sum of each unit is multiplied by its integer, and the outer number is the weight's scale. On grids
/// with minima follows `fma(-sum of the activations' codes, activations' scale * weight's minimum, total)`,
/// likewise with the integers of units. Where [`quantize_rest`] gives a block a second run of codes, it is
/// added likewise right after the first. Then the bias is added.
pub fn blocks(width: usize, span: usize) -> Vec<Columns> {
    let mut all = Vec::new();
    for (group, begin) in (0..width).step_by(span.max(1)).enumerate() {
        let end = width.min(begin.saturating_add(span));
        for start in (begin..end).step_by(ROUNDED_COLUMNS) {
            all.push(Columns { columns: start..end.min(start + ROUNDED_COLUMNS), group });
        }
    }
    all
}

/// Rounds a run to int8: writes `codes`, and returns the scale that brings them back.
///
/// The largest magnitude becomes 127; ties go to even. A run without anything above 1e-30 is all
/// zero with scale 0, one with an element that is not finite all zero with scale NaN, so that what
/// is computed from it is NaN.
#[inline(always)]
pub fn quantize(run: &[f32], codes: &mut [i8]) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    let mut lanes = [0.0f32; LANES];
    let mut bad = [false; LANES];
    let mut see = |chunk: &[f32]| {
        for ((top, bad), x) in lanes.iter_mut().zip(&mut bad).zip(chunk) {
            let x = x.abs();
            *bad |= x.is_nan() | (x == f32::INFINITY);
            *top = if x > *top { x } else { *top };
        }
    };
    let mut chunks = run.chunks_exact(LANES);
    (&mut chunks).for_each(&mut see);
    see(chunks.remainder());
    let top = lanes.iter().fold(0.0, |a: f32, &b| if b > a { b } else { a });
    if bad.contains(&true) || top <= 1e-30 {
        codes.fill(0);
        return if bad.contains(&true) { f32::NAN } else { 0.0 };
    }
    let inverse = 127.0 / top;
    for (code, x) in codes.iter_mut().zip(run) {
        // Adding 1.5 * 2^23 rounds to the nearest integer, which is then in the lowest bits.
        *code = (x * inverse + ROUND).to_bits() as i8;
    }
    top / 127.0
}

/// Turns a row of scores of experts into weights: of the `top` largest the soft-max, 0 elsewhere. Of
/// equal scores the first counts; a score that is no number is below all others. Exponentials are
/// added from the largest score on, over the chosen scores or over all.
pub fn route(row: &mut [f32], args: &Route) {
    let mut order: Vec<usize> = (0..row.len()).collect();
    // The sort is stable, so equal scores keep their order.
    order.sort_by(|&a, &b| {
        let numbers = |x: f32| if x.is_nan() { f32::NEG_INFINITY } else { x };
        numbers(row[b]).partial_cmp(&numbers(row[a])).unwrap_or(std::cmp::Ordering::Equal)
    });
    let largest = order.first().map_or(0.0, |&first| row[first]);
    order.iter().for_each(|&i| row[i] = exp(row[i] - largest));
    let top = args.top.min(order.len());
    let counted = if args.normalized { &order[..top] } else { &order[..] };
    let total = counted.iter().fold(0.0, |sum, &i| sum + row[i]);
    order[..top].iter().for_each(|&i| row[i] /= total);
    order[top..].iter().for_each(|&i| row[i] = 0.0);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `torch.topk(torch.softmax(scores, -1), 2)` of torch 2.15.0, as they are and divided by their sum.
    #[test]
    fn routes_are_torch_s() {
        let scores = [0.3, -1.2, 2.5, 0.31, 2.4, -7.0];
        for (normalized, [first, second]) in
            [(true, [0.524_979_2, 0.475_020_8]), (false, [0.464_607_24, 0.420_394_03_f32])]
        {
            let mut row = scores;
            route(&mut row, &Route { top: 2, normalized });
            assert!((row[2] - first).abs() < 1e-7 && (row[4] - second).abs() < 1e-7, "{row:?}");
            assert_eq!([row[0], row[1], row[3], row[5]], [0.0; 4]);
        }
        // Of equal scores the first, and what is no number last.
        let mut row = [f32::NAN, 1.0, -0.0, 1.0, 1.0];
        route(&mut row, &Route { top: 2, normalized: true });
        assert_eq!(row, [0.0, 0.5, 0.0, 0.5, 0.0]);
    }

    #[test]
    fn pairs_are_rounded_to_the_nearest_and_small_ones_to_zero() {
        for bits in (0..u32::MAX).step_by(997) {
            let (x, got) = (f32::from_bits(bits), round_bf16(f32::from_bits(bits)));
            match x.abs() {
                _ if x.is_nan() => assert!(got.is_nan()),
                small if small < LEAST_BF16 => assert_eq!(got.to_bits(), 0),
                _ => assert_eq!(got.to_bits(), half::bf16::from_f32(x).to_f32().to_bits()),
            }
        }
        let order = |range: Range<usize>| -> Vec<usize> {
            range.clone().map(|step| paired(step, &range)).collect()
        };
        assert_eq!(order(0..5), [1, 0, 3, 2, 4]);
        assert_eq!(order(3..8), [3, 5, 4, 7, 6]);
        assert_eq!(order(2..3), [2]);
    }

    #[test]
    fn the_exponential_below_zero_is_the_same() {
        for bits in (0x8000_0000..u32::MAX).step_by(499).chain([0, 0x7fc0_0000]) {
            let x = f32::from_bits(bits);
            assert_eq!(exp_below(x).to_bits(), exp(x).to_bits(), "{x}");
        }
    }

    #[test]
    fn the_exponential_is_close_everywhere() {
        let mut worst = 0.0f64;
        for bits in (0..u32::MAX).step_by(997) {
            let x = f32::from_bits(bits);
            let (got, want) = (exp(x), f64::from(x).exp());
            if x.is_nan() {
                assert!(got.is_nan());
            } else if x < -87.336_54 {
                assert_eq!(got, 0.0);
            } else if x > 88.722_83 {
                assert_eq!(got, f32::INFINITY);
            } else {
                let ulp = f64::from(f32::EPSILON) * want.max(f64::from(f32::MIN_POSITIVE));
                worst = worst.max((f64::from(got) - want).abs() / ulp);
            }
        }
        assert!(worst < 2.0, "{worst} units in the last place");
    }

    #[test]
    fn rounding_to_int8_is_to_the_nearest_and_says_what_has_no_number() {
        let run: Vec<f32> = (-200..=200).map(|i| i as f32 * 0.37).collect();
        let mut codes = vec![0; run.len()];
        let scale = quantize(&run, &mut codes);
        assert_eq!(scale, 74.0 / 127.0);
        for (&code, &x) in codes.iter().zip(&run) {
            let nearest = (f64::from(x) * 127.0 / 74.0).round();
            assert!((f64::from(code) - nearest).abs() <= 1.0 && i32::from(code).abs() <= 127);
            assert!((f32::from(code) * scale - x).abs() <= scale * 0.5001);
        }
        assert_eq!(quantize(&[0.0, 1e-35], &mut codes[..2]), 0.0);
        assert_eq!(quantize(&[5.0], &mut codes[..1]) * 127.0, 5.0);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut run = vec![1.0; 37];
            run[36] = bad;
            assert!(quantize(&run, &mut codes[..37]).is_nan());
            assert!(codes[..37].iter().all(|&code| code == 0));
        }
    }

    #[test]
    fn what_an_outlier_hides_is_kept_by_a_second_run_of_codes() {
        let mut run: Vec<f32> = (0..128).map(|i| (i as f32 * 0.7).sin()).collect();
        let (mut codes, mut rest) = (vec![0; 128], vec![0; 128]);
        let scale = quantize(&run, &mut codes);
        assert_eq!(quantize_rest(&run, &codes, scale, &mut rest), 0.0, "nothing is hidden");
        for top in [100.0, -3000.0, 1e30] {
            run[77] = top;
            let scale = quantize(&run, &mut codes);
            let finer = quantize_rest(&run, &codes, scale, &mut rest);
            assert!(finer > 0.0 && finer < scale / 200.0);
            for ((x, &code), &rest) in run.iter().zip(&codes).zip(&rest) {
                let value = f64::from(code) * f64::from(scale) + f64::from(rest) * f64::from(finer);
                let error = (value - f64::from(*x)).abs();
                assert!(
                    error <= f64::from(finer) * 0.51 + f64::from(x.abs()) * 1e-6,
                    "{x} {value}"
                );
            }
        }
        assert_eq!(quantize_rest(&[0.0; 9], &[0; 9], 0.0, &mut rest), 0.0);
        assert_eq!(quantize_rest(&[f32::NAN; 9], &[0; 9], f32::NAN, &mut rest), 0.0);
    }

    #[test]
    fn sums_and_maxima_take_every_element() {
        for n in 0..70 {
            let run: Vec<f32> = (1..=n).map(|i| i as f32).collect();
            assert_eq!(sum_by(&run, |x| x), (n * (n + 1) / 2) as f32);
            assert_eq!(max(&run), if n == 0 { f32::NEG_INFINITY } else { n as f32 });
        }
    }
}
