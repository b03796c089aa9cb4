//! What `/set` changes: how tokens are drawn, and what is shown.

use super::command::Wrong;
use crate::args::serve::{Sampling, Think};
use crate::words::near;
use runtime::Generation;
use std::str::FromStr;

/// What can be set.
pub(super) const KEYS: &[&str] = &[
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "seed",
    "max_tokens",
    "stop",
    "think",
    "stats",
];

/// What other chats call them.
const OTHER_KEYS: &[(&str, &str)] = &[
    ("temp", "temperature"),
    ("repeat_penalty", "repetition_penalty"),
    ("num_predict", "max_tokens"),
    ("n_predict", "max_tokens"),
    ("thinking", "think"),
    ("verbose", "stats"),
];

/// The settings of a conversation.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) sampling: Sampling,
    /// Whether the model is asked to think; `None` leaves it to the template.
    pub(super) asks: Option<bool>,
    /// Whether thoughts are left out of what is shown.
    pub(super) folds: bool,
    /// Whether each answer's speed is said.
    pub(super) stats: bool,
}

impl Settings {
    pub(super) fn new(sampling: &Sampling, think: &[Think], stats: bool) -> Self {
        let mut settings = Self { sampling: sampling.clone(), asks: None, folds: false, stats };
        think.iter().for_each(|how| settings.think(*how));
        settings
    }

    fn think(&mut self, how: Think) {
        match how {
            Think::Show => self.folds = false,
            Think::Fold => self.folds = true,
            Think::On => self.asks = Some(true),
            Think::Off => self.asks = Some(false),
        }
    }

    /// Changes a setting; `default` gives back what it was in `first`.
    pub(super) fn set(&mut self, key: &str, value: &str, first: &Self) -> Result<(), Wrong> {
        let key = key_of(key)?;
        let back = value.eq_ignore_ascii_case("default");
        let (now, then) = (&mut self.sampling, &first.sampling);
        match key {
            "temperature" => now.temperature = given(value, key, back, then.temperature)?,
            "top_p" => now.top_p = given(value, key, back, then.top_p)?,
            "top_k" => now.top_k = given(value, key, back, then.top_k)?,
            "min_p" => now.min_p = given(value, key, back, then.min_p)?,
            "repetition_penalty" => {
                now.repetition_penalty = given(value, key, back, then.repetition_penalty)?;
            }
            "seed" => now.seed = given(value, key, back, then.seed)?,
            "max_tokens" => {
                let most: Option<i64> = given(value, key, back, then.max_tokens)?;
                if most.is_some_and(|most| most < -1) {
                    return Err(no_value(key, value));
                }
                now.max_tokens = most;
            }
            "stop" if back => now.stop.clone_from(&then.stop),
            "stop" => now.stop = vec![value.to_string()],
            "think" if back => (self.asks, self.folds) = (first.asks, first.folds),
            "stats" if back => self.stats = first.stats,
            "stats" => match value {
                "on" => self.stats = true,
                "off" => self.stats = false,
                _ => return Err(no_value(key, value)),
            },
            _ => match value {
                "show" => self.think(Think::Show),
                "fold" => self.think(Think::Fold),
                "on" => self.think(Think::On),
                "off" => self.think(Think::Off),
                _ => return Err(no_value(key, value)),
            },
        }
        Ok(())
    }

    /// What a setting is, as `KEY VALUE`, where `generation` is what the settings come to.
    pub(super) fn shown(&self, key: &str, generation: &Generation) -> Result<String, Wrong> {
        let key = key_of(key)?;
        let now = &generation.sampling;
        let value = match key {
            "temperature" => now.temperature.to_string(),
            "top_p" => now.top_p.to_string(),
            "top_k" => now.top_k.to_string(),
            "min_p" => now.min_p.to_string(),
            "repetition_penalty" => now.repetition_penalty.to_string(),
            "seed" => now.seed.to_string(),
            "max_tokens" => match generation.most() {
                Some(most) => most.to_string(),
                None => "-1, what the context has left".to_string(),
            },
            "stop" if generation.stops.is_empty() => "none".to_string(),
            "stop" => format!("{:?}", generation.stops),
            "stats" => if self.stats { "on" } else { "off" }.to_string(),
            _ => {
                let asks = match self.asks {
                    None => "as the template has it",
                    Some(true) => "on",
                    Some(false) => "off",
                };
                format!("{asks}, {}", if self.folds { "fold" } else { "show" })
            }
        };
        Ok(format!("{key:18} {value}"))
    }
}

