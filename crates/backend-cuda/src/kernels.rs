//! The kernels that are shipped: a file of machine code a family, for every architecture, made by
//! `.ci/cuda` from `kernels/`.

/// Kernels of one source.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// The name of its source, without `.cu`.
    pub name: &'static str,
    /// Machine code for each architecture, and PTX for those to come.
    pub image: &'static [u8],
    /// How the names of its kernels begin.
    pub prefixes: &'static [&'static str],
}

/// Where the driver's loader wants a file of machine code to begin.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

macro_rules! family {
    ($name:literal, $($prefix:literal),+) => {
        Family {
            name: $name,
            image: {
                static IMAGE: &Aligned<[u8]> =
                    &Aligned(*include_bytes!(concat!("../prebuilt/", $name, ".fatbin")));
                &IMAGE.0
            },
            prefixes: &[$($prefix),+],
        }
    };
}

/// Every family.
pub const FAMILIES: &[Family] = &[
    family!(
        "rows",
        "embed",
        "gather",
        "sum_parts",
        "add",
        "mul",
        "activate_silu",
        "to_slots",
        "from_slots",
        "silu_mul",
        "norm_",
        "rope"
    ),
    family!("pack", "pack_", "unpack_"),
    family!("linear_rows", "linear_rows_"),
    family!("linear_tiles", "linear_tiles_"),
    family!("linear_wgmma", "linear_wgmma_"),
    family!("linear_int8", "linear_int8", "round_int8"),
    family!("attend_store", "attend_store_"),
    family!("attend_rows", "attend_rows_", "attend_merge_"),
    family!("attend_tiles", "attend_tiles_"),
    family!("attend_wgmma", "attend_wgmma_"),
    family!("score", "fold_"),
    family!("sample", "sample"),
    family!("doctor", "probe_", "try_"),
    family!("algebra", "gram", "rank_update", "take_columns", "factor_"),
];

/// The family of a kernel.
pub(crate) fn family(kernel: &str) -> Option<usize> {
    FAMILIES.iter().position(|f| f.prefixes.iter().any(|prefix| kernel.starts_with(prefix)))
}
