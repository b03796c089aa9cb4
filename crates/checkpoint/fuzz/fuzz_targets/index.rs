#![no_main]
//! An index of shards of any bytes: no panic, and no file name accepted that could leave a folder.

use checkpoint::index;
use libfuzzer_sys::fuzz_target;
use std::path::{Component, Path};

fuzz_target!(|bytes: &[u8]| {
    let Ok(index) = index::parse(bytes) else { return };
    for file in index.files() {
        let mut parts = Path::new(file).components();
        assert!(matches!(parts.next(), Some(Component::Normal(_))), "{file:?}");
        assert!(parts.next().is_none() && !file.contains(['\\', '\0']), "{file:?}");
        assert!(file.ends_with(".safetensors"), "{file:?}");
    }
});
