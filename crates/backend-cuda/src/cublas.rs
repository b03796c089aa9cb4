//! Products of bf16 by NVIDIA's cuBLASLt, where it is installed.
#![expect(unsafe_code, reason = "cuBLASLt is C")]

use crate::device::{DeviceError, Product};
use cudarc::cublaslt::sys::{
    self, cublasLtMatmulDescAttributes_t as Attribute,
    cublasLtMatmulPreferenceAttributes_t as Preference,
};
use cudarc::driver::sys::CUstream;
use libloading::{Library, Symbol};
use std::ffi::{c_int, c_void};

/// What a CUDA installation calls it, the newest first.
const NAMES: [&str; 3] = ["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"];

// The same in all these versions.
const COMPUTE_F32: c_int = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F as c_int;
const F32: c_int = sys::cudaDataType::CUDA_R_32F as c_int;
const BF16: c_int = sys::cudaDataType::CUDA_R_16BF as c_int;
/// `CUBLAS_OP_T` of `cublas_api.h`, which cudarc has with cuBLAS alone.
const TRANSPOSED: c_int = 1;
const ATTRIBUTE_TRANSA: c_int = Attribute::CUBLASLT_MATMUL_DESC_TRANSA as c_int;
const ATTRIBUTE_EPILOGUE: c_int = Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE as c_int;
const ATTRIBUTE_BIAS: c_int = Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER as c_int;
const EPILOGUE_BIAS: c_int = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as c_int;
const PREFERENCE_WORKSPACE: c_int = Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES as c_int;
const PREFERENCE_ALIGNMENTS: [c_int; 4] = [
    Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES as c_int,
    Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES as c_int,
    Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES as c_int,
    Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES as c_int,
];

type Handle = *mut c_void;

/// The library, and its handle in one context.
#[derive(Debug)]
pub(crate) struct CublasLt {
    /// Never unloaded: it may have threads.
    library: &'static Library,
    handle: Handle,
}

// SAFETY: a handle may be used from any thread.
unsafe impl Send for CublasLt {}

/// `cublasLtMatmulHeuristicResult_t`. Not cudarc's: that has the status as an enum, which a library of
/// another version could fill with what is none of it.
#[repr(C)]
#[derive(Default)]
struct Found {
    algorithm: [u64; 8],
    workspace: usize,
    state: c_int,
    waves: f32,
    reserved: [c_int; 4],
}

/// Something of the library's that is given back.
struct Made<'l> {
    of: &'l CublasLt,
    destroy: &'static [u8],
    raw: Handle,
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        type Destroy = unsafe extern "C" fn(Handle) -> c_int;
        // SAFETY: the type is that of cublasLt.h, and `raw` is one of these. What fails here has failed
        // before.
        if let Ok(destroy) = unsafe { self.of.symbol::<Destroy>(self.destroy) } {
            let _ = unsafe { destroy(self.raw) };
        }
    }
}

impl CublasLt {
    /// In the context that is current; `None` if it is not installed.
    ///
    /// # Errors
    /// What it says.
    pub(crate) fn new() -> Result<Option<Self>, DeviceError> {
        Self::of(&NAMES)
    }

    fn of(names: &[&str]) -> Result<Option<Self>, DeviceError> {
        // SAFETY: it does nothing when it is loaded that could go wrong here.
        let library = names.iter().find_map(|name| unsafe { Library::new(*name) }.ok());
        let Some(library) = library else { return Ok(None) };
        let library: &'static Library = Box::leak(Box::new(library));
        let mut own = Self { library, handle: std::ptr::null_mut() };
        type Create = unsafe extern "C" fn(*mut Handle) -> c_int;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the type is that of cublasLt.h.
        let made = unsafe { own.symbol::<Create>(b"cublasLtCreate\0")?(&raw mut handle) };
        check("create", made)?;
        own.handle = handle;
        Ok(Some(own))
    }

