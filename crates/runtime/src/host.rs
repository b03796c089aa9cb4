//! What memory this process may still take: of the machine, of its container, of its own limit.

use std::fs;
use std::path::{Path, PathBuf};

/// The bytes of memory that this process can still take: what is free on the machine, or less where
/// a control group or a limit on its address space leaves less. `None` where nothing says.
pub fn free_memory() -> Option<u64> {
    let root = Path::new("/");
    machine(root).into_iter().chain(confined(root)).min()
}

/// The bytes that the tightest control group of this process allows altogether; `None` without one.
pub fn container_limit() -> Option<u64> {
    groups(Path::new("/"), |folder, [limit, ..]| number(&folder.join(limit)))
}

/// The machine's memory in bytes; `None` where the system does not say.
pub fn machine_memory() -> Option<u64> {
    kilobytes(Path::new("/proc/meminfo"), "MemTotal:")
}

/// The most memory that this process has had resident, in bytes; `None` where the system does not say.
pub fn peak_memory() -> Option<u64> {
    kilobytes(Path::new("/proc/self/status"), "VmHWM:")
}

/// What a control group, or a limit on the address space, leaves of what it allows.
fn confined(root: &Path) -> Option<u64> {
    groups(root, left_of).into_iter().chain(address_space(root)).min()
}

/// What is free on the machine.
fn machine(root: &Path) -> Option<u64> {
    kilobytes(&root.join("proc/meminfo"), "MemAvailable:")
}

/// The files of a control group: its limit, what is taken, and the line of `memory.stat` that says what
/// of it is page cache that can be dropped.
type Names = [&'static str; 3];

/// The least that `of` says of a control group, in either version, its parents included.
fn groups(root: &Path, of: impl Fn(&Path, Names) -> Option<u64>) -> Option<u64> {
    const TWO: Names = ["memory.max", "memory.current", "inactive_file"];
    const SOFT: Names = ["memory.high", "memory.current", "inactive_file"];
    const ONE: Names = ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"];
    let mounts = root.join("sys/fs/cgroup");
    let text = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let mut least: Option<u64> = None;
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let path = Path::new(path.trim_start_matches('/'));
        let (mounts, names): (Vec<PathBuf>, &[_]) = match controllers {
            "" => (vec![mounts.clone(), mounts.join("unified")], &[TWO, SOFT]),
            list if list.split(',').any(|name| name == "memory") => {
                (vec![mounts.join("memory")], &[ONE])
            }
            _ => continue,
        };
        // Within a container the path may be the machine's and the mount the container's own: the
        // folders that are not there are passed over, up to the mount itself.
        for folder in mounts.iter().flat_map(|m| path.ancestors().map(|p| m.join(p))) {
            for names in names {
                least = least.into_iter().chain(of(&folder, *names)).min();
            }
        }
    }
    least
}

/// What is left of the limit in a group's folder; page cache that can be dropped is not taken.
fn left_of(folder: &Path, [limit, taken, cache]: Names) -> Option<u64> {
    let limit = number(&folder.join(limit))?;
    let taken = number(&folder.join(taken)).unwrap_or(0);
    let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let cache = stat.lines().find_map(|line| line.strip_prefix(cache)?.trim().parse().ok());
    Some(limit.saturating_sub(taken.saturating_sub(cache.unwrap_or(0))))
}

/// What `ulimit -v` leaves of addresses.
fn address_space(root: &Path) -> Option<u64> {
    let limits = fs::read_to_string(root.join("proc/self/limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    let limit: u64 = line.split_whitespace().next()?.parse().ok()?;
    let taken = kilobytes(&root.join("proc/self/status"), "VmSize:").unwrap_or(0);
    Some(limit.saturating_sub(taken))
}

/// The bytes of a line `KEY n kB`.
fn kilobytes(file: &Path, key: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// A file of one number; `None` for `max`, and for what version 1 writes where there is no limit.
fn number(file: &Path) -> Option<u64> {
    let value: u64 = fs::read_to_string(file).ok()?.trim().parse().ok()?;
    (value < 1 << 62).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree of files.
    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn the_tightest_group_of_version_2_counts_and_its_cache_does_not() {
        let root = tree(&[
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("sys/fs/cgroup/a/memory.max", "1000\n"),
            ("sys/fs/cgroup/a/memory.current", "700\n"),
            ("sys/fs/cgroup/a/memory.stat", "anon 5\ninactive_file 300\n"),
        ]);
        assert_eq!(confined(root.path()), Some(600));
        fs::write(root.path().join("sys/fs/cgroup/a/b/memory.high"), "500\n").unwrap();
        assert_eq!(confined(root.path()), Some(500));
    }

    #[test]
    fn version_1_counts_also_where_the_path_is_the_machines() {
        let root = tree(&[
            ("proc/self/cgroup", "4:cpu,memory:/docker/x\n3:cpuset:/\n0::/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "1000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "900\n"),
            ("sys/fs/cgroup/memory/memory.stat", "total_inactive_file 100\n"),
        ]);
        assert_eq!(confined(root.path()), Some(200));
        let unlimited = "9223372036854771712\n";
        fs::write(root.path().join("sys/fs/cgroup/memory/memory.limit_in_bytes"), unlimited)
            .unwrap();
        assert_eq!(confined(root.path()), None);
    }

    #[test]
    fn addresses_may_be_limited_too() {
        let root = tree(&[
            (
                "proc/self/limits",
                "Max address space         300000000            unlimited   bytes",
            ),
            ("proc/self/status", "VmSize:\t  100000 kB\n"),
            ("proc/meminfo", "MemTotal: 9 kB\nMemAvailable:  2000 kB\n"),
        ]);
        assert_eq!(confined(root.path()), Some(300_000_000 - 102_400_000));
        assert_eq!(machine(root.path()), Some(2_048_000));
        let root = tree(&[("proc/self/limits", "Max address space  unlimited unlimited bytes")]);
        assert_eq!((confined(root.path()), machine(root.path())), (None, None));
    }
}
