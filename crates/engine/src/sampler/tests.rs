//! The sampler against plain versions in `f64`, and its draws against the distribution.

use super::*;
use crate::noise::{Noise, gumbel};

fn logits(n: usize, seed: u64) -> Vec<f32> {
    let noise = Noise::new(seed, 0);
    (0..n as u32).map(|i| noise.bits(i) as f32 / 4.0e8 - 6.0).collect()
}

fn token(logits: &[f32], history: &[u32], prompt: usize, sampling: &Sampling) -> u32 {
    let mut copy = logits.to_vec();
    let mut scratch = Scratch::default();
    sample(&mut copy, History::new(history, prompt), sampling, None, &mut scratch).unwrap().token
}

/// Filters as their definitions say, over a fully sorted vocabulary, then Gumbel-max in `f32`.
fn plain(logits: &[f32], position: usize, s: &Sampling) -> u32 {
    let mut sorted: Vec<(f32, u32)> = logits.iter().copied().zip(0..).collect();
    sorted.sort_by(order);
    let top = sorted[0].0;
    if s.temperature == 0.0 {
        return sorted[0].1;
    }
    if s.top_k > 0 {
        sorted.truncate(s.top_k);
    }
    let p = |x: f32| (f64::from(x - top) / f64::from(s.temperature)).exp();
    let total: f64 = sorted.iter().map(|(x, _)| p(*x)).sum();
    let mut mass = 0.0;
    let mut left = Vec::new();
    for &(x, id) in &sorted {
        if mass < f64::from(s.top_p) * total && p(x) >= f64::from(s.min_p) {
            left.push((x, id));
        }
        mass += p(x);
    }
    let noise = Noise::new(s.seed, position as u64);
    let score = |&(x, id): &(f32, u32)| (x - top) / s.temperature + gumbel(noise.bits(id));
    left.iter().max_by(|a, b| score(a).total_cmp(&score(b))).unwrap().1
}

#[test]
fn every_filter_leaves_what_its_definition_says() {
    for seed in 0..400 {
        let logits = logits(1 + (seed as usize * 37) % 700, seed);
        for (top_k, top_p, min_p) in [
            (0, 1.0, 0.0),
            (5, 1.0, 0.0),
            (0, 0.5, 0.0),
            (40, 0.9, 0.02),
            (0, 1.0, 0.1),
            (0, 0.99, 0.0),
        ] {
            for temperature in [0.0, 0.2, 1.0, 3.0] {
                let s = Sampling { temperature, top_k, top_p, min_p, seed, ..Sampling::default() };
                let history = vec![0; seed as usize % 9];
                assert_eq!(token(&logits, &history, 0, &s), plain(&logits, history.len(), &s));
            }
        }
    }
}

#[test]
fn draws_have_the_soft_max_s_frequencies() {
    let logits = [0.0, 1.0, 2.0, -1.0, 0.5];
    let total: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
    let (mut counts, n) = ([0u32; 5], 60_000);
    for position in 0..n {
        let s = Sampling { temperature: 1.0, seed: position, ..Sampling::default() };
        counts[token(&logits, &[1, 2, 3], 0, &s) as usize] += 1;
    }
    for (x, count) in logits.iter().zip(counts) {
        let expected = f64::from(*x).exp() / total;
        assert!((f64::from(count) / n as f64 - expected).abs() < 0.008, "{counts:?}");
    }
}

#[test]
fn penalties_and_biases_change_the_choice_and_not_the_log_probability() {
    let logits = [2.0, 1.9, -1.0, 0.0];
    let with = |s: Sampling| token(&logits, &[0, 0, 2], 1, &s);
    let greedy = Sampling::default();
    assert_eq!(with(greedy.clone()), 0);
    assert_eq!(with(Sampling { repetition_penalty: 1.2, ..greedy.clone() }), 1);
    assert_eq!(with(Sampling { presence_penalty: 0.2, ..greedy.clone() }), 1);
    assert_eq!(with(Sampling { frequency_penalty: 0.2, ..greedy.clone() }), 1);
    assert_eq!(with(Sampling { logit_bias: vec![(3, 2.1)], ..greedy.clone() }), 3);
    let banned = Sampling { logit_bias: vec![(0, f32::NEG_INFINITY)], ..greedy };
    let mut copy = logits;
    let drawn = sample(&mut copy, History::new(&[0], 1), &banned, Some(2), &mut Scratch::default())
        .unwrap();
    let log_sum = logits.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
    assert_eq!(drawn.token, 1);
    let scored = drawn.scored.unwrap();
    assert!((f64::from(scored.logprob) - (1.9 - log_sum)).abs() < 1e-5);
    assert_eq!(scored.top.iter().map(|t| t.0).collect::<Vec<_>>(), [0, 1]);
    assert!((f64::from(scored.top[0].1) - (2.0 - log_sum)).abs() < 1e-5);
    assert_eq!(score(&logits, 1, 2, &mut Scratch::default()).unwrap(), scored);
}

#[test]
fn what_is_no_number_is_an_error_and_not_a_token() {
    let error = |logits: &[f32]| {
        let s = Sampling { temperature: 1.0, ..Sampling::default() };
        sample(&mut logits.to_vec(), History::default(), &s, None, &mut Scratch::default())
            .unwrap_err()
    };
    assert_eq!(error(&[1.0, f32::NAN]), SampleError::NotNumbers);
    assert_eq!(error(&[f32::INFINITY, 1.0]), SampleError::NotNumbers);
    assert_eq!(error(&[f32::NEG_INFINITY; 3]), SampleError::NotNumbers);
    assert_eq!(error(&[]), SampleError::NotNumbers);
    let mut scratch = Scratch::default();
    assert_eq!(score(&[1.0], 1, 0, &mut scratch), Err(SampleError::Outside));
    assert_eq!(score(&[f32::NEG_INFINITY], 0, 0, &mut scratch), Err(SampleError::NotNumbers));
}

#[test]
fn the_exponential_is_close() {
    for i in 0..100_000 {
        let x = -(i as f32) * 1e-3;
        let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
        assert!((got - want).abs() <= want * 2.5e-7 || x <= -87.0 && got == 0.0, "{x}");
    }
    assert_eq!(exp(f32::NEG_INFINITY), 0.0);
}
