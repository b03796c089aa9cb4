//! Levels that are no integers in a row: a table of sixteen.

/// Sixteen levels, each an integer, by the codes that stand for them.
#[derive(Debug, PartialEq, Eq)]
pub struct Codebook {
    levels: [i8; 256],
    /// The code of the level that is nearest to each half of an integer, and to what follows up to the next: halfway
    /// between two levels lies at one.
    nearest: [i8; 2 * Codebook::HALVES],
}

/// Close together where weights are many (ggml's `kvalues_iq4nl`).
pub(crate) static NON_LINEAR: Codebook =
    Codebook::new([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]);

/// Twice the values of `E2M1` (ggml's `kvalues_fp4`).
pub(crate) static E2M1: Codebook =
    Codebook::new([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]);

impl Codebook {
    /// Halves of an integer in a half of the range.
    const HALVES: usize = 256;

    const fn new(first: [i8; 16]) -> Self {
        let mut levels = [0; 256];
        let mut code = 0;
        while code < 16 {
            levels[code] = first[code];
            code += 1;
        }
        let mut nearest = [0; 2 * Self::HALVES];
        let mut at = 0;
        while at < 2 * Self::HALVES {
            // In quarters: the middle of what lies between two halves.
            let (x, mut code, mut least) = (2 * (at as i32 - 256) + 1, 0, i32::MAX);
            while code < 16 {
                let distance = (4 * first[code] as i32 - x).abs();
                if distance < least {
                    (least, nearest[at]) = (distance, code as i8);
                }
                code += 1;
            }
            at += 1;
        }
        Self { levels, nearest }
    }

    /// The level of each code, by the code's byte; 0 of what is no code.
    pub fn levels(&self) -> &[i8; 256] {
        &self.levels
    }

    /// The code of the level nearest to `x`, the greater of two that are; of what is no number the lowest's.
    #[inline]
    pub fn code(&self, x: f32) -> i8 {
        // What is below the table becomes 0, as a number that is none does.
        let at = (2.0 * x + Self::HALVES as f32) as usize;
        self.nearest[at.min(2 * Self::HALVES - 1)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_the_nearest_levels() {
        for book in [&NON_LINEAR, &E2M1] {
            let level = |code: i8| f32::from(book.levels()[usize::from(code as u8)]);
            for eighths in -1100..1100i16 {
                let x = f32::from(eighths) / 8.0;
                let least = (0..16).map(|code| (level(code) - x).abs()).fold(f32::MAX, f32::min);
                assert_eq!((level(book.code(x)) - x).abs(), least, "{x}");
            }
            let all = (0..16).map(level);
            let (lowest, highest) = (all.clone().fold(0.0, f32::min), all.fold(0.0, f32::max));
            let far = [-1e30, f32::NEG_INFINITY, f32::NAN, 1e30, f32::INFINITY];
            assert_eq!(
                far.map(|x| level(book.code(x))),
                [lowest, lowest, lowest, highest, highest]
            );
        }
    }
}
