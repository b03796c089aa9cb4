//! Which layers are whose, where a model has several devices.

use backend::Backend;
use std::ops::Range;

/// What of a device's free memory its layers may take: keys, values and steps need the rest.
const SHARE: f64 = 0.75;

/// The layers of each device, in order: `first` on the first one if that is said, and the rest evenly on
/// the others. Else as many as fit on each device that says what memory it has, in order, and the rest
/// evenly on those that do not; evenly on all if there are no others.
pub fn stages(
    layers: usize,
    layer_bytes: u64,
    devices: &[&dyn Backend],
    first: Option<usize>,
) -> Vec<Range<usize>> {
    let free: Vec<Option<u64>> = devices.iter().map(|device| device.free_memory()).collect();
    divide(layers, layer_bytes, &free, first)
}

/// The same by the memory that each device says is free.
fn divide(
    layers: usize,
    layer_bytes: u64,
    free: &[Option<u64>],
    first: Option<usize>,
) -> Vec<Range<usize>> {
    let open = free.iter().filter(|free| free.is_none()).count();
    let fits = |free: u64| (free as f64 * SHARE / layer_bytes.max(1) as f64) as usize;
    let mut left = layers;
    let mut counts: Vec<Option<usize>> = vec![None; free.len()];
    let mut give = |count: &mut Option<usize>, wanted: usize| {
        let given = wanted.min(left);
        (*count, left) = (Some(given), left - given);
    };
    match (first, counts.first_mut()) {
        (Some(first), Some(count)) if free.len() > 1 => give(count, first),
        _ if open > 0 => {
            for (count, free) in counts.iter_mut().zip(free) {
                if let Some(free) = free {
                    give(count, fits(*free));
                }
            }
        }
        _ => {}
    }
    let mut others = counts.iter().filter(|count| count.is_none()).count();
    if let (0, Some(Some(last))) = (others, counts.last_mut()) {
        *last += left;
    }
    let mut end = 0;
    let mut range = |count: Option<usize>| {
        let begin = end;
        end += count.unwrap_or_else(|| {
            let given = left.div_ceil(others.max(1));
            (left, others) = (left - given, others.saturating_sub(1));
            given
        });
        begin..end
    };
    counts.into_iter().map(&mut range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of seven layers of 10 bytes each device gets.
    fn counts(free: &[Option<u64>], first: Option<usize>) -> Vec<usize> {
        let ranges = divide(7, 10, free, first);
        let end = ranges.iter().fold(0, |end, r| if r.start == end { r.end } else { 99 });
        assert_eq!(end, 7, "{ranges:?}");
        ranges.into_iter().map(|range| range.len()).collect()
    }

    #[test]
    fn every_layer_is_somewhere() {
        let host = None;
        assert_eq!(counts(&[host], None), [7]);
        assert_eq!(counts(&[host], Some(3)), [7]);
        assert_eq!(counts(&[host; 3], None), [3, 2, 2]);
        assert_eq!(counts(&[host; 3], Some(1)), [1, 3, 3]);
        assert_eq!(counts(&[host; 2], Some(9)), [7, 0]);
    }

    #[test]
    fn a_device_takes_what_fits_and_the_host_the_rest() {
        let (small, large) = (Some(40), Some(1000));
        assert_eq!(counts(&[small, None], None), [3, 4]);
        assert_eq!(counts(&[large, None], None), [7, 0]);
        assert_eq!(counts(&[small, small, None], None), [3, 3, 1]);
        assert_eq!(counts(&[small, None], Some(5)), [5, 2]);
        // Without a host there is nowhere else: evenly.
        assert_eq!(counts(&[large, small], None), [4, 3]);
    }
}
