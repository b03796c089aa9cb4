//! Calibration samples: windows of the joined documents, drawn by a seed.
//!
//! The draw depends on the ids, the numbers asked for and the seed alone: the same on every
//! machine and in every version. It uses SplitMix64, whose state is the seed itself; a number
//! below n is the high word of a product (Lemire 2019, without its rejection step: the bias is
//! below n / 2^64); and the first places of a Fisher-Yates shuffle, sorted, are the samples.

use crate::CalibrationError;
use sha2::{Digest, Sha256};

/// What to draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    /// How many samples.
    pub samples: usize,
    /// Tokens of each.
    pub seq_len: usize,
    /// Decides which.
    pub seed: u64,
}

/// What was drawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drawn {
    /// The samples, in the order of the text; fewer than asked for if the text is short.
    pub samples: Vec<Vec<u32>>,
    /// Tokens that the text had.
    pub tokens_available: usize,
    /// How many samples were asked for.
    pub asked: usize,
}

/// Joins the documents, cuts them into windows that do not overlap, and draws some of them without
/// replacement. A text shorter than a window is one sample.
///
/// # Errors
/// If there are fewer than 2 tokens, or none are asked for.
pub fn draw(documents: &[Vec<u32>], draw: &Draw) -> Result<Drawn, CalibrationError> {
    let Draw { samples, seq_len, .. } = *draw;
    if samples == 0 || seq_len < 2 {
        return Err(CalibrationError::Draw { samples, seq_len });
    }
    let stream: Vec<u32> = documents.concat();
    let (tokens_available, asked) = (stream.len(), samples);
    if tokens_available < 2 {
        return Err(CalibrationError::TooFew { tokens: tokens_available });
    }
    let windows: Vec<&[u32]> = stream.chunks_exact(seq_len).collect();
    if windows.is_empty() {
        return Ok(Drawn { samples: vec![stream], tokens_available, asked });
    }
    // Fisher and Yates: the first places of a shuffle are the draw.
    let mut places: Vec<usize> = (0..windows.len()).collect();
    let mut random = SplitMix(draw.seed);
    let count = samples.min(places.len());
    for i in 0..count {
        let rest = (places.len() - i) as u64;
        places.swap(i, i + random.below(rest) as usize);
    }
    places.truncate(count);
    places.sort_unstable();
    let samples = places.into_iter().map(|i| windows[i].to_vec()).collect();
    Ok(Drawn { samples, tokens_available, asked })
}

/// Takes the last `tokens` tokens of the joined documents away, or half of them if there are not
/// twice as many: what is left, and what was taken.
pub fn hold_out(mut documents: Vec<Vec<u32>>, tokens: usize) -> (Vec<Vec<u32>>, Vec<u32>) {
    let all: usize = documents.iter().map(Vec::len).sum();
    let mut wanted = tokens.min(all / 2);
    let mut held: Vec<Vec<u32>> = Vec::new();
    while wanted > 0
        && let Some(mut last) = documents.pop()
    {
        let part = last.split_off(last.len() - wanted.min(last.len()));
        wanted -= part.len();
        held.push(part);
        if !last.is_empty() {
            documents.push(last);
        }
    }
    held.reverse();
    (documents, held.concat())
}

/// SHA-256 of the samples' ids: each sample's length and its ids, little-endian.
pub fn hash(samples: &[Vec<u32>]) -> String {
    let mut hash = Sha256::new();
    for sample in samples {
        hash.update((sample.len() as u64).to_le_bytes());
        sample.iter().for_each(|id| hash.update(id.to_le_bytes()));
    }
    format!("{:x}", hash.finalize())
}

/// SplitMix64 (Steele, Lea and Flood 2014).
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, each as likely but for a share of n / 2^64.
    fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(n: u32) -> Vec<Vec<u32>> {
        vec![(0..n / 3).collect(), (n / 3..n).collect()]
    }

    #[test]
    fn samples_are_distinct_windows_drawn_by_the_seed() {
        let of = |seed| draw(&text(1003), &Draw { samples: 7, seq_len: 10, seed }).unwrap();
        let drawn = of(3);
        assert_eq!((drawn.samples.len(), drawn.tokens_available, drawn.asked), (7, 1003, 7));
        for sample in &drawn.samples {
            assert_eq!(sample.len(), 10);
            assert!(sample[0] % 10 == 0 && sample.windows(2).all(|p| p[1] == p[0] + 1));
        }
        assert!(drawn.samples.windows(2).all(|p| p[0][0] < p[1][0]));
        assert_eq!(drawn, of(3));
        assert_ne!(drawn, of(4));
    }

    #[test]
    fn every_window_is_as_likely() {
        let mut counts = [0; 20];
        for seed in 0..2000 {
            for sample in draw(&text(40), &Draw { samples: 5, seq_len: 2, seed }).unwrap().samples {
                counts[sample[0] as usize / 2] += 1;
            }
        }
        // Mean 500, standard deviation about 20.
        assert!(counts.iter().all(|c| (400..600).contains(c)), "{counts:?}");
    }

    #[test]
    fn a_short_text_gives_what_it_has() {
        let of = |n, seq_len| draw(&text(n), &Draw { samples: 9, seq_len, seed: 0 });
        assert_eq!(of(35, 10).unwrap().samples.len(), 3);
        assert_eq!(of(5, 10).unwrap().samples, [(0..5).collect::<Vec<u32>>()]);
        for n in [0, 1] {
            let said = of(n, 10).unwrap_err().to_string();
            assert!(said.contains(&format!("{n} tokens")), "{said}");
        }
    }

    #[test]
    fn a_draw_of_nothing_is_refused() {
        for (samples, seq_len) in [(0, 10), (3, 0), (3, 1)] {
            let said = draw(&text(90), &Draw { samples, seq_len, seed: 0 }).unwrap_err();
            assert!(matches!(said, CalibrationError::Draw { .. }), "{said}");
        }
        let all = Draw { samples: usize::MAX, seq_len: usize::MAX, seed: u64::MAX };
        assert_eq!(draw(&text(9), &all).unwrap().samples.concat().len(), 9);
    }

    /// The generator's published outputs, and a draw made with it: neither may ever change.
    #[test]
    fn the_draw_is_pinned() {
        let mut random = SplitMix(1_234_567);
        let first =
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!(first, [random.next(), random.next(), random.next()]);
        let drawn = draw(&text(1000), &Draw { samples: 6, seq_len: 10, seed: 42 }).unwrap();
        let places: Vec<u32> = drawn.samples.iter().map(|s| s[0] / 10).collect();
        assert_eq!(places, [7, 16, 29, 36, 74, 87]);
    }

    #[test]
    fn what_is_held_out_is_in_no_document() {
        let (rest, held) = hold_out(text(90), 65);
        assert_eq!((rest.concat().len(), held.len()), (45, 45));
        let (rest, held) = hold_out(text(900), 700);
        assert_eq!([rest.concat(), held].concat(), (0..900).collect::<Vec<u32>>());
        assert_eq!(hold_out(vec![], 4), (vec![], vec![]));
    }

    #[test]
    fn the_hash_is_of_ids_and_lengths() {
        assert_ne!(hash(&[vec![1, 2], vec![3]]), hash(&[vec![1], vec![2, 3]]));
        assert_eq!(hash(&[]), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
