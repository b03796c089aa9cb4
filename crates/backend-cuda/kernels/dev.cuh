// What kernels are written in: the only file with inline PTX. Under g++ the same names are host code
// (crates/cuda-emulator), so a kernel has one source.
//
// bf16 rows are kept in "slots": within each run of 64 columns, column 16 s + 4 t + i lies in slot
// 16 t + 4 s + i. So the 16 values that lane t of a quad needs for four steps of mma.m16n8k16 over
// those columns are 32 contiguous bytes. Rows are padded with zeros to whole runs.
#pragma once

#if defined(__CUDACC__)
#define DEVICE static __device__ __forceinline__
#define KERNEL(name, Args, threads, blocks) \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Args args)
#define SHARED(T, name)                                          \
    extern __shared__ __align__(1024) unsigned char shared_bytes[]; \
    T *name = reinterpret_cast<T *>(shared_bytes)
#else
#include "emulator.h"
#endif

typedef unsigned char u8;
typedef signed char s8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define WARP 32

// What Hopper alone has: empty for other architectures, which are not asked for it.
#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HOPPER(...) __VA_ARGS__
#else
#define HOPPER(...)
#endif

#if defined(__CUDACC__)

DEVICE void sync_threads() { __syncthreads(); }
DEVICE void sync_warp() { __syncwarp(); }
DEVICE u32 shuffle_xor(u32 value, u32 mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

DEVICE u32 float_bits(float x) { return __float_as_uint(x); }
DEVICE float bits_float(u32 x) { return __uint_as_float(x); }
DEVICE float fma_rn(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DEVICE float mul_rn(float a, float b) { return __fmul_rn(a, b); }
DEVICE float add_rn(float a, float b) { return __fadd_rn(a, b); }
DEVICE double fma_rn(double a, double b, double c) { return __fma_rn(a, b, c); }
DEVICE u32 leading_zeros(u32 x) { return (u32)__clz((int)x); }

// What this thread wrote, or saw written, before is seen by whoever sees what it writes after.
DEVICE void fence() { __threadfence(); }
// What was there before.
DEVICE u32 atomic_add(u32 *at, u32 value) { return atomicAdd(at, value); }

// 2^x, to about 2 units in the last place; results below 2^-126 are zero.
DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Two floats as bf16, the first in the low half, to the nearest, ties to even.
DEVICE u32 pack_bf16(float low, float high) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

// a * b + c on pairs of bf16, rounded once.
DEVICE u32 fma_bf16x2(u32 a, u32 b, u32 c) {
    u32 d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// Weights: read once by one block, so they are not to take the place of what is read again.
DEVICE uint4 load_once(const uint4 *at) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(at));
    return v;
}

// Sixteen bytes to shared memory, of which the first `bytes` are read and the others are zero.
DEVICE void copy_async(void *shared, const void *global, u32 bytes) {
    u32 at = (u32)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(at), "l"(global), "r"(bytes) : "memory");
}
DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING> DEVICE void wait_copies() {
    asm volatile("cp.async.wait_group %0;" :: "n"(PENDING) : "memory");
}

