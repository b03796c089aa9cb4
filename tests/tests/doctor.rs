//! `optimize doctor` on the built binary: it says what machine this is, and tries every kernel of every
//! instruction set that the machine has.

use backend_cpu::{Cpu, Isa};
use serde_json::Value;
use tests::run;

#[test]
fn every_instruction_set_is_tried_and_the_machine_described() {
    let cache = tempfile::tempdir().unwrap();
    let folder = cache.path().to_str().unwrap();
    let out = run(&["doctor", "--json", "--hub-cache", folder, "--threads", "1"]);
    assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    let here = Isa::ALL.into_iter().filter_map(Cpu::with_isa).map(|cpu| cpu.isa().name());
    let sets = report["instruction_sets"].as_array().unwrap();
    let named: Vec<&str> = sets.iter().map(|set| set["name"].as_str().unwrap()).collect();
    assert_eq!(named, here.collect::<Vec<_>>());
    let used: Vec<bool> = sets.iter().map(|set| set["used"].as_bool().unwrap()).collect();
    assert!(used[0] && used[1..].iter().all(|used| !used));
    for set in sets {
        assert!(set["tried"].as_u64() > Some(50) && set["tried"] == set["right"], "{set}");
    }
    let cpu = &report["devices"][0];
    assert_eq!(cpu["tried"].as_u64(), Some(127 * sets.len() as u64));
    assert!(cpu["wrong"].as_array().unwrap().is_empty());
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!((report["threads"].as_u64(), &report["hub_cache_exists"]), (Some(1), &true.into()));
    assert_eq!(report["hub_cache"], folder);
    assert!(
        report["cores"].as_u64() > Some(0) && !report["processor"].as_str().unwrap().is_empty()
    );
    for key in ["memory_bytes", "free_memory_bytes", "container_limit_bytes", "free_disk_bytes"] {
        let said = report.get(key).unwrap_or_else(|| panic!("{key} is there"));
        assert!(said.is_null() || said.as_u64() > Some(0), "{key}: {said}");
    }
}

#[test]
fn people_read_names_and_not_those_of_a_program() {
    let out = run(&["doctor", "--isa", "portable"]);
    let text = String::from_utf8(out.stdout).unwrap();
    assert_eq!(out.status.code(), Some(0), "{text}");
    assert!(text.contains("127 of 127 kernels right with portable code, which computes"), "{text}");
    for label in
        ["optimize  ", "processor ", "memory    ", "disk      ", "HF cache  ", "cpu       "]
    {
        assert!(text.lines().any(|line| line.starts_with(label)), "{label} in {text}");
    }
    assert!(!text.contains("Avx512") && !text.contains("Portable"), "{text}");
}
