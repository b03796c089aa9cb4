// Linears over few rows: every weight is read once, however many rows there are, and the time is that
// of reading it. A block computes some stripes of outputs, its warps share the inputs, and what they
// found is added in order of the warps. So a row's sums have one order, whatever rows are beside it.
#include "linear.cuh"

#define WARPS 8

// Scales and zeros of a block's stripes, where lanes read them: of what a warp has on its way from memory
// nothing is to wait for anything but its turn.
struct Grid {
    const void *scales;
    const s8 *zeros;  // or none
};

template <u32 STRIPES> DEVICE Grid stage(const LinearArgs &args, const Part &part, u32 stripe, uint4 *room) {
    u32 count = STRIPES * args.groups * STRIPE, size = args.scale_kind == SCALE_F32 ? 4 : 2;
    u64 first = (u64)stripe * args.groups * STRIPE;
    Grid grid = {(const u8 *)part.scales + first * size, part.zeros ? part.zeros + first : nullptr};
    if (!args.staged) return grid;
    u32 scales = count * size / 16, all = scales + (part.zeros ? count / 16 : 0);
    for (u32 i = threadIdx.x; i < all; i += blockDim.x)
        room[i] = i < scales ? ((const uint4 *)grid.scales)[i] : ((const uint4 *)grid.zeros)[i - scales];
    return Grid{room, part.zeros ? (const s8 *)(room + scales) : nullptr};
}

// The tiles of a warp from `base` on, of all stripes; the first ones before the rows are made.
template <class W, u32 STRIPES, u32 DEPTH, bool EARLY>
DEVICE void load(uint4 (&w)[DEPTH][STRIPES][W::WORDS], const LinearArgs &args, const Part &part, u32 stripe, u32 base) {
#pragma unroll
    for (u32 d = 0; d < DEPTH; d++)
#pragma unroll
        for (u32 n = 0; n < STRIPES; n++)
            for (u32 i = 0; base + d * WARPS < args.tiles && i < W::WORDS; i++) {
                u64 tile = (u64)(stripe + n) * args.tiles + base + d * WARPS;
                const uint4 *at = part.weight + (tile * W::WORDS + i) * WARP + lane_id();
                w[d][n][i] = EARLY ? load_early(at) : load_once(at);
            }
}

// Adds what a tile of a stripe gives for each eight rows.
template <class W, u32 COLUMNS>
DEVICE void add_tile(float (&total)[COLUMNS][4], const uint4 (&w)[W::WORDS], const uint4 (&x)[COLUMNS][2],
                     const LinearArgs &args, const Grid &grid, u32 n, u32 tile) {
    u32 g = lane_id() / 4;
    float sum[COLUMNS][4] = {}, zeros[2] = {}, scales[2] = {1.0f, 1.0f};
#pragma unroll
    for (u32 s = 0; s < 4; s++) {
        bool begins = s == 0 || (s == 2 && args.group_tiles == 0);
        if (W::SCALED && begins)
            for (u32 half = 0; half < 2; half++) {
                u32 at = (n * args.groups + group_of(args, tile, s / 2)) * STRIPE + g + 8 * half;
                zeros[half] = grid.zeros ? (float)grid.zeros[at] : 0.0f;
                scales[half] = scale_at(args.scale_kind, grid.scales, at);
            }
        u32 a[4];
        W::step(a, w, s, zeros[0], zeros[1]);
#pragma unroll
        for (u32 c = 0; c < COLUMNS; c++) {
            const uint4 &v = x[c][s / 2];
            u32 b[2] = {s % 2 ? v.z : v.x, s % 2 ? v.w : v.y};
            mma_bf16(sum[c], a, b);
        }
        bool ends = s == 3 || (s == 1 && args.group_tiles == 0);
        if (W::SCALED && ends)
#pragma unroll
            for (u32 c = 0; c < COLUMNS; c++)
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    total[c][i] = fma_rn(sum[c][i], scales[i / 2], total[c][i]);
                    sum[c][i] = 0.0f;
                }
    }
    if (!W::SCALED)
#pragma unroll
        for (u32 c = 0; c < COLUMNS; c++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) total[c][i] = add_rn(total[c][i], sum[c][i]);
}

