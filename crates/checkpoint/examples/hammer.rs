//! Feeds a parser mutated inputs, as many as asked for, and says how that went: executions, how many
//! were accepted, the slowest, and the most memory. Not guided by coverage, but much faster than a
//! fuzzer; its seeds are what the fuzzer found. A panic, or an input that we accept and the reference
//! refuses, ends it.
//!
//! ```text
//! cargo run --release --config profile.release.overflow-checks=true -p checkpoint \
//!     --example hammer -- header|index|json EXECUTIONS SEEDS...
//! ```

#![expect(clippy::print_stdout, reason = "it is a command")]
#![expect(clippy::unwrap_used, reason = "a broken command line ends it")]

use checkpoint::json::{self, Limits};
use checkpoint::{header, index};
use safetensors::SafeTensors;
use std::path::{Component, Path};
use std::time::{Duration, Instant};

/// Longer inputs are cut.
const BYTES_MAX: usize = 4096;
/// An input that takes longer counts as a time-out.
const SLOW: Duration = Duration::from_secs(1);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [target, executions, folders @ ..] = &arguments[..] else {
        panic!("hammer header|index|json EXECUTIONS SEEDS...");
    };
    let parse: fn(&[u8]) -> bool = match target.as_str() {
        "header" => header,
        "index" => index,
        "json" => json,
        other => panic!("{other} is header, index or json"),
    };
    let executions: u64 = executions.parse().unwrap();
    let mut seeds: Vec<Vec<u8>> = folders.iter().flat_map(|f| read(Path::new(f))).collect();
    seeds.sort();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut input, mut accepted, mut slowest, mut slow) = (Vec::new(), 0u64, Duration::ZERO, 0);
    let started = Instant::now();
    for _ in 0..executions {
        random.mutate(&seeds, target == "header", &mut input);
        let clock = Instant::now();
        accepted += u64::from(parse(&input));
        let mut took = clock.elapsed();
        for _ in 0..3 {
            // The clock also runs while others have the machine: an input is as slow as at its best.
            if took > SLOW / 100 {
                let clock = Instant::now();
                parse(&input);
                took = took.min(clock.elapsed());
            }
        }
        slowest = slowest.max(took);
        slow += u64::from(took > SLOW);
    }
    println!(
        "{target}: {executions} executions from {} seeds in {:.0} s, {accepted} accepted, \
         0 panics, {slow} time-outs, slowest {:.1} ms, peak memory {} kB",
        seeds.len(),
        started.elapsed().as_secs_f64(),
        slowest.as_secs_f64() * 1e3,
        peak_memory(),
    );
    assert!(slow == 0, "an input took longer than {SLOW:?}");
}

/// As the fuzz target of this name; whether the input was accepted.
fn header(file: &[u8]) -> bool {
    let Ok(ours) = header::parse(file, file.len() as u64) else { return false };
    let theirs = SafeTensors::deserialize(file);
    let theirs = theirs.unwrap_or_else(|e| panic!("accepted by us, not by them ({e}): {file:?}"));
    assert_eq!(ours.entries.len(), theirs.len());
    for entry in &ours.entries {
        let view = theirs.tensor(&entry.name).unwrap();
        let [begin, end] = [entry.begin, entry.end].map(|at| (ours.data + at) as usize);
        assert_eq!(view.data(), &file[begin..end]);
        assert_eq!(view.shape(), entry.shape);
    }
    true
}

fn index(bytes: &[u8]) -> bool {
    let Ok(index) = index::parse(bytes) else { return false };
    for file in index.files() {
        let mut parts = Path::new(file).components();
        assert!(matches!(parts.next(), Some(Component::Normal(_))), "{file:?}");
        assert!(parts.next().is_none() && !file.contains(['\\', '\0']), "{file:?}");
    }
    true
}

fn json(bytes: &[u8]) -> bool {
    let Ok(ours) = json::parse(bytes, &Limits::CONFIG) else { return false };
    let theirs = serde_json::from_slice::<serde_json::Value>(bytes);
    assert_eq!(ours, theirs.unwrap_or_else(|e| panic!("accepted by us only ({e}): {bytes:?}")));
    true
}

fn read(folder: &Path) -> Vec<Vec<u8>> {
    let files = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    files.map(|f| std::fs::read(f).unwrap()).filter(|b| b.len() <= BYTES_MAX).collect()
}

/// The most memory that was resident, in kB.
fn peak_memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.unwrap_or("?").trim().trim_end_matches(" kB").to_string()
}

/// Xorshift64* (Vigna 2016).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }

    /// A seed with one to four changes; where asked for, mostly with a length word that fits.
    fn mutate(&mut self, seeds: &[Vec<u8>], repair: bool, input: &mut Vec<u8>) {
        input.clear();
        if !seeds.is_empty() {
            input.extend_from_slice(&seeds[self.below(seeds.len())]);
        }
        for _ in 0..=self.below(4) {
            self.change(seeds, input);
        }
        input.truncate(BYTES_MAX);
        if repair && input.len() >= 8 && self.below(4) > 0 {
            // Otherwise no longer or shorter header gets past its length word.
            let end = input[8..].iter().rposition(|&b| b == b'}').map_or(0, |at| at as u64 + 1);
            input[..8].copy_from_slice(&end.to_le_bytes());
        }
    }

    fn change(&mut self, seeds: &[Vec<u8>], input: &mut Vec<u8>) {
        const BYTES: &[u8] = b"\0\x01\x7f\x80\xff{}[]\",:\\0123456789-+.eEu \n\t_tfn";
        const WORDS: [&[u8]; 10] = [
            b"18446744073709551615",
            b"9223372036854775808",
            b"4294967296",
            b"-1",
            b"1e400",
            b"\"dtype\":\"F32\"",
            b"\"data_offsets\":[0,4]",
            b"\"__metadata__\"",
            b"\\ud800",
            b"{\"a\":",
        ];
        let at = self.below(input.len() + 1);
        match self.below(7) {
            0 if at < input.len() => input[at] ^= 1 << self.below(8),
            1 if at < input.len() => input[at] = BYTES[self.below(BYTES.len())],
            2 => input.insert(at, BYTES[self.below(BYTES.len())]),
            3 => drop(input.drain(at..(at + self.below(16)).min(input.len()))),
            4 => drop(input.splice(at..at, WORDS[self.below(WORDS.len())].iter().copied())),
            5 => {
                let end = (at + self.below(64)).min(input.len());
                let copy = input[at..end].to_vec();
                input.splice(at..at, copy);
            }
            _ if !seeds.is_empty() => {
                let other = &seeds[self.below(seeds.len())];
                let from = self.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            _ => {}
        }
    }
}
