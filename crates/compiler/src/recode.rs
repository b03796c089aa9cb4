//! The same values on another grid: what one format's codes become in another, exactly or not at all.

use checkpoint::{FORMATS, Format};
use ir::{BlockKind, Grid, Params, Quantized, Span};
use tensor::DType;

/// Elements that share a scale in the simple blocks of GGUF.
const BLOCK: usize = 32;

/// The grid on which `format` may hold what is stored on `stored`, in this shape. Whether it holds the
/// very scales, [`recoded`] tells.
///
/// # Errors
/// If there is none: who can hold it.
pub(crate) fn grid(stored: Grid, format: &Format, shape: [usize; 2]) -> Result<Grid, String> {
    let in_format = |format: &Format| {
        let all = candidates(stored).into_iter().filter(|grid| fits(stored, *grid, shape[1]));
        all.into_iter().find(|grid| format.codec(*grid, shape).is_ok())
    };
    in_format(format).ok_or_else(|| {
        let others = FORMATS.iter().filter(|format| in_format(format).is_some());
        let others: Vec<&str> = others.map(|format| format.name).collect();
        let holds = match &others[..] {
            [] => String::new(),
            all => format!("{} can; ", all.join(", ")),
        };
        format!(
            "{} cannot hold {stored} exactly: {holds}safetensors holds the values as they are, and \
             --requantize rounds them once more",
            format.name
        )
    })
}

/// The grids that may have the values of `stored`, the nearest to it first.
fn candidates(stored: Grid) -> Vec<Grid> {
    let Grid::Int { bits, symmetric, span, scale } = stored else {
        let bits = match stored {
            Grid::Block(BlockKind::Q4_1) => 4,
            Grid::Block(BlockKind::Q5_1) => 5,
            _ => return vec![stored],
        };
        let span = Span::Group(BLOCK);
        return vec![stored, Grid::Int { bits, symmetric: false, span, scale: DType::F16 }];
    };
    let mut all = vec![stored];
    let others = [DType::F16, DType::BF16, DType::F32].into_iter().filter(|dtype| *dtype != scale);
    all.extend(others.map(|scale| Grid::Int { bits, symmetric, span, scale }));
    if matches!(span, Span::Scattered(_)) {
        return all;
    }
    let (span, scale) = (Span::Group(BLOCK), DType::F16);
    if symmetric {
        let wide = [4, 5, 8].into_iter().find(|wide| *wide >= bits);
        all.extend(wide.map(|bits| Grid::Int { bits, symmetric, span, scale }));
    } else {
        let wide = [(4, BlockKind::Q4_1), (5, BlockKind::Q5_1)];
        let wide = wide.into_iter().find(|(wide, _)| *wide >= bits);
        all.extend(wide.map(|(_, kind)| Grid::Block(kind)));
    }
    all
}

/// Whether each group of `grid` lies within one of `stored`, in rows of `width`.
fn fits(stored: Grid, grid: Grid, width: usize) -> bool {
    if let (Span::Scattered(_), _) | (_, Span::Scattered(_)) = (stored.span(), grid.span()) {
        return stored.span() == grid.span();
    }
    let (wide, narrow) = (stored.unit(width), grid.unit(width));
    wide.is_multiple_of(narrow) && grid.block().is_none_or(|b| width.is_multiple_of(b.get()))
}

/// The values of `codes` on `grid`, bit for bit.
///
/// # Errors
/// What of them it cannot hold.
pub(crate) fn recoded(codes: &Quantized, grid: Grid) -> Result<Quantized, String> {
    if codes.grid == grid {
        return Ok(codes.clone());
    }
    let made = match (&codes.params, grid) {
        (Params::Flat { scales, zeros }, Grid::Int { .. }) => integers(codes, grid, scales, zeros)?,
        (Params::Scattered { scales, zeros, groups }, Grid::Int { .. }) => {
            let (scales, zeros) = (held(grid, scales)?, zeros.clone());
            let params = Params::Scattered { scales, zeros, groups: groups.clone() };
            Quantized { grid, shape: codes.shape, codes: codes.codes.clone(), params }
        }
        (Params::Flat { scales, zeros }, Grid::Block(_)) => block(codes, grid, scales, zeros)?,
        (Params::Nested { .. }, Grid::Int { .. }) => zeroed(codes, grid)?,
        _ => return Err(format!("{} is not {grid}", codes.grid)),
    };
    let width = codes.shape[1];
    let mut rows = [vec![0f32; width], vec![0f32; width]];
    for row in 0..codes.shape[0] {
        codes.dequantize_row(row, &mut rows[0]);
        made.dequantize_row(row, &mut rows[1]);
        // A zero may have a sign in one of them.
        if let Some(column) = (0..width).find(|&i| rows[0][i] != rows[1][i]) {
            let (from, to) = (rows[0][column], rows[1][column]);
            return Err(format!("element [{row}, {column}] would be {to}, not {from}"));
        }
    }
    Ok(made)
}

/// What each of the narrower units takes over of the unit that it lies in.
fn spread<T: Copy>(all: &[T], codes: &Quantized, grid: Grid) -> Vec<T> {
    let width = codes.shape[1];
    let (from, to) = (codes.grid.units(width), grid.units(width));
    let (wide, narrow) = (codes.grid.unit(width), grid.unit(width));
    let of_row = |row: &[T]| (0..to).map(|unit| row[unit * narrow / wide]).collect::<Vec<_>>();
    all.chunks(from.max(1)).flat_map(of_row).collect()
}

