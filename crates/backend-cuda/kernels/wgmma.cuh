// Products of a warpgroup, four warps, which Hopper alone has: c += a b^T over 16 columns, of 64 rows of a and
// so many of b. They are under way until they are waited for; till then nobody touches what they read and add
// to. A warp has 16 of the 64 rows, and of each 8 of b's what mma.m16n8k16 has.
#pragma once
#include "dev.cuh"

// Nothing for other architectures, whose launchers do not ask for it.
#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HOPPER(...) __VA_ARGS__
#else
#define HOPPER(...)
#endif

#if defined(__CUDACC__)

// A matrix of bf16 in shared memory: rows of 128 bytes, swizzled by chunks of 16 within each 1024, at which the
// matrix begins; `at` may be some whole steps of 16 columns further.
DEVICE u64 wgmma_matrix(const void *at) {
    u32 address = (u32)__cvta_generic_to_shared(at);
    return (u64)((address & 0x3ffffu) >> 4) | 1ull << 16 | (u64)(1024 >> 4) << 32 | 1ull << 62;
}

// What this thread wrote to shared memory is seen by what reads it without threads.
DEVICE void fence_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// The compiler is not to move what it does with these over the wait or the fence beside it.
template <u32 N> DEVICE void keep(float (&c)[N]) {
#pragma unroll
    for (u32 i = 0; i < N; i++) asm volatile("" : "+f"(c[i])::"memory");
}
template <u32 N> DEVICE void wgmma_fence(float (&c)[N]) {
    keep(c);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most PENDING groups are under way.
template <int PENDING, u32 N> DEVICE void wgmma_wait(float (&c)[N]) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
    keep(c);
}

// The first registers of a product's sums, as they are named in it, and as the compiler is told of them.
#define NAMES_32 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15" \
    ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_64 NAMES_32 \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
    ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NAMES_128 NAMES_64 \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
    ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95" \
    ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
    ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define SUMS_8(i) \
    "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), "+f"(c[i + 4]), "+f"(c[i + 5]), "+f"(c[i + 6]), "+f"(c[i + 7])
#define SUMS_32(i) SUMS_8(i), SUMS_8(i + 8), SUMS_8(i + 16), SUMS_8(i + 24)
// Adds to what is there: the predicate is true.
#define WGMMA(n) "{ .reg .pred p; setp.eq.u32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {"

// Both in shared memory.
DEVICE void wgmma_64x256(float (&c)[128], const void *a, const void *b) {
    asm volatile(WGMMA(256) NAMES_128 "}, %128, %129, p, 1, 1, 0, 0; }"
                 : SUMS_32(0), SUMS_32(32), SUMS_32(64), SUMS_32(96)
                 : "l"(wgmma_matrix(a)), "l"(wgmma_matrix(b)));
}
// a in registers, as mma.m16n8k16 has it.
DEVICE void wgmma_64x128(float (&c)[64], const u32 (&a)[4], const void *b) {
    asm volatile(WGMMA(128) NAMES_64 "}, {%64, %65, %66, %67}, %68, p, 1, 1, 0; }"
                 : SUMS_32(0), SUMS_32(32)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(wgmma_matrix(b)));
}
DEVICE void wgmma_64x64(float (&c)[32], const u32 (&a)[4], const void *b) {
    asm volatile(WGMMA(64) NAMES_32 "}, {%32, %33, %34, %35}, %36, p, 1, 1, 0; }"
                 : SUMS_32(0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(wgmma_matrix(b)));
}

#else

#define fence_proxy() emulator::fence_proxy()
#define wgmma_fence(c) emulator::wgmma_fence(__LINE__)
#define wgmma_64x256(c, a, b) emulator::wgmma(c, a, b, __LINE__)
#define wgmma_64x128(c, a, b) emulator::wgmma(c, a, b, __LINE__)
#define wgmma_64x64(c, a, b) emulator::wgmma(c, a, b, __LINE__)
#define wgmma_commit() emulator::wgmma_commit(__LINE__)
template <int PENDING, u32 N> DEVICE void wgmma_wait(float (&)[N]) { emulator::wgmma_wait(PENDING, __LINE__); }

#endif
