// What kernels are written in: the only file with inline PTX. Under g++ the same names are host code
// (crates/cuda-emulator), so a kernel has one source.
//
// bf16 rows are kept in "slots": within each run of 64 columns, column 16 s + 4 t + i lies in slot
// 16 t + 4 s + i. So the 16 values that lane t of a quad needs for four steps of mma.m16n8k16 over
// those columns are 32 contiguous bytes. Rows are padded with zeros to whole runs.
#pragma once

#if defined(__CUDACC__)
#define DEVICE static __device__ __forceinline__
// A kernel may begin while the one before it ends, and waits for that before it does anything; so its start is
// hidden. EARLY_KERNEL waits itself, once it has asked for what no kernel of a step writes.
#define KERNEL(name, Args, threads, blocks)                                                                  \
    DEVICE void name##_body(const Args &args);                                                               \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Args args) { \
        wait_before();                                                                                       \
        name##_body(args);                                                                                   \
    }                                                                                                        \
    DEVICE void name##_body(const Args &args)
#define EARLY_KERNEL(name, Args, threads, blocks) \
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

#if defined(__CUDACC__)

// Until the launch before this one is done and what it wrote is seen; then the next may begin. Older
// architectures begin a launch when the one before it has ended.
DEVICE void wait_before() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

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
// __threadfence() would order more than that, and take longer.
DEVICE void fence() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }
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

// (x & mask) | bits, which is one instruction if it is asked for: of two constants the compiler makes two.
DEVICE u32 and_or(u32 x, u32 mask, u32 bits) {
    u32 y;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(y) : "r"(x), "r"(mask), "r"(bits));
    return y;
}

// Weights: read once by one block, so they are not to take the place of what is read again.
DEVICE uint4 load_once(const uint4 *at) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(at));
    return v;
}

// The same, before a wait: the compiler moves what it takes for constant to where it is needed.
DEVICE uint4 load_early(const uint4 *at) {
    uint4 v;
    asm volatile("ld.global.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(at) : "memory");
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

#else

// Where a wrapper is called is what a warp must agree on.
#define sync_threads() emulator::sync_threads(__LINE__)
#define sync_warp() emulator::sync_warp(__LINE__)
#define shuffle_xor(value, mask) emulator::shuffle_xor(value, mask, __LINE__)
#define copy_async(shared, global, bytes) emulator::copy_async(shared, global, bytes, __LINE__)
#define fence() emulator::fence()
#define atomic_add(at, value) emulator::atomic_add(at, value, __LINE__)
#define EARLY_KERNEL KERNEL
// Emulated launches follow each other.
DEVICE void wait_before() {}
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
DEVICE u32 and_or(u32 x, u32 mask, u32 bits) { return (x & mask) | bits; }
DEVICE uint4 load_once(const uint4 *at) { return *at; }
DEVICE uint4 load_early(const uint4 *at) { return *at; }

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
