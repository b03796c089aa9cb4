#![no_main]
//! A safetensors header of any bytes: no panic, and nothing accepted that the `safetensors` crate
//! refuses or reads otherwise.

use checkpoint::header;
use libfuzzer_sys::fuzz_target;
use safetensors::SafeTensors;

fuzz_target!(|file: &[u8]| {
    let Ok(ours) = header::parse(file, file.len() as u64) else { return };
    let theirs = SafeTensors::deserialize(file).expect("accepted by us and not by safetensors");
    assert_eq!(ours.entries.len(), theirs.len());
    for entry in &ours.entries {
        let view = theirs.tensor(&entry.name).expect("a tensor that safetensors has too");
        let [begin, end] = [entry.begin, entry.end].map(|at| (ours.data + at) as usize);
        assert_eq!(view.data(), &file[begin..end]);
        assert_eq!(view.shape(), entry.shape);
        assert_eq!(view.dtype().to_string(), entry.dtype.name());
    }
});
