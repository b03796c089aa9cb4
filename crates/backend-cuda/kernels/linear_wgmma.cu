// Linears over many rows on Hopper: 128 outputs by 256 rows a block, whose two warpgroups multiply from
// shared memory. Rows are fetched two tiles ahead; a warp makes bf16 of the next tile of its stripe while
// the tensor cores are at this one, and the product of the last is waited for after that of this one began.
#include "linear.cuh"
#include "wgmma.cuh"

#define ROWS 256
#define STRIPES 8
#define STAGES 4
#define TILES_OF_A 3

// This warp's stripe of a tile, in the order of the rows' slots.
template <class W>
DEVICE void store(uint4 *a, const LinearArgs &args, const uint4 (&w)[W::WORDS], const Group (&of)[2]) {
    uint4 low[2], high[2];
    slots_of<W>(low, high, args, w, of);
    u32 row = warp_id() * STRIPE + lane_id() / 4, t = lane_id() % 4;
    for (u32 i = 0; i < 2; i++) {
        a[place(row, 2 * t + i)] = low[i];
        a[place(row + 8, 2 * t + i)] = high[i];
    }
}

template <class W> DEVICE void linear_wgmma(const LinearArgs &args) {
    SHARED(uint4, room);  // [TILES_OF_A][128][CHUNKS], [STAGES][ROWS][CHUNKS]
    constexpr u32 A = STRIPES * STRIPE * CHUNKS, B = ROWS * CHUNKS;
    uint4 *stages = room + TILES_OF_A * A;
    u32 at = blockIdx.y * STRIPES, p = 0, first_row = blockIdx.x * ROWS;
    for (u32 i = 1; i < args.part_count; i++)
        if (at >= args.parts[i].first_stripe) p = i;
    const Part &part = args.parts[p];
    u32 stripe = at - part.first_stripe + warp_id(), g = lane_id() / 4, t = lane_id() % 4;
    u64 first_tile = (u64)stripe * args.tiles;
    float sum[128] = {};
    for (u32 i = 0; i < STAGES - 2; i++) fetch<ROWS>(args, stages + i * B, first_row, i);
    // A tile's codes and scales are on their way while the one before it is made bf16.
    uint4 w[W::WORDS];
    Group of[2] = {};
    load_tile<W>(w, part.weight, first_tile);
    load_groups<W>(of, args, part, stripe, 0);
    store<W>(room, args, w, of);
    load_tile<W>(w, part.weight, first_tile + smaller(1, args.tiles - 1));
    load_groups<W>(of, args, part, stripe, smaller(1, args.tiles - 1));
    for (u32 tile = 0; tile < args.tiles; tile++) {
        wait_copies<STAGES - 3>();
        fence_proxy();
        sync_threads();
        // Everybody has waited for the products of two tiles ago: what they read may be written.
        const uint4 *a = room + tile % TILES_OF_A * A + warp_id() / 4 * 64 * CHUNKS, *b = stages + tile % STAGES * B;
        wgmma_fence(sum);
#pragma unroll
        for (u32 s = 0; s < TILE / 16; s++) wgmma_64x256(sum, a + 2 * s, b + 2 * s);
        wgmma_commit();
        fetch<ROWS>(args, stages + (tile + STAGES - 2) % STAGES * B, first_row, tile + STAGES - 2);
        if (tile + 1 < args.tiles) store<W>(room + (tile + 1) % TILES_OF_A * A, args, w, of);
        load_tile<W>(w, part.weight, first_tile + smaller(tile + 2, args.tiles - 1));
        load_groups<W>(of, args, part, stripe, smaller(tile + 2, args.tiles - 1));
        wgmma_wait<1>(sum);
    }
    wgmma_wait<0>(sum);
    wait_copies<0>();
#pragma unroll
    for (u32 c = 0; c < ROWS / 8; c++)
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32 out = stripe * STRIPE + g + i / 2 * 8, row = first_row + 8 * c + 2 * t + i % 2;
            if (out >= part.out_width || row >= args.rows) continue;
            float bias = part.bias ? part.bias[out] : 0.0f;
            part.out[(u64)row * part.out_width + out] = add_rn(sum[4 * c + i], bias);
        }
}

KERNEL(linear_wgmma_int4, LinearArgs, 256, 1) { HOPPER(linear_wgmma<Int4>(args);) }
KERNEL(linear_wgmma_int8, LinearArgs, 256, 1) { HOPPER(linear_wgmma<Int8>(args);) }
KERNEL(linear_wgmma_bf16, LinearArgs, 256, 1) { HOPPER(linear_wgmma<Bf16>(args);) }
