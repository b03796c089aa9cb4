//! From values to places, and the values that an axis names.

/// An axis: a stretch of values on a stretch of the drawing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Scale {
    log: bool,
    values: [f64; 2],
    places: [f64; 2],
}

impl Scale {
    /// Equal steps are equally long.
    pub(crate) fn linear(values: [f64; 2], places: [f64; 2]) -> Self {
        Self { log: false, values, places }
    }

    /// Equal factors are equally long; `values` are above 0.
    pub(crate) fn log(values: [f64; 2], places: [f64; 2]) -> Self {
        Self { log: true, values, places }
    }

    /// The values at its ends.
    pub(crate) fn values(&self) -> [f64; 2] {
        self.values
    }

    /// The places of its ends.
    pub(crate) fn places(&self) -> [f64; 2] {
        self.places
    }

    /// Where a value lies.
    pub(crate) fn at(&self, value: f64) -> f64 {
        let length = |x: f64| if self.log { x.ln() } else { x };
        let [from, to] = self.values.map(length);
        let share = (length(value) - from) / (to - from);
        self.places[0] + share * (self.places[1] - self.places[0])
    }
}

/// About five round values from 0 on, the last at or above `most`.
pub(crate) fn linear_ticks(most: f64) -> Vec<f64> {
    if !(most > 0.0 && most.is_finite()) {
        return vec![0.0, 1.0];
    }
    let power = 10f64.powf((most / 5.0).log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|round| round * power);
    let step = step.into_iter().find(|step| most / step <= 5.0).unwrap_or(10.0 * power);
    (0..=(most / step).ceil() as usize).map(|i| i as f64 * step).collect()
}

/// The powers of ten within `values`; with their twos and fives where there are few.
pub(crate) fn log_ticks([from, to]: [f64; 2]) -> Vec<f64> {
    let powers = from.log10().floor() as i32..=to.log10().ceil() as i32;
    let of = |steps: &[f64]| -> Vec<f64> {
        let all = powers.clone().flat_map(|p| steps.iter().map(move |s| s * 10f64.powi(p)));
        all.filter(|tick| (from..=to).contains(tick)).collect()
    };
    let tens = of(&[1.0]);
    if tens.len() < 3 { of(&[1.0, 2.0, 5.0]) } else { tens }
}

/// Three digits or so, with k, M, G for thousands.
pub(crate) fn short(value: f64) -> String {
    let units = [(1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")];
    let unit = units.into_iter().find(|(size, _)| value.abs() >= *size);
    let (size, name) = unit.unwrap_or((1.0, ""));
    let value = value / size;
    let digits = match value.abs() {
        0.0 => 0,
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        v => (2 - v.log10().floor() as i32).clamp(2, 9) as usize,
    };
    let text = format!("{value:.digits$}");
    let text = if digits > 0 { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_lie_where_they_belong() {
        let linear = Scale::linear([0.0, 10.0], [300.0, 100.0]);
        assert_eq!([0.0, 5.0, 10.0].map(|x| linear.at(x)), [300.0, 200.0, 100.0]);
        let log = Scale::log([1.0, 100.0], [0.0, 50.0]);
        assert_eq!(log.at(1.0), 0.0);
        assert!((log.at(10.0) - 25.0).abs() < 1e-9);
    }

    #[test]
    fn ticks_are_round_and_reach_the_top() {
        assert_eq!(linear_ticks(9.3), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(linear_ticks(0.011).len(), 6);
        assert_eq!(linear_ticks(f64::NAN), [0.0, 1.0]);
        for most in [1e-7, 0.3, 1.0, 4.999, 5.0, 123.0, 7e11] {
            let ticks = linear_ticks(most);
            assert!((3..=6).contains(&ticks.len()), "{ticks:?}");
            assert!(ticks.last().is_some_and(|last| *last >= most * (1.0 - 1e-12)));
        }
        assert_eq!(log_ticks([0.5, 2000.0]), [1.0, 10.0, 100.0, 1000.0]);
        assert_eq!(log_ticks([3.0, 30.0]), [5.0, 10.0, 20.0]);
    }

    #[test]
    fn numbers_are_short() {
        let all = [0.0, 0.0123456, 1.0, 12.345, 256.0, 1500.0, 2.5e6, 4e11];
        let said = all.map(short);
        assert_eq!(said, ["0", "0.0123", "1", "12.3", "256", "1.5k", "2.5M", "400G"]);
    }
}