    /// Starts a product on `stream`. The library sees matrices by columns: what we have as rows of a
    /// weight are columns of `A`, which is transposed.
    ///
    /// # Errors
    /// What it says.
    pub(crate) fn multiply(
        &self,
        product: &Product,
        workspace: (u64, usize),
        stream: CUstream,
    ) -> Result<(), DeviceError> {
        let &Product { weight, x, out, bias, rows, outputs, width } = product;
        let how = self.description(bias)?;
        let a = self.layout(BF16, [width, outputs])?;
        let b = self.layout(BF16, [width, rows])?;
        let d = self.layout(F32, [outputs, rows])?;
        let found = self.algorithm(&how, [&a, &b, &d], product, workspace.1)?;
        let (one, zero) = (1.0f32, 0.0f32);
        type Matmul = unsafe extern "C" fn(
            Handle,
            Handle,
            *const c_void,
            *const c_void,
            Handle,
            *const c_void,
            Handle,
            *const c_void,
            *const c_void,
            Handle,
            *mut c_void,
            Handle,
            *const c_void,
            *mut c_void,
            usize,
            *mut c_void,
        ) -> c_int;
        // SAFETY: the type is that of cublasLt.h; callers multiply within what they allocated.
        let done = unsafe {
            self.symbol::<Matmul>(b"cublasLtMatmul\0")?(
                self.handle,
                how.raw,
                (&raw const one).cast(),
                weight as *const c_void,
                a.raw,
                x as *const c_void,
                b.raw,
                (&raw const zero).cast(),
                out as *const c_void,
                d.raw,
                out as *mut c_void,
                d.raw,
                found.algorithm.as_ptr().cast(),
                workspace.0 as *mut c_void,
                workspace.1,
                stream.cast(),
            )
        };
        check("multiply", done)
    }

    /// What the library thinks best for matrices that lie so, with so much to work in.
    fn algorithm(
        &self,
        how: &Made<'_>,
        [a, b, d]: [&Made<'_>; 3],
        product: &Product,
        workspace: usize,
    ) -> Result<Found, DeviceError> {
        type Create = unsafe extern "C" fn(*mut Handle) -> c_int;
        type Find = unsafe extern "C" fn(
            Handle,
            Handle,
            Handle,
            Handle,
            Handle,
            Handle,
            Handle,
            c_int,
            *mut Found,
            *mut c_int,
        ) -> c_int;
        // SAFETY: the type is that of cublasLt.h.
        let create = unsafe { self.symbol::<Create>(b"cublasLtMatmulPreferenceCreate\0")? };
        // SAFETY: as above.
        let preference =
            self.make(b"cublasLtMatmulPreferenceDestroy\0", |raw| unsafe { create(raw) })?;
        let set = b"cublasLtMatmulPreferenceSetAttribute\0";
        self.set(set, &preference, PREFERENCE_WORKSPACE, &workspace)?;
        // As far as each place is known to be aligned.
        let aligned = |at: u64| 1u32 << at.trailing_zeros().min(8);
        let places = [product.weight, product.x, product.out, product.out];
        for (name, at) in PREFERENCE_ALIGNMENTS.into_iter().zip(places) {
            self.set(set, &preference, name, &aligned(at))?;
        }
        let (mut found, mut count) = (Found::default(), 0);
        // SAFETY: the type is that of cublasLt.h, which writes one result and one count.
        let done = unsafe {
            self.symbol::<Find>(b"cublasLtMatmulAlgoGetHeuristic\0")?(
                self.handle,
                how.raw,
                a.raw,
                b.raw,
                d.raw,
                d.raw,
                preference.raw,
                1,
                &raw mut found,
                &raw mut count,
            )
        };
        check("choose", done)?;
        check("choose", if count == 1 { found.state } else { -1 })?;
        Ok(found)
    }

    /// How to multiply: `A` transposed, sums in `f32`, a bias an output if there is one.
    fn description(&self, bias: u64) -> Result<Made<'_>, DeviceError> {
        type Create = unsafe extern "C" fn(*mut Handle, c_int, c_int) -> c_int;
        // SAFETY: the type is that of cublasLt.h.
        let create = unsafe { self.symbol::<Create>(b"cublasLtMatmulDescCreate\0")? };
        // SAFETY: as above.
        let how = self
            .make(b"cublasLtMatmulDescDestroy\0", |raw| unsafe { create(raw, COMPUTE_F32, F32) })?;
        let set = b"cublasLtMatmulDescSetAttribute\0";
        self.set(set, &how, ATTRIBUTE_TRANSA, &TRANSPOSED)?;
        if bias != 0 {
            self.set(set, &how, ATTRIBUTE_EPILOGUE, &EPILOGUE_BIAS)?;
            self.set(set, &how, ATTRIBUTE_BIAS, &bias)?;
        }
        Ok(how)
    }

