//! Bugs that are planted are found, and kernels without them pass.
#![expect(clippy::unwrap_used, reason = "tests")]

use backend_cuda::{Device, Launch};
use cuda_emulator::{BuildError, Check, Emulated, Library, Order};
use std::io::Write;
use std::path::Path;

/// The kernel with the bug, the one without, and what finds it: the first of the ways to run it that
/// does, and a word of what is said.
const PLANTED: [(&str, &str, Found, &str); 13] = [
    ("neighbour_without_barrier", "neighbour", Found::Result, ""),
    ("refill_without_barrier", "refill", Found::Checker, "write after read"),
    ("copies_with_weak_wait", "copies", Found::LateCopies, ""),
    ("doubled_off_by_one", "doubled", Found::Checker, "out of bounds"),
    ("vectors_misaligned", "vectors", Found::Checker, "misaligned"),
    ("blocks_collide", "blocks_apart", Found::Checker, "write after write"),
    ("blocks_last_without_release", "blocks_last", Found::Checker, "read after write"),
    ("blocks_last_without_acquire", "blocks_last", Found::Checker, "read after write"),
    ("blocks_last_without_barrier", "blocks_last", Found::Checker, "read after write"),
    ("product_unpublished", "product_of_four", Found::Checker, "fence of proxies"),
    ("product_overwritten", "product_of_four", Found::LateCopies, "read"),
    ("barrier_of_some", "barrier_of_all", Found::Machine, "deadlock"),
    ("warp_parted", "warp_whole", Found::Machine, "lanes part"),
];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Found {
    /// What comes out is wrong.
    Result,
    /// What comes out is wrong where copies land late, and right where they do not.
    LateCopies,
    /// The machine cannot go on.
    Machine,
    /// By following accesses, and by nothing else.
    Checker,
}

const N: usize = 512;

fn library(check: Check) -> Option<&'static Library> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = folder.join("tests/planted/bugs.cu");
    let headers = folder.join("../backend-cuda/kernels");
    match Library::build(&[source], &[headers], Path::new(env!("CARGO_TARGET_TMPDIR")), check) {
        Ok(library) => Some(Box::leak(Box::new(library))),
        Err(BuildError::NoCompiler) => None,
        Err(BuildError::Compile(what)) => panic!("{what}"),
    }
}

/// Runs a kernel over 0, 1, 2 ...; gives what it wrote.
fn run(
    library: &'static Library,
    kernel: &str,
    order: Order,
    late: bool,
) -> Result<Vec<f32>, String> {
    let device = Emulated::new(library, order, late);
    let values: Vec<u8> = (0..N).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let (input, out) = (device.allocate(4 * N).unwrap(), device.allocate(4 * N).unwrap());
    device.write(input, &values).unwrap();
    let n = (N as u64).to_le_bytes();
    let args = [input.to_le_bytes(), out.to_le_bytes(), n].concat();
    let (threads, shared) = match kernel {
        kernel if kernel.starts_with("vectors") => (8, 4 * N as u32),
        kernel if kernel.starts_with("product") => (128, 320 * 128),
        _ => (64, 4 * N as u32),
    };
    let blocks = if kernel.starts_with("blocks") { 2 } else { 1 };
    let grid = [blocks, 1, 1];
    device.run(&Launch { kernel, grid, threads, shared, args: &args })?;
    let mut bytes = vec![0; 4 * N];
    device.read(out, &mut bytes).unwrap();
    Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect())
}

#[test]
fn planted_bugs_are_found() {
    let (Some(plain), Some(checked)) = (library(Check::Barriers), library(Check::Memory)) else {
        let _ = writeln!(std::io::stderr(), "skipped: planted_bugs_are_found: there is no g++");
        return;
    };
    let bits = |x: Vec<f32>| x.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    let orders = [Order::Forward, Order::Reverse, Order::Random(1), Order::Random(2)];
    for (bad, good, found, word) in PLANTED {
        let want = bits(run(checked, good, Order::Forward, true).unwrap());
        for order in orders {
            for late in [false, true] {
                for library in [plain, checked] {
                    let got = run(library, good, order, late);
                    let got = got.unwrap_or_else(|what| panic!("{good}: {what}"));
                    assert_eq!(bits(got), want, "{good}");
                }
            }
        }
        let wrong = |late: bool| {
            orders.iter().any(|&order| run(plain, bad, order, late).map(bits) != Ok(want.clone()))
        };
        let says = |library: &'static Library, late: bool| {
            orders.iter().all(|&o| run(library, bad, o, late).is_err_and(|e| e.contains(word)))
        };
        match found {
            Found::Result => assert!(wrong(false), "{bad}"),
            Found::LateCopies => assert!(wrong(true) && !wrong(false), "{bad}"),
            Found::Machine => assert!(says(plain, false), "{bad}"),
            Found::Checker => {}
        }
        // Following accesses finds all of them.
        assert!(says(checked, true), "{bad}: {:?}", run(checked, bad, Order::Forward, true));
    }
}
