// Kernels with one bug each, and the same without it. What finds which is in ../bugs.rs.
#include "wgmma.cuh"

struct Args { const float *in; float *out; u32 n, unused; };

// Each thread reads what its neighbour wrote.
template <bool BARRIER> DEVICE void neighbour(const Args &args) {
    SHARED(float, x);
    x[threadIdx.x] = args.in[threadIdx.x];
    if (BARRIER) sync_threads();
    args.out[threadIdx.x] = x[(threadIdx.x + 1) % blockDim.x];
}
KERNEL(neighbour, Args, 64, 1) { neighbour<true>(args); }
KERNEL(neighbour_without_barrier, Args, 64, 1) { neighbour<false>(args); }

// A buffer that is filled again while slower threads may still read it.
template <bool BARRIER> DEVICE void refill(const Args &args) {
    SHARED(float, x);
    float sum = 0.0f;
    for (u32 i = 0; i < 4; i++) {
        x[threadIdx.x] = args.in[threadIdx.x] + i;
        sync_threads();
        sum += x[(threadIdx.x + 33) % blockDim.x];
        if (BARRIER) sync_threads();
    }
    args.out[threadIdx.x] = sum;
}
KERNEL(refill, Args, 64, 1) { refill<true>(args); }
KERNEL(refill_without_barrier, Args, 64, 1) { refill<false>(args); }

// Two copies in flight; the second is needed at the end.
template <int PENDING> DEVICE void copies(const Args &args) {
    SHARED(float, x);
    u32 i = threadIdx.x * 4;
    for (u32 half = 0; half < 2; half++) {
        copy_async(x + half * 256 + i, args.in + half * 256 + i, 16);
        commit_copies();
    }
    wait_copies<PENDING>();
    sync_threads();
    for (u32 k = threadIdx.x; k < 512; k += blockDim.x) args.out[k] = x[511 - k];
    wait_copies<0>();
}
KERNEL(copies, Args, 64, 1) { copies<0>(args); }
KERNEL(copies_with_weak_wait, Args, 64, 1) { copies<1>(args); }

template <u32 MORE> DEVICE void doubled(const Args &args) {
    for (u32 i = threadIdx.x; i < args.n + MORE; i += blockDim.x) args.out[i] = 2.0f * args.in[i];
}
KERNEL(doubled, Args, 64, 1) { doubled<0>(args); }
KERNEL(doubled_off_by_one, Args, 64, 1) { doubled<1>(args); }

// Four floats at a time, from an address that is or is not a multiple of 16 bytes.
template <u32 FIRST> DEVICE void vectors(const Args &args) {
    float4 v = *(const float4 *)(args.in + FIRST + 4 * threadIdx.x);
    args.out[threadIdx.x] = v.x + v.y + v.z + v.w;
}
KERNEL(vectors, Args, 8, 1) { vectors<4>(args); }
KERNEL(vectors_misaligned, Args, 8, 1) { vectors<2>(args); }

// Two blocks, one place.
KERNEL(blocks_apart, Args, 64, 1) { if (threadIdx.x == 0) args.out[blockIdx.x] = args.in[blockIdx.x]; }
KERNEL(blocks_collide, Args, 64, 1) { if (threadIdx.x == 0) args.out[0] = args.in[blockIdx.x]; }

// The last of two blocks sums what both wrote.
template <bool RELEASE, bool ACQUIRE, bool BARRIER> DEVICE void last(const Args &args) {
    SHARED(u32, room);
    u32 *arrived = (u32 *)args.out;  // all ones at first
    float *parts = args.out + 1;
    parts[blockIdx.x * 64 + threadIdx.x] = args.in[blockIdx.x * 64 + threadIdx.x];
    if (BARRIER) sync_threads();
    if (threadIdx.x == 0) {
        if (RELEASE) fence();
        *room = atomic_add(arrived, 1) == 0;
        if (ACQUIRE) fence();
    }
    sync_threads();
    if (*room) args.out[256 + threadIdx.x] = parts[threadIdx.x] + parts[64 + threadIdx.x];
}
KERNEL(blocks_last, Args, 64, 1) { last<true, true, true>(args); }
KERNEL(blocks_last_without_release, Args, 64, 1) { last<false, true, true>(args); }
KERNEL(blocks_last_without_acquire, Args, 64, 1) { last<true, false, true>(args); }
KERNEL(blocks_last_without_barrier, Args, 64, 1) { last<true, true, false>(args); }

// A product of a warpgroup, of what its threads wrote; and what they write while it is under way.
template <bool PUBLISHED, bool WAITED> DEVICE void product(const Args &args) {
    SHARED(uint4, room);
    for (u32 i = threadIdx.x; i < 320 * 8; i += blockDim.x) room[i] = ((const uint4 *)args.in)[i % 128];
    if (PUBLISHED) fence_proxy();
    sync_threads();
    float sum[128] = {};
    wgmma_fence(sum);
    wgmma_64x256(sum, room, room + 64 * 8);
    wgmma_commit();
    if (WAITED) wgmma_wait<0>(sum);
    sync_threads();
    room[threadIdx.x] = uint4{0, 0, 0, 0};
    wgmma_wait<0>(sum);
    for (u32 i = 0; i < 4; i++) args.out[4 * threadIdx.x + i] = sum[i];
}
KERNEL(product_of_four, Args, 128, 1) { product<true, true>(args); }
KERNEL(product_unpublished, Args, 128, 1) { product<false, true>(args); }
KERNEL(product_overwritten, Args, 128, 1) { product<true, false>(args); }

KERNEL(barrier_of_all, Args, 64, 1) {
    sync_threads();
    args.out[threadIdx.x] = args.in[threadIdx.x];
}
KERNEL(barrier_of_some, Args, 64, 1) {
    if (threadIdx.x < 40) sync_threads();
    args.out[threadIdx.x] = args.in[threadIdx.x];
}

KERNEL(warp_whole, Args, 64, 1) {
    float sum = warp_sum(args.in[threadIdx.x]);
    args.out[threadIdx.x] = sum;
}
KERNEL(warp_parted, Args, 64, 1) {
    u32 bits = float_bits(args.in[threadIdx.x]);
    if (threadIdx.x % 2) bits = shuffle_xor(bits, 1);
    else bits = shuffle_xor(bits, 2);
    args.out[threadIdx.x] = bits_float(bits);
}
