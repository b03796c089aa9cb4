// What `optimize doctor` and `bench` ask of a GPU: how fast it reads and multiplies, and whether every
// wrapper of PTX does what its host body does.
#include "wgmma.cuh"

struct ProbeArgs {
    const uint4 *from;
    u32 *out;
    u64 count;
    u32 rounds, unused;
};
static_assert(sizeof(ProbeArgs) == 32, "as the host has it");

// Reads `count` times 16 bytes.
KERNEL(probe_read, ProbeArgs, 256, 4) {
    u64 step = (u64)gridDim.x * blockDim.x;
    u32 sum = 0;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < args.count; i += 8 * step) {
        uint4 v[8];
#pragma unroll
        for (u32 k = 0; k < 8; k++) v[k] = load_once(args.from + (i + k * step < args.count ? i + k * step : i));
#pragma unroll
        for (u32 k = 0; k < 8; k++) sum ^= v[k].x ^ v[k].y ^ v[k].z ^ v[k].w;
    }
    // Never so; but the compiler cannot know.
    if (sum == 0x12345678u && args.rounds == 0xffffffffu) *args.out = sum;
}

DEVICE void multiply(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma_bf16(c, a, b); }
DEVICE void multiply(int (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma_s8(c, a, b); }

// Eight products of tensor cores that do not wait for each other, `rounds` times.
template <class C> DEVICE void probe(const ProbeArgs &args) {
    C sums[8][4] = {}, sum = 0;
    u32 a[4] = {threadIdx.x, 0, threadIdx.x, 0}, b[2] = {threadIdx.x, 0};
    for (u32 round = 0; round < args.rounds; round++)
#pragma unroll
        for (u32 k = 0; k < 8; k++) multiply(sums[k], a, b);
    for (u32 k = 0; k < 8; k++) sum += sums[k][0] + sums[k][1] + sums[k][2] + sums[k][3];
    if (sum == C(12345)) *args.out = 1;
}

// 2 * 16 * 8 * 16 operations a product, and 2 * 16 * 8 * 32.
KERNEL(probe_bf16, ProbeArgs, 256, 2) { probe<float>(args); }
KERNEL(probe_s8, ProbeArgs, 256, 2) { probe<int>(args); }

struct WrapperArgs {
    const u32 *in;  // [32 lanes, 16]
    u32 *out;       // [32 lanes, 32]
};
static_assert(sizeof(WrapperArgs) == 16, "as the host has it");

// One warp; what goes in and comes out is laid out in doctor.rs.
KERNEL(try_wrappers, WrapperArgs, 32, 1) {
    SHARED(uint4, room);  // [2][32]
    const u32 *in = args.in + lane_id() * 16;
    u32 *out = args.out + lane_id() * 32;
    u32 a[4] = {in[0], in[1], in[2], in[3]}, b[2] = {in[4], in[5]};
    float c[4] = {bits_float(in[6]), bits_float(in[7]), bits_float(in[8]), bits_float(in[9])};
    mma_bf16(c, a, b);
    for (u32 i = 0; i < 4; i++) out[i] = float_bits(c[i]);
    int d[4] = {1, 2, 3, 4};
    mma_s8(d, a, b);
    for (u32 i = 0; i < 4; i++) out[4 + i] = (u32)d[i];
    float x = bits_float(in[10]), y = bits_float(in[11]);
    out[8] = pack_bf16(x, y);
    out[9] = fma_bf16x2(a[0], b[0], a[1]);
    out[10] = float_bits(exp2_fast(x));
    out[11] = shuffle_xor(in[12], 5);
    out[12] = float_bits(fma_rn(x, y, x));
    out[13] = float_bits(add_rn(mul_rn(x, x), y));
    uint4 once = load_once((const uint4 *)in);
    out[14] = once.x, out[15] = once.y, out[16] = once.z, out[17] = once.w;
    copy_async(room + lane_id(), in, 16);
    commit_copies();
    copy_async(room + 32 + lane_id(), in, 8);
    commit_copies();
    wait_copies<1>();
    sync_warp();
    uint4 first = room[lane_id() ^ 1];
    wait_copies<0>();
    sync_threads();
    uint4 second = room[32 + (lane_id() ^ 1)];
    out[18] = first.x, out[19] = first.w, out[20] = second.y, out[21] = second.z;
    out[22] = float_bits(warp_sum(x)), out[23] = float_bits(warp_max(x));
}

// As `probe`, by wgmma: two warpgroups of a block, 2 * 64 * 256 * 16 operations a product, four a round.
KERNEL(probe_wgmma, ProbeArgs, 256, 1) {
    HOPPER(
        SHARED(uint4, room);  // [64 + 256][8]
        for (u32 i = threadIdx.x; i < 320 * 8; i += blockDim.x) room[i] = uint4{i, 0, 0, 0};
        fence_proxy();
        sync_threads();
        float sum[128] = {};
        for (u32 round = 0; round < args.rounds; round++) {
            wgmma_fence(sum);
            for (u32 s = 0; s < 4; s++) wgmma_64x256(sum, room + 2 * s, room + 64 * 8 + 2 * s);
            wgmma_commit();
            wgmma_wait<1>(sum);
        }
        wgmma_wait<0>(sum);
        float all = 0.0f;
        for (u32 i = 0; i < 128; i++) all += sum[i];
        if (all == 12345.0f) *args.out = 1;
    )
}

struct WgmmaArgs {
    const uint4 *a, *b;  // [64, 64] and [256, 64] bf16
    float *out;          // [64, 256], or less
};
static_assert(sizeof(WgmmaArgs) == 24, "as the host has it");

DEVICE void product(float (&sum)[128], const uint4 *a, const u32 (&)[4], const uint4 *b) { wgmma_64x256(sum, a, b); }
DEVICE void product(float (&sum)[64], const uint4 *, const u32 (&a)[4], const uint4 *b) { wgmma_64x128(sum, a, b); }
DEVICE void product(float (&sum)[32], const uint4 *, const u32 (&a)[4], const uint4 *b) { wgmma_64x64(sum, a, b); }

// A product of one warpgroup, in which every element begins with its place in a thread.
template <u32 COLUMNS> DEVICE void try_wgmma(const WgmmaArgs &args) {
    SHARED(uint4, room);
    for (u32 i = threadIdx.x; i < 320 * 8; i += blockDim.x) {
        u32 row = i / 8;
        room[row * 8 + (i % 8 ^ row % 8)] = row < 64 ? args.a[i] : args.b[i - 64 * 8];
    }
    fence_proxy();
    sync_threads();
    u32 row = warp_id() * 16 + lane_id() / 4, t = lane_id() % 4, a[4][4];
#pragma unroll
    for (u32 s = 0; s < 4; s++)
#pragma unroll
        for (u32 j = 0; j < 4; j++) a[s][j] = ((const u32 *)args.a)[(row + j % 2 * 8) * 32 + 8 * s + t + j / 2 * 4];
    float sum[COLUMNS / 2];
#pragma unroll
    for (u32 i = 0; i < COLUMNS / 2; i++) sum[i] = (float)i;
    wgmma_fence(sum);
#pragma unroll
    for (u32 s = 0; s < 4; s++) product(sum, room + 2 * s, a[s], room + 64 * 8 + 2 * s);
    wgmma_commit();
    wgmma_wait<0>(sum);
#pragma unroll
    for (u32 i = 0; i < COLUMNS / 2; i++)
        args.out[(row + i / 2 % 2 * 8) * COLUMNS + i / 4 * 8 + 2 * t + i % 2] = sum[i];
}

KERNEL(try_wgmma_256, WgmmaArgs, 128, 1) { HOPPER(try_wgmma<256>(args);) }
KERNEL(try_wgmma_128, WgmmaArgs, 128, 1) { HOPPER(try_wgmma<128>(args);) }
KERNEL(try_wgmma_64, WgmmaArgs, 128, 1) { HOPPER(try_wgmma<64>(args);) }