// c += a b, of 16 x 16 and 16 x 8 bf16.
DEVICE void mma_bf16(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// c += a b, of 16 x 32 and 32 x 8 int8; exact.
DEVICE void mma_s8(int (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// A matrix of bf16 in shared memory for wgmma: rows of 128 bytes, swizzled by chunks of 16 within each 1024,
// at which the matrix begins; `at` may be some whole steps of 16 columns further.
DEVICE u64 wgmma_matrix(const void *at) {
    u32 address = (u32)__cvta_generic_to_shared(at);
    return (u64)((address & 0x3ffffu) >> 4) | 1ull << 16 | (u64)(1024 >> 4) << 32 | 1ull << 62;
}
// What this thread wrote to shared memory is seen by what reads it without threads.
DEVICE void fence_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
template <u32 N> DEVICE void keep(float (&c)[N]) {
#pragma unroll
    for (u32 i = 0; i < N; i++) asm volatile("" : "+f"(c[i])::"memory");
}
template <u32 N> DEVICE void wgmma_fence(float (&c)[N]) {
    keep(c);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING, u32 N> DEVICE void wgmma_wait(float (&c)[N]) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
    keep(c);
}
// c += a b^T of a warpgroup, 64 rows of a and 256 of b, 16 columns; a warp has 16 of the 64 rows, and of
// each 8 of the 256 what mma.m16n8k16 has.
DEVICE void wgmma_64x256(float (&c)[128], const void *a, const void *b) {
    asm volatile("{ .reg .pred p; setp.eq.u32 p, 0, 0; "
                 "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
                 "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
                 "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
                 "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
                 "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
                 "%128, %129, p, 1, 1, 0, 0; }"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]),
                 "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]),
                 "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]),
                 "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31]),
                 "+f"(c[32]), "+f"(c[33]), "+f"(c[34]), "+f"(c[35]), "+f"(c[36]), "+f"(c[37]), "+f"(c[38]), "+f"(c[39]),
                 "+f"(c[40]), "+f"(c[41]), "+f"(c[42]), "+f"(c[43]), "+f"(c[44]), "+f"(c[45]), "+f"(c[46]), "+f"(c[47]),
                 "+f"(c[48]), "+f"(c[49]), "+f"(c[50]), "+f"(c[51]), "+f"(c[52]), "+f"(c[53]), "+f"(c[54]), "+f"(c[55]),
                 "+f"(c[56]), "+f"(c[57]), "+f"(c[58]), "+f"(c[59]), "+f"(c[60]), "+f"(c[61]), "+f"(c[62]), "+f"(c[63]),
                 "+f"(c[64]), "+f"(c[65]), "+f"(c[66]), "+f"(c[67]), "+f"(c[68]), "+f"(c[69]), "+f"(c[70]), "+f"(c[71]),
                 "+f"(c[72]), "+f"(c[73]), "+f"(c[74]), "+f"(c[75]), "+f"(c[76]), "+f"(c[77]), "+f"(c[78]), "+f"(c[79]),
                 "+f"(c[80]), "+f"(c[81]), "+f"(c[82]), "+f"(c[83]), "+f"(c[84]), "+f"(c[85]), "+f"(c[86]), "+f"(c[87]),
                 "+f"(c[88]), "+f"(c[89]), "+f"(c[90]), "+f"(c[91]), "+f"(c[92]), "+f"(c[93]), "+f"(c[94]), "+f"(c[95]),
                 "+f"(c[96]), "+f"(c[97]), "+f"(c[98]), "+f"(c[99]), "+f"(c[100]), "+f"(c[101]), "+f"(c[102]), "+f"(c[103]),
                 "+f"(c[104]), "+f"(c[105]), "+f"(c[106]), "+f"(c[107]), "+f"(c[108]), "+f"(c[109]), "+f"(c[110]), "+f"(c[111]),
                 "+f"(c[112]), "+f"(c[113]), "+f"(c[114]), "+f"(c[115]), "+f"(c[116]), "+f"(c[117]), "+f"(c[118]), "+f"(c[119]),
                 "+f"(c[120]), "+f"(c[121]), "+f"(c[122]), "+f"(c[123]), "+f"(c[124]), "+f"(c[125]), "+f"(c[126]), "+f"(c[127])
                 : "l"(wgmma_matrix(a)), "l"(wgmma_matrix(b)));
}

#else

// Where a wrapper is called is what a warp must agree on.
#define sync_threads() emulator::sync_threads(__LINE__)
#define sync_warp() emulator::sync_warp(__LINE__)
#define shuffle_xor(value, mask) emulator::shuffle_xor(value, mask, __LINE__)
#define copy_async(shared, global, bytes) emulator::copy_async(shared, global, bytes, __LINE__)
#define fence() emulator::fence()
#define atomic_add(at, value) emulator::atomic_add(at, value, __LINE__)
#define fence_proxy() emulator::fence_proxy()
#define wgmma_fence(c) emulator::wgmma_fence(__LINE__)
#define wgmma_64x256(c, a, b) emulator::wgmma_64x256(c, a, b, __LINE__)
#define wgmma_commit() emulator::wgmma_commit(__LINE__)
template <int PENDING, u32 N> DEVICE void wgmma_wait(float (&)[N]) { emulator::wgmma_wait(PENDING, __LINE__); }
#define commit_copies() emulator::commit_copies()
#define mma_bf16(c, a, b) emulator::mma_bf16(c, a, b, __LINE__)
#define mma_s8(c, a, b) emulator::mma_s8(c, a, b, __LINE__)
template <int PENDING> DEVICE void wait_copies() { emulator::wait_copies(PENDING); }

DEVICE u32 float_bits(float x) { u32 y; memcpy(&y, &x, 4); return y; }
DEVICE float bits_float(u32 x) { float y; memcpy(&y, &x, 4); return y; }
DEVICE float fma_rn(float a, float b, float c) { return fmaf(a, b, c); }
DEVICE double fma_rn(double a, double b, double c) { return fma(a, b, c); }
DEVICE u32 leading_zeros(u32 x) { return x ? (u32)__builtin_clz(x) : 32; }
DEVICE float mul_rn(float a, float b) { return a * b; }
DEVICE float add_rn(float a, float b) { return a + b; }
DEVICE float exp2_fast(float x) { return x < -126.0f ? 0.0f : exp2f(x); }
DEVICE u32 half_bf16(float x) {
    u32 bits = float_bits(x);
    return x != x ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}
DEVICE u32 pack_bf16(float low, float high) { return half_bf16(low) | half_bf16(high) << 16; }
DEVICE u32 fma_bf16x2(u32 a, u32 b, u32 c) {
    // One rounding: the product of two bf16 and its sum with a third are exact in double.
    auto one = [](u32 a, u32 b, u32 c) {
        double exact = (double)bits_float(a << 16) * bits_float(b << 16) + bits_float(c << 16);
        return half_bf16((float)exact);
    };
    return one(a & 0xffff, b & 0xffff, c & 0xffff) | one(a >> 16, b >> 16, c >> 16) << 16;
}
DEVICE uint4 load_once(const uint4 *at) { return *at; }

#endif

DEVICE float bf16_low(u32 pair) { return bits_float(pair << 16); }
DEVICE float bf16_high(u32 pair) { return bits_float(pair & 0xffff0000u); }
DEVICE float bf16_float(u16 bits) { return bits_float((u32)bits << 16); }

// The slot of a column; see above.
DEVICE u32 slot(u32 column) {
    return (column & ~63u) | (column >> 2 & 3u) << 4 | (column >> 4 & 3u) << 2 | (column & 3u);
}

DEVICE float shuffle_xor_float(float value, u32 mask) {
    return bits_float(shuffle_xor(float_bits(value), mask));
}

// The sum over a warp, in every lane: halves are added, so all lanes have the same bits.
DEVICE float warp_sum(float x) {
    for (u32 mask = 16; mask > 0; mask /= 2) x = add_rn(x, shuffle_xor_float(x, mask));
    return x;
}
DEVICE float warp_max(float x) {
    for (u32 mask = 16; mask > 0; mask /= 2) x = fmaxf(x, shuffle_xor_float(x, mask));
    return x;
}
// Whether this is the last of `blocks` that come here; it then sees what all of them wrote before. `arrived`
// is zero, and zero again afterwards. `room` is shared by the threads of the block.
DEVICE bool is_last(u32 *arrived, u32 blocks, u32 *room) {
    sync_threads();
    if (threadIdx.x == 0) {
        bool last = blocks == 1;
        if (!last) {
            fence();
            last = atomic_add(arrived, 1) + 1 == blocks;
            fence();
            if (last) *arrived = 0;
        }
        *room = last;
    }
    sync_threads();
    return *room;
}
DEVICE u32 lane_id() { return threadIdx.x % WARP; }
DEVICE u32 warp_id() { return threadIdx.x / WARP; }
DEVICE u32 smaller(u32 a, u32 b) { return a < b ? a : b; }
