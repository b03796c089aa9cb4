//! The instruction sets, and the one place where a kernel is compiled for each of them.
//!
//! A [`Kernel`] is written once over [`Simd`]; [`Level::run`] enters it through a function that has
//! the target features, so that everything inlined into it is compiled with them. Rust never
//! contracts or reassociates floating point, so the same body gives the same bits everywhere.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "a function compiled for target features is entered")
)]

use crate::dots::Dots;
#[cfg(target_arch = "aarch64")]
use crate::neon::{DotProd, I8mm, Neon};
use crate::simd::{Portable, Simd};
#[cfg(target_arch = "x86_64")]
use crate::x86::{Avx2, Avx512};
#[cfg(target_arch = "x86_64")]
use crate::x86_dots::{Bf16, Vnni};

/// An instruction set that there are kernels for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// [`Isa::Avx512Vnni`] with BF16, the dot product of bf16 pairs.
    Avx512Bf16,
    /// [`Isa::Avx512`] with VNNI, the integer dot product.
    Avx512Vnni,
    /// x86-64 with AVX-512 F, BW, VL and DQ: 16 lanes.
    Avx512,
    /// x86-64 with AVX2, FMA and F16C: 8 lanes.
    Avx2,
    /// [`Isa::NeonDot`] with I8MM, the dot product of unsigned and signed bytes.
    NeonI8mm,
    /// [`Isa::Neon`] with the dot product of signed bytes.
    NeonDot,
    /// aarch64: 4 lanes.
    Neon,
    /// Whatever the program was compiled for.
    Portable,
}

impl Isa {
    /// Every instruction set, the fastest first.
    pub const ALL: [Self; 8] = [
        Self::Avx512Bf16,
        Self::Avx512Vnni,
        Self::Avx512,
        Self::Avx2,
        Self::NeonI8mm,
        Self::NeonDot,
        Self::Neon,
        Self::Portable,
    ];

    /// How it is spelled in arguments and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Avx512Bf16 => "avx512-bf16",
            Self::Avx512Vnni => "avx512-vnni",
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::NeonI8mm => "neon-i8mm",
            Self::NeonDot => "neon-dotprod",
            Self::Neon => "neon",
            Self::Portable => "portable",
        }
    }

    /// The instruction set spelled `name`.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|isa| isa.name() == name)
    }

    /// Whether this machine has it.
    pub fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => crate::x86_dots::pairs_are_fused(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => {
                Self::Avx512.is_available() && std::is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                std::is_x86_feature_detected!("avx512f")
                    && std::is_x86_feature_detected!("avx512bw")
                    && std::is_x86_feature_detected!("avx512vl")
                    && std::is_x86_feature_detected!("avx512dq")
                    && std::is_x86_feature_detected!("fma")
                    && std::is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                std::is_x86_feature_detected!("avx2")
                    && std::is_x86_feature_detected!("fma")
                    && std::is_x86_feature_detected!("f16c")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx512Bf16 | Self::Avx512Vnni | Self::Avx512 | Self::Avx2 => false,
            #[cfg(target_arch = "aarch64")]
            Self::NeonI8mm => std::arch::is_aarch64_feature_detected!("i8mm"),
            #[cfg(target_arch = "aarch64")]
            Self::NeonDot => std::arch::is_aarch64_feature_detected!("dotprod"),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[cfg(not(target_arch = "aarch64"))]
            Self::NeonI8mm | Self::NeonDot | Self::Neon => false,
            Self::Portable => true,
        }
    }
}

/// A piece of work written once for every instruction set. `run` must be `#[inline(always)]`.
pub(crate) trait Kernel {
    /// Does the work with the vectors of `S`.
    fn run<S: Simd>(self);
}

/// An instruction set that was found on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Level(Isa);

impl Level {
    /// `isa`, if this machine has it.
    pub(crate) fn new(isa: Isa) -> Option<Self> {
        isa.is_available().then_some(Self(isa))
    }

    /// The fastest that this machine has.
    pub(crate) fn best() -> Self {
        Isa::ALL.into_iter().find_map(Self::new).unwrap_or(Self(Isa::Portable))
    }

    /// Which one it is.
    pub(crate) fn isa(self) -> Isa {
        self.0
    }

    /// Runs `kernel`, compiled for this instruction set.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) {
        match self.0 {
            // SAFETY: a level is made only after the machine was found to have its features.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => unsafe { avx512_bf16(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni | Isa::Avx512 => unsafe { avx512(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { avx2(kernel) },
            // Every program for aarch64 is compiled for NEON.
            #[cfg(target_arch = "aarch64")]
            Isa::NeonI8mm | Isa::NeonDot | Isa::Neon => kernel.run::<Neon>(),
            _ => kernel.run::<Portable>(),
        }
    }

    /// Rows of the tallest tile of integer dot products whose sums stay in registers.
    pub(crate) fn tallest(self) -> usize {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 | Isa::Avx512Vnni => Vnni::TALLEST,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => Avx512::TALLEST,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Avx2::TALLEST,
            #[cfg(target_arch = "aarch64")]
            Isa::NeonI8mm | Isa::NeonDot | Isa::Neon => Neon::TALLEST,
            _ => Portable::TALLEST,
        }
    }

    /// Runs `kernel`, compiled for this instruction set.
    #[inline]
    pub(crate) fn run_dots<K: DotKernel>(self, kernel: K) {
        match self.0 {
            // SAFETY: a level is made only after the machine was found to have its features.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 | Isa::Avx512Vnni => unsafe { dots_vnni(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { dots_avx512(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { dots_avx2(kernel) },
            // The dot products are instructions by themselves: nothing is inlined for their sake.
            #[cfg(target_arch = "aarch64")]
            Isa::NeonI8mm => kernel.run::<I8mm>(),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDot => kernel.run::<DotProd>(),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => kernel.run::<Neon>(),
            _ => kernel.run::<Portable>(),
        }
    }
}

/// A [`Kernel`] that uses integer dot products.
pub(crate) trait DotKernel {
    /// Does the work with the vectors of `S`.
    fn run<S: Dots>(self);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn dots_vnni<K: DotKernel>(kernel: K) {
    kernel.run::<Vnni>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
fn dots_avx512<K: DotKernel>(kernel: K) {
    kernel.run::<Avx512>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn dots_avx2<K: DotKernel>(kernel: K) {
    kernel.run::<Avx2>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
fn avx512_bf16<K: Kernel>(kernel: K) {
    kernel.run::<Bf16>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
fn avx512<K: Kernel>(kernel: K) {
    kernel.run::<Avx512>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn avx2<K: Kernel>(kernel: K) {
    kernel.run::<Avx2>();
}