    fn set<T: Copy>(
        &self,
        function: &[u8],
        of: &Made<'_>,
        name: c_int,
        value: &T,
    ) -> Result<(), DeviceError> {
        type Set = unsafe extern "C" fn(Handle, c_int, *const c_void, usize) -> c_int;
        let from = std::ptr::from_ref(value).cast();
        // SAFETY: the type is that of cublasLt.h, which reads as many bytes as there are.
        let set = unsafe {
            let set = self.symbol::<Set>(function)?;
            set(of.raw, name, from, size_of::<T>())
        };
        check("set an attribute", set)
    }

    /// A matrix by columns without gaps.
    fn layout(&self, dtype: c_int, [rows, columns]: [usize; 2]) -> Result<Made<'_>, DeviceError> {
        type Create = unsafe extern "C" fn(*mut Handle, c_int, u64, u64, i64) -> c_int;
        // SAFETY: the type is that of cublasLt.h.
        let create = unsafe { self.symbol::<Create>(b"cublasLtMatrixLayoutCreate\0")? };
        // SAFETY: as above.
        self.make(b"cublasLtMatrixLayoutDestroy\0", |raw| unsafe {
            create(raw, dtype, rows as u64, columns as u64, rows as i64)
        })
    }

    /// What `create` makes, to be given back by `destroy`.
    fn make(
        &self,
        destroy: &'static [u8],
        create: impl FnOnce(*mut Handle) -> c_int,
    ) -> Result<Made<'_>, DeviceError> {
        let mut raw = std::ptr::null_mut();
        check("describe", create(&raw mut raw))?;
        Ok(Made { of: self, destroy, raw })
    }

    /// A function of the library.
    ///
    /// # Safety
    /// `T` must be its type.
    unsafe fn symbol<T>(&self, name: &[u8]) -> Result<Symbol<'_, T>, DeviceError> {
        // SAFETY: as the caller says.
        unsafe { self.library.get(name) }
            .map_err(|error| DeviceError::Driver { what: format!("cuBLASLt: {error}") })
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        type Destroy = unsafe extern "C" fn(Handle) -> c_int;
        if self.handle.is_null() {
            return;
        }
        // SAFETY: the type is that of cublasLt.h. What fails here has failed before.
        if let Ok(destroy) = unsafe { self.symbol::<Destroy>(b"cublasLtDestroy\0") } {
            let _ = unsafe { destroy(self.handle) };
        }
    }
}

