//! Memory is bounded by a block, not by the model.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

/// Runs `eval` and returns the peak memory it reports, in bytes.
fn peak(model: &Path, tokens: &Path) -> u64 {
    let out = tests::run(&[
        "eval",
        model.to_str().unwrap(),
        "--tokens",
        tokens.to_str().unwrap(),
        "--threads",
        "2",
    ]);
    let remarks = String::from_utf8(out.stderr).unwrap();
    assert!(out.status.success(), "{remarks}");
    let line = remarks.lines().find(|l| l.contains("peak memory")).expect(&remarks);
    let megabytes = line.rsplit("peak memory ").next().unwrap().trim_end_matches(" MB");
    (megabytes.parse::<f64>().unwrap() * 1e6) as u64
}

#[test]
#[cfg(target_os = "linux")]
fn four_times_the_layers_take_no_more_memory() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens");
    let ids: Vec<String> = (0..600).map(|i| (i * 37 % 500).to_string()).collect();
    std::fs::write(&tokens, ids.join(" ")).unwrap();
    // 12 MB a layer: 8 layers are 94 MB, 32 layers 377 MB.
    let [small, large] = [8, 32].map(|layers| {
        let model = folder.path().join(layers.to_string());
        tests::write_noise_model(&model, layers, 512, 500);
        peak(&model, &tokens)
    });
    // How threads happen to overlap moves the peak by a few megabytes. A source that kept what it
    // read would take 24 layers more; less than one is asked for.
    assert!(large < small + (12 << 20), "{small} bytes with 8 layers, {large} with 32");
    assert!(large < 120 << 20, "{large} bytes for a model of 377 MB");
}
