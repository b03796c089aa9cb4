//! What hostile files may cost: a second, and memory bounded by the header and not by what it says.
//!
//! Alone in its binary, and one test: the peak of resident memory is the process's.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a fixture that cannot be made fails its test")]
#![expect(clippy::print_stdout, reason = "the figures are what one runs this for")]

use checkpoint::Checkpoint;
use ir::Source;
use rustix::time::{ClockId, clock_gettime};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

const MIB: u64 = 1 << 20;

/// The process's peak of resident memory so far, in bytes.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Writes a header of `n` entries without ever holding it, then `data` bytes; its length.
fn write_header(path: &Path, n: usize, data: u64, entry: impl Fn(usize) -> String) -> u64 {
    let mut file = BufWriter::new(File::create(path).unwrap());
    file.write_all(&[0; 8]).unwrap();
    let mut length = 2;
    for i in 0..n {
        let text = format!("{}{}", if i == 0 { '{' } else { ',' }, entry(i));
        length += text.len() as u64 - u64::from(i == 0);
        file.write_all(text.as_bytes()).unwrap();
    }
    file.write_all(b"}").unwrap();
    file.flush().unwrap();
    let file = file.into_inner().unwrap();
    file.write_all_at(&length.to_le_bytes(), 0).unwrap();
    file.set_len(8 + length + data).unwrap();
    length
}

/// What this process has taken of processors.
fn processor_milliseconds() -> i64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec * 1000 + time.tv_nsec / 1_000_000
}

/// Opening must fail with this rule within a second and 64 MiB and four times the header.
fn refuse(id: &str, folder: &Path, header: u64, rule: &str) {
    let start = processor_milliseconds();
    let error = Checkpoint::open(folder).unwrap_err().to_string();
    let (took, peak) = (processor_milliseconds() - start, peak());
    println!("{id}: {took} ms, {} MiB for {} MiB", peak / MIB, header / MIB);
    assert!(error.contains(rule), "{id}: {error}");
    assert!(error.len() < 1000, "{id}: {} bytes of message", error.len());
    // The rule is one second of a processor, whatever else it does; an unoptimized parser gets four.
    let most = if cfg!(debug_assertions) { 4000 } else { 1000 };
    assert!(took < most, "{id}: {took} ms");
    assert!(peak < 64 * MIB + 4 * header, "{id}: {} MiB", peak / MIB);
}

/// 1 GiB of weights read in pieces of 64 KiB.
fn read_in_pieces(folder: &Path, weights: &Path) {
    write_header(weights, 1, 1 << 30, |_| {
        r#""w":{"dtype":"U8","shape":[1048576,1024],"data_offsets":[0,1073741824]}"#.into()
    });
    let opened = Checkpoint::open(folder).unwrap();
    for start in (0..1 << 20).step_by(1 << 12) {
        let rows = opened.read_rows("w", start..start + 64).unwrap();
        assert_eq!(rows.bytes().len(), 1 << 16);
    }
    assert!(peak() < 64 * MIB, "{} MiB", peak() / MIB);
}

/// HF-18: as many keys as fit the cap of a configuration.
fn refuse_keys(folder: &Path) {
    let config = BufWriter::new(File::create(folder.join("config.json")).unwrap());
    let mut config = (0..1_500_000u32).fold(config, |mut file, i| {
        let open = if i == 0 { '{' } else { ',' };
        write!(file, "{open}\"{i:x}\":0").unwrap();
        file
    });
    config.write_all(b"}").unwrap();
    let config = config.into_inner().unwrap().metadata().unwrap().len();
    assert!(config < 16 * MIB);
    refuse("HF-18", folder, config, "too many values");
    fs::write(folder.join("config.json"), "{}").unwrap();
}

#[test]
fn hostile_sizes_cost_neither_memory_nor_time() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, weights) = (dir.path(), dir.path().join("model.safetensors"));
    fs::write(folder.join("config.json"), "{}").unwrap();
    // In the order of their bounds: a peak stays.
    read_in_pieces(folder, &weights);
    // ST-07, two attacks: the header alone exceeds the cap, or all tensors overlap.
    let file = File::create(&weights).unwrap();
    file.write_all_at(&600_000_000u64.to_le_bytes(), 0).unwrap();
    file.set_len(600_000_024).unwrap();
    refuse("ST-07 ten million tensors", folder, 0, "header too large");
    let header = write_header(&weights, 100_000, 160_000, |i| {
        format!(r#""t{i}":{{"dtype":"U8","shape":[160000],"data_offsets":[0,160000]}}"#)
    });
    refuse("ST-07 one range", folder, header, "overlap");
    refuse_keys(folder);
    // The most tensors there may be, the last of them wrong.
    let header = write_header(&weights, 1 << 18, 0, |i| {
        let shape = if i + 1 == 1 << 18 { "1" } else { "0,1,1,1,1,1,1,1" };
        format!(r#""t{i}":{{"dtype":"U8","shape":[{shape}],"data_offsets":[0,0]}}"#)
    });
    refuse("2^18 tensors", folder, header, "size mismatch");
    let header = write_header(&weights, 2_000_000, 0, |i| match i {
        0 => "\"__metadata__\":{\"0\":\"\"".into(),
        1_999_999 => "\"last\":\"\"}".into(),
        _ => format!("\"{i:x}\":\"\""),
    });
    refuse("metadata", folder, header, "more than 65536 keys");
    let header = write_header(&weights, 1_000_000, 0, |i| {
        format!(r#""t{i:07}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#)
    });
    refuse("ST-21", folder, header, "more than 262144 tensors");
    // The longest header there may be: an object that never ends.
    let file = File::create(&weights).unwrap();
    file.write_all_at(&100_000_000u64.to_le_bytes(), 0).unwrap();
    file.write_all_at(b"{", 8).unwrap();
    file.set_len(100_000_008).unwrap();
    refuse("the longest header", folder, 100_000_000, "key must be a string");
}
