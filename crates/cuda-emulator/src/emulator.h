// What a kernel sees when g++ compiles it instead of nvcc: threads are fibers, and whatever a warp or
// a block does together goes through the scheduler in emulator.cpp. See lib.rs for what it checks.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#define DEVICE static inline __attribute__((always_inline))

struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) float4 { float x, y, z, w; };

namespace emulator {

struct Dim { unsigned x, y, z; };

/// The thread that runs now.
struct Self { Dim thread, block, block_dim, grid_dim; unsigned lane; unsigned char *shared; };
extern thread_local Self *self __attribute__((tls_model("initial-exec")));

void sync_threads(int line);
void sync_warp(int line);
uint32_t shuffle_xor(uint32_t value, unsigned mask, int line);
void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int line);
void mma_s8(int (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int line);
void copy_async(void *shared, const void *global, unsigned bytes, int line);
void fence();
void fence_proxy();
void wgmma_fence(int line);
void wgmma_of(float *c, unsigned columns, const void *a, const uint32_t *registers, const void *b, int line);
template <unsigned N> inline void wgmma(float (&c)[N], const void *a, const void *b, int line) {
    wgmma_of(c, 2 * N, a, nullptr, b, line);
}
template <unsigned N> inline void wgmma(float (&c)[N], const uint32_t (&a)[4], const void *b, int line) {
    wgmma_of(c, 2 * N, nullptr, a, b, line);
}
void wgmma_commit(int line);
void wgmma_wait(unsigned pending, int line);
uint32_t atomic_add(uint32_t *at, uint32_t value, int line);
void commit_copies();
void wait_copies(unsigned pending);

}  // namespace emulator

#define threadIdx (emulator::self->thread)
#define blockIdx (emulator::self->block)
#define blockDim (emulator::self->block_dim)
#define gridDim (emulator::self->grid_dim)

// A kernel takes one struct. It can be called by name with the address of one.
#define KERNEL(name, Args, threads, blocks)                                  \
    static void name##_body(const Args &args);                               \
    extern "C" void name(const void *args) { name##_body(*(const Args *)args); } \
    extern "C" const unsigned name##_args = sizeof(Args);                     \
    static void name##_body(const Args &args)

// Shared memory is one array, as large as the launch says: so all of it is checked.
#define SHARED(T, name) T *name = reinterpret_cast<T *>(emulator::self->shared)
