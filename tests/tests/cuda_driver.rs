//! The program on NVIDIA's driver, where that is the one of `cuda-emulator`: contexts, streams, events,
//! graphs and pinned memory as the API has them, kernels emulated.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use backend_cuda::{Device, DeviceError, Driver};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use tests::agreement::kernels;
use tests::{optimize, root};

/// Has `program` find an emulated driver; says so where there is none.
fn emulated(test: &str, mut program: Command) -> Option<Command> {
    static DRIVER: OnceLock<Option<cuda_emulator::Driver>> = OnceLock::new();
    let room = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let build = || Some(cuda_emulator::Driver::build(&kernels(room)?, room).unwrap());
    let Some(driver) = DRIVER.get_or_init(build) else {
        let _ = writeln!(std::io::stderr(), "skipped: {test}: there is no g++ for x86-64");
        return None;
    };
    driver.serve(&mut program);
    program.env("RUST_BACKTRACE", "0");
    Some(program)
}

/// A greedy continuation by stories260k on a device, with two GPUs there.
fn story(test: &str, device: &str) -> Option<Command> {
    let mut program = emulated(test, optimize())?;
    program.current_dir(root().join("tests/models")).env("EMULATED_GPUS", "2");
    program.args(["run", "stories260k", "Once upon a time", "--max-tokens", "24", "--quiet"]);
    program.args(["--device", device]);
    Some(program)
}

/// What it printed; nothing may have been said of how the driver is used.
fn succeed(program: &mut Command) -> String {
    let Output { status, stdout, stderr } = program.output().unwrap();
    let said = String::from_utf8(stderr).unwrap();
    assert!(status.success() && !said.contains("emulated driver:"), "{program:?}: {said}");
    String::from_utf8(stdout).unwrap()
}

#[test]
fn devices_of_every_kind_tell_the_same_story() {
    let name = "devices_of_every_kind_tell_the_same_story";
    let Some(mut cpu) = story(name, "cpu") else { return };
    let want = succeed(&mut cpu);
    assert!(want.contains("there was a little girl named"), "{want}");
    for device in ["cuda", "cuda:1", "cuda:0+cuda:1", "cuda:0,cuda:1", "cuda,cpu"] {
        assert_eq!(succeed(&mut story(name, device).unwrap()), want, "{device}");
    }
    // One without early starts, and without warpgroups' products.
    let mut ampere = story(name, "cuda").unwrap();
    assert_eq!(succeed(ampere.env("EMULATED_CAPABILITY", "80")), want);
    let mut guessing = story(name, "cuda").unwrap();
    assert_eq!(succeed(guessing.args(["--speculate", "ngram"])), want);
}

#[test]
fn what_is_found_and_what_is_not_is_said() {
    let Some(mut none) = story("what_is_found_and_what_is_not_is_said", "cuda") else { return };
    let Output { status, stderr, .. } = none.env("EMULATED_GPUS", "0").output().unwrap();
    let said = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(2), "{said}");
    assert!(said.contains("there is no GPU 0; the driver sees 0"), "{said}");
    assert!(said.contains("hint: --device cpu"), "{said}");
    let mut old = story("what_is_found_and_what_is_not_is_said", "cuda").unwrap();
    let Output { stderr, .. } = old.env("EMULATED_CAPABILITY", "75").output().unwrap();
    let said = String::from_utf8(stderr).unwrap();
    assert!(said.contains("compute capability 7.5; 8.0 or later is needed"), "{said}");
    let mut small = story("what_is_found_and_what_is_not_is_said", "cuda").unwrap();
    let Output { stderr, .. } = small.env("EMULATED_MEMORY", "3000000").output().unwrap();
    let said = String::from_utf8(stderr).unwrap();
    assert!(
        said.contains("this process may take 3.00 MB") && said.contains("--device cuda,cpu"),
        "{said}"
    );
}

#[test]
fn a_fault_ends_the_request_and_says_where() {
    let Some(mut program) = story("a_fault_ends_the_request_and_says_where", "cuda") else {
        return;
    };
    let Output { status, stderr, .. } = program.env("EMULATED_FAULT", "700").output().unwrap();
    let said = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(4), "{said}");
    assert!(said.contains("error: step ") && said.contains("illegal memory access"), "{said}");
}

