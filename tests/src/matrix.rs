//! What the bytes of an artifact must not depend on, and the jobs that this is held against.

use crate::bench::{Bench, Files, files, folder, same};
use std::path::Path;

/// Options of the jobs: every method, grid and choice of dtype.
pub const JOBS: [&[&str]; 10] = [
    &[],
    &["--method", "rtn", "--no-gate"],
    &["--asym", "--group-size", "32"],
    &["--method", "rtn", "--asym", "--group-size", "64", "--no-gate"],
    &["--group-size", "channel", "--act-order", "off"],
    &["--asym", "--group-size", "channel", "--no-gate"],
    &["--group-size", "64", "--head", "int8"],
    &["--head", "int4", "--dtype", "bf16"],
    &["--recipe", "int8.toml"],
    &["--recipe", "sequential.toml"],
];

/// Recipes of jobs that options cannot name.
const RECIPES: [(&str, &str); 2] = [
    ("int8.toml", "[[pass]]\nname = \"gptq\"\nbits = 8\ngroup = \"channel\"\n"),
    (
        "sequential.toml",
        "[[pass]]\nname = \"gptq\"\nbits = 4\ntrue-sequential = true\nscale = \"mse\"\n",
    ),
];

const THREADS: [&str; 3] = ["1", "2", "8"];
const MEMORY: [&[&str]; 3] = [&[], &["--memory", "120M"], &["--resident", "0"]];
const LOCALES: [(&str, &str); 3] =
    [("C", "UTC"), ("de_DE.UTF-8", "Asia/Tokyo"), ("tr_TR", "UTC+9")];
/// Without a name, the best that there is.
const KERNELS: [&str; 3] = ["", "avx2", "portable"];

/// What a run is done under.
#[derive(Clone, Copy, Debug)]
pub struct Under {
    threads: &'static str,
    memory: &'static [&'static str],
    locale: (&'static str, &'static str),
    kernels: &'static str,
    elsewhere: bool,
}

impl Under {
    /// Whether it is done without vector instructions, which takes twenty times as long.
    pub fn is_portable(&self) -> bool {
        self.kernels == "portable"
    }
}

/// Everything that a run can be done under.
pub fn all() -> Vec<Under> {
    let mut all = Vec::new();
    for threads in THREADS {
        for memory in MEMORY {
            for locale in LOCALES {
                for kernels in KERNELS {
                    for elsewhere in [false, true] {
                        all.push(Under { threads, memory, locale, kernels, elsewhere });
                    }
                }
            }
        }
    }
    all
}

/// Runs a job under each of `under` in two folders, and holds the artifacts against the first.
/// Returns how many runs there were.
///
/// # Panics
/// If one differs or fails.
pub fn check(job: &[&str], under: impl Iterator<Item = Under>) -> usize {
    let (near, far) = (folder(), folder());
    let deep = far.path().join("a folder/with a longer name");
    std::fs::create_dir_all(&deep).expect("a folder");
    let benches = [bench(near.path(), job), bench(&deep, job)];
    let mut first: Option<Files> = None;
    let mut runs = 0;
    for under in under {
        let bench = &benches[usize::from(under.elsewhere)];
        let mut more = [job, under.memory, &["--threads", under.threads]].concat();
        if !under.kernels.is_empty() {
            more.extend(["--isa", under.kernels]);
        }
        let mut command = bench.command(&more);
        let (locale, zone) = under.locale;
        command.env("LC_ALL", locale).env("LANG", locale).env("TZ", zone);
        let out = command.output().expect("the binary runs");
        let said = String::from_utf8_lossy(&out.stderr);
        if said.contains("no instruction set") {
            continue;
        }
        assert!(out.status.success(), "{job:?} {under:?}: {said}");
        let files = files(&bench.path("out"));
        match &first {
            None => first = Some(files),
            Some(first) => same(first, &files, &format!("{job:?} {under:?}")),
        }
        bench.clean();
        runs += 1;
    }
    runs
}

fn bench(folder: &Path, job: &[&str]) -> Bench {
    let mut bench = Bench::new(folder, 2, 4);
    for (name, text) in RECIPES {
        std::fs::write(folder.join(name), text).expect("a recipe");
    }
    if job.contains(&"--recipe") {
        bench.options.retain(|o| o != "--quant" && o != "int4");
    }
    bench
}