// What a warp sums over its tiles: for each stripe and eight rows, a fragment of C. The weights of the next
// tiles are on their way while it computes with these; the first ones are asked for before the rows are made.
template <class W, u32 STRIPES, u32 COLUMNS, u32 DEPTH>
DEVICE void sum_tiles(const LinearArgs &args, const Part &part, u32 stripe, u32 first_row, uint4 *room,
                      float (&total)[STRIPES][COLUMNS][4]) {
    constexpr u32 ROWS_OF = COLUMNS == 1 ? DEPTH : DEPTH < 2 ? DEPTH : 2;  // tiles whose rows are held at once
    u32 g = lane_id() / 4, t = lane_id() % 4;
    uint4 w[DEPTH][STRIPES][W::WORDS] = {};
    load<W, STRIPES, DEPTH, true>(w, args, part, stripe, warp_id());
    Grid grid = {};
    if (W::SCALED) grid = stage<STRIPES>(args, part, stripe, room);
    wait_before();
    if (W::SCALED) sync_threads();
    for (u32 base = warp_id(); base < args.tiles; base += WARPS * DEPTH) {
        uint4 next[DEPTH][STRIPES][W::WORDS] = {};
        load<W, STRIPES, DEPTH, false>(next, args, part, stripe, base + WARPS * DEPTH);
#pragma unroll
        for (u32 first = 0; first < DEPTH; first += ROWS_OF) {
            uint4 x[ROWS_OF][COLUMNS][2];
#pragma unroll
            for (u32 d = 0; d < ROWS_OF; d++)
#pragma unroll
                for (u32 c = 0; c < COLUMNS; c++) {
                    u32 row = first_row + 8 * c + g, tile = base + (first + d) * WARPS;
                    const uint4 *at = (const uint4 *)(args.x + (u64)row * args.stride + tile * TILE + 16 * t);
                    bool there = row < args.rows && tile < args.tiles;
                    uint4 none = {0, 0, 0, 0};
                    x[d][c][0] = there ? at[0] : none;
                    x[d][c][1] = there ? at[1] : none;
                }
#pragma unroll
            for (u32 d = 0; d < ROWS_OF; d++) {
                u32 tile = base + (first + d) * WARPS;
                if (tile < args.tiles)
#pragma unroll
                    for (u32 n = 0; n < STRIPES; n++)
                        add_tile<W, COLUMNS>(total[n], w[first + d][n], x[d], args, grid, n, tile);
            }
        }
#pragma unroll
        for (u32 d = 0; d < DEPTH; d++)
#pragma unroll
            for (u32 n = 0; n < STRIPES; n++)
#pragma unroll
                for (u32 i = 0; i < W::WORDS; i++) w[d][n][i] = next[d][n][i];
    }
}

template <class W, u32 STRIPES, u32 COLUMNS, u32 DEPTH> DEVICE void linear_rows(const LinearArgs &args) {
    SHARED(float, sums);  // [WARPS][2][128], then what is staged
    // Blocks of other rows and the same weights come one after the other: memory is read once.
    u32 at = blockIdx.y * STRIPES, p = 0, first_row = blockIdx.x * COLUMNS * 8;
    for (u32 i = 1; i < args.part_count; i++)
        if (at >= args.parts[i].first_stripe) p = i;
    const Part &part = args.parts[p];
    u32 stripe = at - part.first_stripe;
    float total[STRIPES][COLUMNS][4] = {};
    sum_tiles<W, STRIPES, COLUMNS, DEPTH>(args, part, stripe, first_row, (uint4 *)(sums + WARPS * 2 * 128), total);
    u32 half = threadIdx.x / 128, e = threadIdx.x % 128;
#pragma unroll
    for (u32 pair = 0; pair < STRIPES * COLUMNS; pair += 2) {
#pragma unroll
        for (u32 n = 0; n < STRIPES; n++)
#pragma unroll
            for (u32 c = 0; c < COLUMNS; c++) {
                u32 which = n * COLUMNS + c;
                if (which != pair && which != pair + 1) continue;
                float *to = sums + (warp_id() * 2 + which - pair) * 128 + lane_id() * 4;
                *(float4 *)to = float4{total[n][c][0], total[n][c][1], total[n][c][2], total[n][c][3]};
            }
        sync_threads();
        u32 n = (pair + half) / COLUMNS, c = (pair + half) % COLUMNS;
        // Lane e / 4 held element e % 4 of its fragment.
        u32 out = (stripe + n) * STRIPE + e / 16 + e % 4 / 2 * 8;
        u32 row = first_row + 8 * c + e / 4 % 4 * 2 + e % 2;
        if (pair + half < STRIPES * COLUMNS && out < part.out_width && row < args.rows) {
            float sum = 0.0f;
            for (u32 w = 0; w < WARPS; w++) sum = add_rn(sum, sums[(w * 2 + half) * 128 + e]);
            if (part.bias) sum = add_rn(sum, part.bias[out]);
            part.out[(u64)row * part.out_width + out] = sum;
        }
        sync_threads();
    }
}

// For up to 8, 16, 32 and 64 rows a block. The more rows, the more outputs share what is read of them.
#define ROWS(name, W, DEPTH)                                                                             \
    EARLY_KERNEL(linear_rows_##name##_8, LinearArgs, 256, 2) { linear_rows<W, 1, 1, DEPTH>(args); }             \
    EARLY_KERNEL(linear_rows_##name##_16, LinearArgs, 256, 2) { linear_rows<W, 1, 2, DEPTH>(args); }            \
    EARLY_KERNEL(linear_rows_##name##_32, LinearArgs, 256, 1) { linear_rows<W, 4, 4, 1>(args); }                \
    EARLY_KERNEL(linear_rows_##name##_64, LinearArgs, 256, 1) { linear_rows<W, 2, 8, 1>(args); }

ROWS(int4, Int4, 4)
ROWS(int8, Int8, 2)
ROWS(bf16, Bf16, 1)