#[test]
fn the_doctor_reports_what_it_can() {
    let Some(mut program) = emulated("the_doctor_reports_what_it_can", optimize()) else { return };
    let output = program.arg("doctor").env("EMULATED_FAULT", "1").output().unwrap();
    let (said, found) = (String::from_utf8(output.stderr), String::from_utf8(output.stdout));
    let (said, found) = (said.unwrap(), found.unwrap());
    assert_eq!(output.status.code(), Some(4), "{said}");
    for line in ["cpu ", "cuda:0 ", "emulated GPU", "wrong: wgmma: ", "wrong: linears: "] {
        assert!(found.contains(line), "{line:?} of {found}");
    }
}

/// Set in the process that has the driver.
const CHILD: &str = "DRIVER_IS_EMULATED";

/// Runs one of the tests below again, in a process that finds the driver.
fn again(test: &str, set: &[(&str, &str)]) {
    let program: PathBuf = std::env::current_exe().unwrap();
    let Some(mut child) = emulated(test, Command::new(program)) else { return };
    child.args(["--exact", test, "--nocapture"]).env(CHILD, "1").envs(set.iter().copied());
    let said = succeed(&mut child);
    assert!(said.contains("1 passed"), "{said}");
}

fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

fn noise(bytes: usize) -> Vec<u8> {
    (0..bytes as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

#[test]
fn writes_arrive_whatever_becomes_of_their_source() {
    if !is_child() {
        return again("writes_arrive_whatever_becomes_of_their_source", &[]);
    }
    let driver = Driver::open(0).unwrap();
    let want = noise(70_000_000);
    let at = driver.allocate(want.len()).unwrap();
    // Small ones share a buffer, large ones go round all of them more than once.
    let mut begin = 0;
    for size in [1, 300, 256, 65_537, 8 << 20, 1, 40_000_000].into_iter().cycle() {
        let end = (begin + size).min(want.len());
        let mut part = want[begin..end].to_vec();
        driver.write(at + begin as u64, &part).unwrap();
        part.fill(0);
        begin = end;
        if begin == want.len() {
            break;
        }
    }
    let mut got = vec![0; want.len()];
    driver.read(at, &mut got).unwrap();
    assert!(got == want);
}

#[test]
fn results_arrive_in_buffers_that_are_used_again() {
    if !is_child() {
        return again("results_arrive_in_buffers_that_are_used_again", &[]);
    }
    let driver = Driver::open(0).unwrap();
    let want = noise(1000);
    let at = driver.allocate(2000).unwrap();
    driver.write(at, &want).unwrap();
    // One that nobody asks for gives its buffer back.
    drop(driver.read_later(at, 1000).unwrap());
    let later = driver.read_later(at, 1000).unwrap();
    driver.write(at, &noise(2000)[1000..]).unwrap();
    let other = driver.read_later(at, 1000).unwrap();
    assert_eq!(later().unwrap(), want);
    assert_eq!(other().unwrap(), noise(2000)[1000..]);
}

#[test]
fn one_gpu_waits_for_another_and_reads_its_memory() {
    if !is_child() {
        let set = [("EMULATED_GPUS", "2")];
        return again("one_gpu_waits_for_another_and_reads_its_memory", &set);
    }
    let (a, b) = (Driver::open(0).unwrap(), Driver::open(1).unwrap());
    let (from, to) = (a.allocate(1000).unwrap(), b.allocate(1000).unwrap());
    assert!(b.reaches(&a) && a.reaches(&b));
    let want = noise(1000);
    a.write(from, &want).unwrap();
    // Nothing of a's is done before somebody waits: b's copy must.
    b.wait_for(&a.mark().unwrap()).unwrap();
    b.copy(to, from, 1000).unwrap();
    let mut got = vec![0; 1000];
    b.read(to, &mut got).unwrap();
    assert_eq!(got, want);
}

#[test]
fn memory_that_is_given_back_is_free() {
    if !is_child() {
        let set = [("EMULATED_MEMORY", "1000000")];
        return again("memory_that_is_given_back_is_free", &set);
    }
    let driver = Driver::open(0).unwrap();
    assert_eq!(driver.memory().unwrap(), (1_000_000, 1_000_000));
    let at = driver.allocate(600_000).unwrap();
    assert_eq!(driver.memory().unwrap().0, 400_000);
    let error = driver.allocate(600_000).unwrap_err();
    let DeviceError::Memory { needed: 600_000, free: 400_000 } = error else { panic!("{error}") };
    driver.free(at);
    assert_eq!(driver.memory().unwrap().0, 1_000_000);
    driver.allocate(600_000).unwrap();
}