/// The scales, if the grid can store them.
fn held(grid: Grid, scales: &[f32]) -> Result<Vec<f32>, String> {
    let held = |s: &&f32| grid.stored_scale(**s).to_bits() == s.to_bits();
    match scales.iter().find(|scale| !held(scale)) {
        None => Ok(scales.to_vec()),
        Some(scale) => {
            Err(format!("the scale {scale} is no value of the dtype that {grid} stores scales in"))
        }
    }
}

fn integers(
    codes: &Quantized,
    grid: Grid,
    scales: &[f32],
    zeros: &[i8],
) -> Result<Quantized, String> {
    let scales = spread(&held(grid, scales)?, codes, grid);
    let params = Params::Flat { scales, zeros: spread(zeros, codes, grid) };
    Ok(Quantized { grid, shape: codes.shape, codes: codes.codes.clone(), params })
}

fn block(codes: &Quantized, grid: Grid, scales: &[f32], zeros: &[i8]) -> Result<Quantized, String> {
    let (low, _) = codes.grid.codes();
    let minimum = |(zero, scale): (&i8, &f32)| (i32::from(*zero) - low) as f32 * scale;
    let mins: Vec<f32> = zeros.iter().zip(scales).map(minimum).collect();
    let (scales, mins) = (held(grid, scales)?, held(grid, &mins)?);
    let params = Params::Nested {
        scales: Vec::new(),
        mins: Vec::new(),
        outer_scales: spread(&scales, codes, grid),
        outer_mins: spread(&mins, codes, grid),
    };
    let own = codes.codes.iter().map(|code| (i32::from(*code) - low) as i8).collect();
    Ok(Quantized { grid, shape: codes.shape, codes: own, params })
}

/// Minima that are whole multiples of their scales, as zero points.
fn zeroed(codes: &Quantized, grid: Grid) -> Result<Quantized, String> {
    let (low, high) = grid.codes();
    let (mut scales, mut zeros) = (Vec::new(), Vec::new());
    for row in 0..codes.shape[0] {
        for step in codes.steps(row) {
            let zero = step.min / step.scale;
            if zero.fract() != 0.0 || !(0.0..=(high - low) as f32).contains(&zero) {
                return Err(format!("the minimum {} is no whole multiple of its scale", step.min));
            }
            scales.push(step.scale);
            zeros.push((zero as i32 + low) as i8);
        }
    }
    let own = codes.codes.iter().map(|code| (i32::from(*code) + low) as i8).collect();
    Ok(Quantized { grid, shape: codes.shape, codes: own, params: Params::Flat { scales, zeros } })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn int(bits: u8, symmetric: bool, span: Span, scale: DType) -> Quantized {
        let grid = Grid::Int { bits, symmetric, span, scale };
        let (shape, (low, high)) = ([3, 128], grid.codes());
        let codes = (0..384).map(|i| (low + i % (high - low + 1)) as i8).collect();
        let units = 3 * grid.units(128);
        let scales = (0..units).map(|i| 0.25 + i as f32 / 64.0).collect();
        let zeros =
            if symmetric { vec![] } else { (0..units).map(|i| low as i8 + i as i8).collect() };
        Quantized { grid, shape, codes, params: Params::Flat { scales, zeros } }
    }

    fn format(name: &str) -> &'static Format {
        Format::named(name).unwrap()
    }

    #[test]
    fn codes_move_between_formats_with_every_value() {
        for (from, to, grid) in [
            (
                int(4, true, Span::Group(64), DType::BF16),
                "gguf",
                "int4 sym groups of 32, F16 scales",
            ),
            (int(8, true, Span::Channel, DType::F32), "gguf", "int8 sym groups of 32, F16 scales"),
            (int(3, true, Span::Channel, DType::F32), "gguf", "int4 sym groups of 32, F16 scales"),
            (int(4, false, Span::Group(32), DType::F32), "gguf", "Q4_1"),
            (
                int(4, true, Span::Group(32), DType::F16),
                "pack-quantized",
                "int4 sym groups of 32, F16 scales",
            ),
        ] {
            let found = super::grid(from.grid, format(to), from.shape).unwrap();
            assert_eq!(found.to_string(), grid);
            let made = recoded(&from, found).unwrap();
            assert!(made.is_whole());
            assert_eq!(made.dequantize(), from.dequantize());
        }
        // And back, where minima are whole multiples.
        let asym = int(4, false, Span::Group(32), DType::F16);
        let block = recoded(&asym, Grid::Block(BlockKind::Q4_1)).unwrap();
        let back = super::grid(block.grid, format("pack-quantized"), block.shape).unwrap();
        assert_eq!(recoded(&block, back).unwrap(), asym);
    }

    #[test]
    fn what_cannot_be_held_is_refused_with_who_can() {
        let q4_k = Grid::Block(BlockKind::Q4K);
        let why = super::grid(q4_k, format("pack-quantized"), [3, 256]).unwrap_err();
        assert!(why.contains("cannot hold Q4_K exactly: gguf can"), "{why}");
        let mut fine = int(4, true, Span::Channel, DType::F32);
        if let Params::Flat { scales, .. } = &mut fine.params {
            scales[1] = 0.1;
        }
        let grid = super::grid(fine.grid, format("gguf"), fine.shape).unwrap();
        assert!(recoded(&fine, grid).unwrap_err().contains("the scale 0.1"));
        let mut odd =
            recoded(&int(4, false, Span::Group(32), DType::F16), Grid::Block(BlockKind::Q4_1))
                .unwrap();
        if let Params::Nested { outer_mins, .. } = &mut odd.params {
            outer_mins[2] += 0.001;
        }
        let back = super::grid(odd.grid, format("pack-quantized"), odd.shape).unwrap();
        assert!(recoded(&odd, back).unwrap_err().contains("no whole multiple"));
    }
}