fn check(what: &str, status: c_int) -> Result<(), DeviceError> {
    match status {
        0 => Ok(()),
        _ => Err(DeviceError::Driver { what: format!("cuBLASLt: {what}: status {status}") }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;
    use half::bf16;

    /// What of cuBLASLt is called, on the host's memory; counts what is not given back.
    const FAKE: &str = r#"
        #include <cstddef>
        #include <cstdint>
        #include <cstring>
        struct Desc { int compute, scale, transa = 0, epilogue = 1; const float *bias = nullptr; };
        struct Layout { int type; uint64_t rows, cols; int64_t ld; };
        struct Preference { size_t workspace = 0; uint32_t alignments[4] = {0, 0, 0, 0}; };
        static int open = 0;
        static float wide(const uint16_t *x) { uint32_t b = (uint32_t)*x << 16; float f; memcpy(&f, &b, 4); return f; }
        extern "C" {
        int left_open() { return open; }
        int cublasLtCreate(void **h) { *h = new int(1); open++; return 0; }
        int cublasLtDestroy(void *h) { delete (int *)h; open--; return 0; }
        int cublasLtMatmulDescCreate(void **d, int compute, int scale) { *d = new Desc{compute, scale}; open++; return 0; }
        int cublasLtMatmulDescDestroy(void *d) { delete (Desc *)d; open--; return 0; }
        int cublasLtMatmulDescSetAttribute(void *raw, int name, const void *from, size_t bytes) {
            Desc *d = (Desc *)raw;
            if (name == 3 && bytes == 4) memcpy(&d->transa, from, 4);
            else if (name == 7 && bytes == 4) memcpy(&d->epilogue, from, 4);
            else if (name == 8 && bytes == 8) memcpy(&d->bias, from, 8);
            else return 7;
            return 0;
        }
        int cublasLtMatrixLayoutCreate(void **l, int type, uint64_t rows, uint64_t cols, int64_t ld) {
            *l = new Layout{type, rows, cols, ld}; open++; return 0;
        }
        int cublasLtMatrixLayoutDestroy(void *l) { delete (Layout *)l; open--; return 0; }
        int cublasLtMatmulPreferenceCreate(void **p) { *p = new Preference; open++; return 0; }
        int cublasLtMatmulPreferenceDestroy(void *p) { delete (Preference *)p; open--; return 0; }
        int cublasLtMatmulPreferenceSetAttribute(void *raw, int name, const void *from, size_t bytes) {
            Preference *p = (Preference *)raw;
            if (name == 1 && bytes == 8) memcpy(&p->workspace, from, 8);
            else if (name >= 5 && name <= 8 && bytes == 4) memcpy(&p->alignments[name - 5], from, 4);
            else return 7;
            return 0;
        }
        int cublasLtMatmulAlgoGetHeuristic(void *h, void *, void *, void *, void *, void *, void *raw, int asked,
                                           void *to, int *count) {
            Preference *p = (Preference *)raw;
            if (!h || asked != 1 || !p->workspace) return 7;
            for (uint32_t a : p->alignments) if (a < 2 || a > 256 || a & (a - 1)) return 7;
            memset(to, 0, 96);
            ((uint64_t *)to)[0] = 42, *count = 1;
            return 0;
        }
        int cublasLtMatmul(void *h, void *desc, const void *alpha, const void *A, void *la, const void *B, void *lb,
                           const void *beta, const void *C, void *lc, void *D, void *ld, const void *algo,
                           void *room, size_t bytes, void *stream) {
            Desc &d = *(Desc *)desc; Layout &a = *(Layout *)la, &b = *(Layout *)lb, &c = *(Layout *)ld;
            if (!h || d.compute != 68 || d.scale != 0 || d.transa != 1 || a.type != 14 || b.type != 14 || c.type != 0) return 7;
            if (a.rows != b.rows || c.rows != a.cols || c.cols != b.cols || lc != ld || C != D || *(const uint64_t *)algo != 42) return 7;
            if (*(const float *)alpha != 1 || *(const float *)beta != 0 || !bytes || !room || stream != (void *)77) return 7;
            for (uint64_t m = 0; m < c.rows; m++) for (uint64_t n = 0; n < c.cols; n++) {
                float sum = d.epilogue == 4 ? d.bias[m] : 0;
                for (uint64_t k = 0; k < a.rows; k++)
                    sum += wide((const uint16_t *)A + m * a.ld + k) * wide((const uint16_t *)B + n * b.ld + k);
                ((float *)D)[n * c.ld + m] = sum;
            }
            return 0;
        }
        }
    "#;

    #[test]
    fn products_are_asked_for_as_cublaslt_takes_them() {
        let Some((_folder, library)) = fake::library("products by cuBLASLt", FAKE) else { return };
        let names = ["no-such-library.so", library.to_str().unwrap()];
        assert!(CublasLt::of(&names[..1]).unwrap().is_none());
        let cublas = CublasLt::of(&names).unwrap().unwrap();
        let bits = |x: &[f32]| x.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>();
        let (weight, x) = (bits(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), bits(&[1.0, 0.5, 2.0, -1.0]));
        let (bias, mut out) = ([10.0f32, 20.0, 30.0], [0.0f32; 6]);
        let at = |x: *const bf16| x as u64;
        let mut product = Product {
            weight: at(weight.as_ptr()),
            x: at(x.as_ptr()),
            out: out.as_mut_ptr() as u64,
            bias: 0,
            rows: 2,
            outputs: 3,
            width: 2,
        };
        let stream = 77 as CUstream;
        cublas.multiply(&product, (1, 1), stream).unwrap();
        assert_eq!(out, [2.0, 5.0, 8.0, 0.0, 2.0, 4.0]);
        product.bias = bias.as_ptr() as u64;
        cublas.multiply(&product, (1, 1), stream).unwrap();
        assert_eq!(out, [12.0, 25.0, 38.0, 10.0, 22.0, 34.0]);
        let error = cublas.multiply(&product, (0, 1), stream).unwrap_err();
        assert!(error.to_string().contains("cuBLASLt: multiply: status 7"), "{error}");
        // SAFETY: the fake defines it so.
        let open = || unsafe {
            let all = cublas.symbol::<unsafe extern "C" fn() -> c_int>(b"left_open\0").unwrap();
            all()
        };
        assert_eq!(open(), 1, "only the handle is kept");
    }
}