/// A setting's own name.
fn key_of(key: &str) -> Result<&'static str, Wrong> {
    let own = OTHER_KEYS.iter().find(|(other, _)| *other == key).map_or(key, |(_, own)| own);
    KEYS.iter().find(|known| **known == own).copied().ok_or_else(|| {
        let shown: String = key.chars().take(20).collect();
        let all = KEYS.join(", ");
        let hint = match near(key, KEYS.iter().copied(), 1).first() {
            Some(near) => format!("{near} is near; /set lists all"),
            None => format!("there are {all}"),
        };
        Wrong::new(format!("no setting {shown:?}"), hint)
    })
}

fn given<T: FromStr>(
    value: &str,
    key: &str,
    back: bool,
    then: Option<T>,
) -> Result<Option<T>, Wrong> {
    if back {
        return Ok(then);
    }
    value.parse().map(Some).map_err(|_| no_value(key, value))
}

fn no_value(key: &str, value: &str) -> Wrong {
    let shown: String = value.chars().take(40).collect();
    let takes = match key {
        "seed" | "top_k" => "a whole number of at least 0",
        "max_tokens" => "a count, or -1 for what the context has left",
        "think" => "show, fold, on or off",
        "stats" => "on or off",
        _ => "a number",
    };
    Wrong::new(
        format!("{shown:?} is no value for {key}"),
        format!("it takes {takes}; or default, for what it was"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        let sampling = Sampling { temperature: Some(0.5), ..Sampling::default() };
        Settings::new(&sampling, &[Think::Fold], false)
    }

    #[test]
    fn a_setting_changes_and_comes_back() {
        let first = settings();
        let mut now = first.clone();
        for (key, value) in [
            ("temp", "0.9"),
            ("top_k", "40"),
            ("seed", "18446744073709551615"),
            ("num_predict", "-1"),
            ("stop", "\n\n"),
            ("think", "off"),
            ("think", "show"),
            ("stats", "on"),
        ] {
            now.set(key, value, &first).unwrap();
        }
        assert_eq!(now.sampling.temperature, Some(0.9));
        assert_eq!((now.sampling.top_k, now.sampling.seed), (Some(40), Some(u64::MAX)));
        assert_eq!(
            (now.sampling.max_tokens, &now.sampling.stop[..]),
            (Some(-1), &["\n\n".into()][..])
        );
        assert_eq!((now.asks, now.folds, now.stats), (Some(false), false, true));
        for key in KEYS {
            now.set(key, "default", &first).unwrap();
        }
        assert_eq!(format!("{now:?}"), format!("{first:?}"));
    }

    #[test]
    fn what_is_no_setting_or_no_value_is_told() {
        let first = settings();
        let mut now = first.clone();
        let mut wrong = |key: &str, value: &str| now.set(key, value, &first).unwrap_err();
        assert!(wrong("temperatur", "1").hint.contains("temperature is near"));
        assert!(wrong("x", "1").hint.contains("there are temperature"));
        for (key, value) in [
            ("temperature", "hot"),
            ("top_k", "-1"),
            ("max_tokens", "-2"),
            ("seed", "1e3"),
            ("think", "maybe"),
            ("stats", "1"),
        ] {
            assert!(wrong(key, value).message.contains("is no value"), "{key}");
        }
        assert_eq!(format!("{now:?}"), format!("{first:?}"));
    }
}
