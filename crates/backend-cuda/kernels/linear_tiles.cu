// Linears over many rows: 128 outputs by 128 rows a block. Rows go through shared memory in four
// stages; weights come straight to registers as fragments, where their scales are multiplied in.
#include "linear.cuh"

#define ROWS 128
#define STRIPES 8
#define STAGES 4

template <class W> DEVICE void linear_tiles(const LinearArgs &args) {
    SHARED(uint4, stages);  // [STAGES][ROWS][CHUNKS]
    u32 at = blockIdx.y * STRIPES, p = 0, first_row = blockIdx.x * ROWS;
    for (u32 i = 1; i < args.part_count; i++)
        if (at >= args.parts[i].first_stripe) p = i;
    const Part &part = args.parts[p];
    u32 g = lane_id() / 4, t = lane_id() % 4;
    u32 stripe = at - part.first_stripe + warp_id() % 4 * 2, rows = warp_id() / 4 * 64;
    float sum[2][8][4] = {};
    for (u32 i = 0; i < STAGES - 1; i++) fetch<ROWS>(args, stages + i * ROWS * CHUNKS, first_row, i);
    uint4 w[2][W::WORDS];
    for (u32 n = 0; n < 2; n++) load_tile<W>(w[n], part.weight, (u64)(stripe + n) * args.tiles);
    for (u32 tile = 0; tile < args.tiles; tile++) {
        wait_copies<STAGES - 2>();
        sync_threads();
        fetch<ROWS>(args, stages + (tile + STAGES - 1) % STAGES * ROWS * CHUNKS, first_row, tile + STAGES - 1);
        uint4 next[2][W::WORDS];
        for (u32 n = 0; n < 2; n++)
            load_tile<W>(next[n], part.weight, (u64)(stripe + n) * args.tiles + smaller(tile + 1, args.tiles - 1));
        const uint4 *stage = stages + tile % STAGES * ROWS * CHUNKS;
        Group of[2][2] = {};
        for (u32 n = 0; n < 2; n++) load_groups<W>(of[n], args, part, stripe + n, tile);
#pragma unroll
        for (u32 pair = 0; pair < 2; pair++) {
            u32 a[2][2][4];
#pragma unroll
            for (u32 n = 0; n < 2; n++)
#pragma unroll
                for (u32 s = 0; s < 2; s++) {
                    const Group &half = of[n][pair];
                    W::step(a[n][s], w[n], 2 * pair + s, half.shift[0], half.shift[1]);
                    if (W::SCALED)
                        for (u32 j = 0; j < 4; j++) a[n][s][j] = scaled(args.scale_kind, a[n][s][j], half.scale[j % 2]);
                }
#pragma unroll
            for (u32 c = 0; c < 8; c++) {
                uint4 x = stage[place(rows + 8 * c + g, 2 * t + pair)];
                u32 b[2][2] = {{x.x, x.y}, {x.z, x.w}};
#pragma unroll
                for (u32 s = 0; s < 2; s++)
#pragma unroll
                    for (u32 n = 0; n < 2; n++) mma_bf16(sum[n][c], a[n][s], b[s]);
            }
        }
        for (u32 n = 0; n < 2; n++)
            for (u32 i = 0; i < W::WORDS; i++) w[n][i] = next[n][i];
    }
    wait_copies<0>();
#pragma unroll
    for (u32 n = 0; n < 2; n++)
#pragma unroll
        for (u32 c = 0; c < 8; c++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                u32 out = (stripe + n) * STRIPE + g + i / 2 * 8, row = first_row + rows + 8 * c + 2 * t + i % 2;
                if (out >= part.out_width || row >= args.rows) continue;
                float bias = part.bias ? part.bias[out] : 0.0f;
                part.out[(u64)row * part.out_width + out] = add_rn(sum[n][c][i], bias);
            }
}

KERNEL(linear_tiles_int4, LinearArgs, 256, 1) { linear_tiles<Int4>(args); }
KERNEL(linear_tiles_int8, LinearArgs, 256, 1) { linear_tiles<Int8>(args); }
KERNEL(linear_tiles_bf16, LinearArgs, 256, 1) { linear_tiles<Bf16>(args); }
