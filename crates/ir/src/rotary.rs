//! How rotary frequencies come about, as configurations say it.

/// What the frequencies of a model are made of. Its programs hold what comes of it; this is kept for those
/// who write a configuration again.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    /// The base of the powers (`rope_theta`).
    pub base: f64,
    /// How they are stretched to a longer context.
    pub scaling: Scaling,
}

/// How frequencies are stretched, by the names of transformers.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    /// Not at all.
    Default,
    /// Each is divided.
    Linear(Linear),
    /// The low ones are divided (Llama 3.1).
    Llama3(Llama3),
    /// They are blended along the dimensions (Peng et al. 2023).
    Yarn(Yarn),
}

/// Linear scaling.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// What frequencies are divided by.
    pub factor: f64,
    /// The context before, in tokens.
    pub original: usize,
}

/// The scaling of Llama 3.1.
#[derive(Clone, Debug, PartialEq)]
pub struct Llama3 {
    /// What low frequencies are divided by.
    pub factor: f64,
    /// The context before, in tokens.
    pub original: f64,
    /// Turns in that context below which a frequency is low (`low_freq_factor`).
    pub low: f64,
    /// Turns above which it is high (`high_freq_factor`).
    pub high: f64,
}

/// The scaling of yarn.
#[derive(Clone, Debug, PartialEq)]
pub struct Yarn {
    /// What the context is multiplied by.
    pub factor: f64,
    /// The context before, in tokens.
    pub original: f64,
    /// The factor of sine and cosine, if it is given.
    pub attention_factor: Option<f64>,
    /// What it is made of otherwise.
    pub mscale: Option<f64>,
    /// What it is made of otherwise.
    pub mscale_all_dim: Option<f64>,
    /// Turns above which a frequency stays.
    pub beta_fast: f64,
    /// Turns below which it is divided.
    pub beta_slow: f64,
    /// Whether the ends of the ramp are whole dimensions.
    pub truncate: bool,
}
