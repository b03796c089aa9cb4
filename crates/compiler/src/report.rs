//! What an artifact says of itself: the same bytes on every run of the same recipe.

use crate::CompileError;
use crate::hash::hex;
use crate::recipe::Recipe;
use crate::survey::Decisions;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The contents of `report.json`: what the recipe determines, and nothing of the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The tool that made the artifact.
    pub tool: String,
    /// Its version.
    pub version: String,
    /// The numerics class: which machines give these bytes.
    pub numerics: String,
    /// What was asked for.
    pub recipe: Recipe,
    /// Everything that decides the bytes, hashed.
    pub identity: String,
    /// The model's family.
    pub family: String,
    /// What surveys found, of which rules were made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decisions: Option<Decisions>,
    /// SHA-256 of each source tensor the model reads, as it was read.
    pub source: BTreeMap<String, String>,
    /// The calibration tokens.
    pub calibration: TokensReport,
    /// The held-out tokens, never used for statistics.
    pub held_out: TokensReport,
    /// Each weight that was rewritten, in order.
    pub weights: Vec<WeightReport>,
    /// The tensors that no block reads, copied as they are.
    #[serde(default)]
    pub carried: Vec<String>,
    /// Bytes of tensors, as they are stored.
    pub sizes: Sizes,
    /// Bytes of files: of the source those that are read or carried over, of the artifact all but
    /// this report. None in reports that do not say.
    #[serde(default)]
    pub folders: Option<Sizes>,
    /// What the result is worth on the held-out tokens; none if it was not asked for.
    pub quality: Option<Quality>,
    /// Every other file of the artifact; none where there are several outputs.
    pub files: BTreeMap<String, FileHash>,
    /// Where several outputs were written, what each says of itself, by the name of its folder. What
    /// this report says beside is of the first.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub outputs: BTreeMap<String, Report>,
    /// SHA-256 of this very file with nothing between these quotes; empty in reports of unfinished
    /// work and of earlier versions.
    #[serde(default)]
    pub seal: String,
}

/// Some token sequences.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokensReport {
    /// Where the text came from: `built-in`, or the name of a file.
    pub from: String,
    /// How many sequences.
    pub sequences: usize,
    /// Tokens in all of them.
    pub tokens: usize,
    /// SHA-256 of the ids.
    pub hash: String,
}

/// How a weight was rewritten.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WeightReport {
    /// The block.
    pub block: String,
    /// The tensor.
    pub tensor: String,
    /// The solver that chose the codes.
    pub method: String,
    /// The grid, for people.
    pub grid: String,
    /// Squared error of the weight over its square: the same measure for every solver.
    pub relative_error: f64,
    /// Squared error of the linear's output over its square, on the calibration tokens that it was
    /// fitted to; none where no input was observed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub output_error: Option<f64>,
    /// Rows of the weight.
    pub rows: usize,
    /// Why another solver than the one asked for was used.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub fallback: Option<String>,
    /// What else the solver says: of GPTQ `rows_rounded`, the rows for which nearest rounding did
    /// better and was kept, and `damping`, what was added to the Gram matrix's diagonal, as a share of
    /// its mean; of an expert `tokens`, how many it was given.
    #[serde(flatten)]
    pub notes: Map<String, Value>,
}

/// Bytes, before and after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    /// Of the source.
    pub source: u64,
    /// Of the artifact.
    pub artifact: u64,
}

/// What the original and the result say of the held-out tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// Tokens scored.
    pub scored: usize,
    /// Perplexity of the original.
    pub original_perplexity: f64,
    /// Perplexity of the result.
    pub perplexity: f64,
    /// The increase, as a share.
    pub perplexity_increase: f64,
    /// Mean KL divergence of the result from the original, in nats a token.
    pub kl_divergence: f64,
    /// The share of tokens at which both have the same first choice.
    pub top1_agreement: f64,
    /// Tokens of a window; 0 in reports that do not say.
    #[serde(default)]
    pub window: usize,
    /// Perplexity of the frequencies of the tokens that were scored: what a model without a context
    /// could reach. 0 in reports that do not say.
    #[serde(default)]
    pub unigram_perplexity: f64,
}

impl Quality {
    /// Why the other figures say nothing, if they do not: the original does not know this text.
    pub fn proves_nothing(&self) -> Option<String> {
        let (original, unigram) = (self.original_perplexity, self.unigram_perplexity);
        (unigram > 0.0 && original >= unigram).then(|| {
            format!(
                "the original's perplexity on the held-out text is {original:.2}, no better than \
                 that of its tokens' frequencies alone, {unigram:.2}: what is measured on it proves \
                 nothing of the result; the model is broken, or the text is foreign to it"
            )
        })
    }
}

/// A file of the artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileHash {
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of its contents.
    pub sha256: String,
}

impl Report {
    /// The bytes of `report.json`.
    pub fn to_json(&self) -> String {
        let text = serde_json::to_string_pretty(self);
        // Maps have string keys and floats are finite, so there is nothing to fail.
        text.unwrap_or_default() + "\n"
    }

    /// The report with its seal, so that a change of it shows.
    pub fn sealed(&self) -> Self {
        let outputs = self.outputs.iter().map(|(name, report)| (name.clone(), report.sealed()));
        let open = Self { outputs: outputs.collect(), seal: String::new(), ..self.clone() };
        let seal = hex(Sha256::new().chain_update(open.to_json()));
        Self { seal, ..open }
    }

    /// Whether the text it was read from is, to the byte, what its seal was made of.
    pub fn is_sealed(&self, text: &str) -> bool {
        // The last is its own: those of its outputs come before.
        let open = match text.rfind(&self.seal) {
            Some(at) => [&text[..at], &text[at + self.seal.len()..]].concat(),
            None => return false,
        };
        self.seal.len() == 64 && self.seal == hex(Sha256::new().chain_update(open))
    }
}

/// The longest report that is read: one of a hundred thousand tensors has some 50 MB.
const REPORT_MAX: u64 = 256 << 20;

/// What lies beside an output: `OUT.END`.
pub(crate) fn beside(out: &Path, end: &str) -> PathBuf {
    let mut name = out.file_name().unwrap_or_default().to_os_string();
    name.push(".");
    name.push(end);
    out.with_file_name(name)
}

/// Where the report of an artifact lies: in its folder, or beside it if it is one file.
pub(crate) fn place(artifact: &Path) -> PathBuf {
    if artifact.is_file() { beside(artifact, "report.json") } else { artifact.join("report.json") }
}

/// The report of an artifact, and its text.
///
/// # Errors
/// If there is none, or it is none of this tool.
pub fn read(artifact: &Path) -> Result<(Report, String), CompileError> {
    let path = place(artifact);
    let text = text(&path).map_err(|e| CompileError::io("read", &path, e))?;
    let report = serde_json::from_str(&text).map_err(|e| CompileError::Occupied {
        path,
        rule: format!("is no report of this tool: {e}"),
    })?;
    Ok((report, text))
}

/// The text of a report, which may be anybody's.
pub(crate) fn text(path: &Path) -> io::Result<String> {
    // A pipe would be waited for, and a link leads out of the folder.
    if !std::fs::symlink_metadata(path)?.is_file() {
        let rule = "it is a link, a pipe or a folder, not a file";
        return Err(io::Error::new(io::ErrorKind::InvalidData, rule));
    }
    let mut text = String::new();
    let read = File::open(path)?.take(REPORT_MAX + 1).read_to_string(&mut text)?;
    if read as u64 > REPORT_MAX {
        let rule = format!("is longer than {REPORT_MAX} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, rule));
    }
    Ok(text)
}
