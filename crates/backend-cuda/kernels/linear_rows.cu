// Linears over few rows: every weight is read once, however many rows there are, and the time is that
// of reading it. A block computes some stripes of outputs, its warps share the inputs, and what they
// found is added in order of the warps. So a row's sums have one order, whatever rows are beside it.
#include "linear.cuh"

#define WARPS 8

// Scales and zeros of a block's stripes, as sums need them, where lanes read them: of what a warp has on its way
// from memory nothing is to wait for anything but its turn.
template <class W, u32 STRIPES> DEVICE void stage(const LinearArgs &args, const Part &part, u32 stripe, uint2 *room) {
    u32 count = STRIPES * args.groups * STRIPE, first = stripe * args.groups * STRIPE;
#pragma unroll 4
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) {
        float zero = part.zeros ? (float)part.zeros[first + i] : 0.0f;
        room[i] = uint2{W::shift(zero), float_bits(scale_at(args.scale_kind, part.scales, first + i))};
    }
}

// Asks for the tiles of a warp from `base` on, of all stripes.
template <class W, u32 STRIPES, u32 DEPTH>
DEVICE void load(uint4 (&w)[DEPTH][STRIPES][W::WORDS], const LinearArgs &args, const Part &part, u32 stripe, u32 base) {
#pragma unroll
    for (u32 d = 0; d < DEPTH; d++)
#pragma unroll
        for (u32 n = 0; n < STRIPES; n++)
            for (u32 i = 0; base + d * WARPS < args.tiles && i < W::WORDS; i++) {
                // In 16 bytes, of which a weight has fewer than 2^32.
                u32 tile = (stripe + n) * args.tiles + base;
                w[d][n][i] = load_early(part.weight + (tile * W::WORDS * WARP + lane_id()) + (d * WARPS * W::WORDS + i) * WARP);
            }
}

// Where scales and zeros come from, and whether groups end within tiles.
enum Grid { NONE, STAGED, STAGED_HALVES, STORED };

// Adds what a tile of a stripe gives for each eight rows.
template <class W, u32 COLUMNS, Grid GRID>
DEVICE void add_tile(float (&total)[COLUMNS][4], const uint4 (&w)[W::WORDS], const uint4 (&x)[COLUMNS][2],
                     const LinearArgs &args, const Part &part, const uint2 *room, u32 stripe, u32 n, u32 tile) {
    u32 g = lane_id() / 4;
    bool halves = GRID == STAGED_HALVES || (GRID == STORED && args.group_tiles == 0);
    float sum[COLUMNS][4] = {};
    Group of = {};
#pragma unroll
    for (u32 s = 0; s < 4; s++) {
        if (GRID != NONE && (s == 0 || (s == 2 && halves)))
            for (u32 i = 0; i < 2; i++) {
                u32 group = group_of(args, tile, s / 2), row = g + 8 * i;
                if (GRID == STORED) {
                    of.shift[i] = W::shift(load_zero(args, part, stripe + n, group, row));
                    of.scale[i] = load_scale(args, part, stripe + n, group, row);
                } else {
                    uint2 v = room[(n * args.groups + group) * STRIPE + row];
                    of.shift[i] = v.x, of.scale[i] = bits_float(v.y);
                }
            }
        u32 a[4];
        W::step(a, w, s, of.shift[0], of.shift[1]);
#pragma unroll
        for (u32 c = 0; c < COLUMNS; c++) {
            const uint4 &v = x[c][s / 2];
            u32 b[2] = {s % 2 ? v.z : v.x, s % 2 ? v.w : v.y};
            mma_bf16(sum[c], a, b);
        }
        if (GRID != NONE && (s == 3 || (s == 1 && halves)))
#pragma unroll
            for (u32 c = 0; c < COLUMNS; c++)
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    total[c][i] = fma_rn(sum[c][i], of.scale[i / 2], total[c][i]);
                    sum[c][i] = 0.0f;
                }
    }
    if (GRID == NONE)
#pragma unroll
        for (u32 c = 0; c < COLUMNS; c++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) total[c][i] = add_rn(total[c][i], sum[c][i]);
}

// The same for the tiles that a warp holds, from `base` on.
template <class W, u32 STRIPES, u32 COLUMNS, u32 DEPTH, Grid GRID>
DEVICE void add_tiles(float (&total)[STRIPES][COLUMNS][4], const uint4 (&w)[DEPTH][STRIPES][W::WORDS],
                      const LinearArgs &args, const Part &part, const uint2 *room, u32 stripe, u32 first_row, u32 base) {
    constexpr u32 ROWS_OF = DEPTH < 2 ? DEPTH : 2;  // tiles whose rows are held at once
    u32 g = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
    for (u32 first = 0; first < DEPTH; first += ROWS_OF) {
        uint4 x[ROWS_OF][COLUMNS][2];
#pragma unroll
        for (u32 d = 0; d < ROWS_OF; d++)
#pragma unroll
            for (u32 c = 0; c < COLUMNS; c++) {
                u32 row = first_row + 8 * c + g, before = (first + d) * WARPS;
                const uint4 *at = (const uint4 *)(args.x + (u64)row * args.stride + base * TILE + 16 * t);
                bool there = row < args.rows && base + before < args.tiles;
                uint4 none = {0, 0, 0, 0};
                x[d][c][0] = there ? at[before * TILE / 8] : none;
                x[d][c][1] = there ? at[before * TILE / 8 + 1] : none;
            }
#pragma unroll
        for (u32 d = 0; d < ROWS_OF; d++) {
            u32 tile = base + (first + d) * WARPS;
            if (tile < args.tiles)
#pragma unroll
                for (u32 n = 0; n < STRIPES; n++)
                    add_tile<W, COLUMNS, GRID>(total[n], w[first + d][n], x[d], args, part, room, stripe, n, tile);
        }
    }
}

// What a warp sums over its tiles: for each stripe and eight rows, a fragment of C. The weights of the next
// tiles are on their way while it computes with these; `w` has the first ones. They are in two places by turns
// where registers are left for the code of both.
template <class W, u32 STRIPES, u32 COLUMNS, u32 DEPTH, Grid GRID>
DEVICE void sum_tiles(float (&total)[STRIPES][COLUMNS][4], uint4 (&w)[DEPTH][STRIPES][W::WORDS], const LinearArgs &args,
                      const Part &part, const uint2 *room, u32 stripe, u32 first_row) {
    constexpr u32 TURN = WARPS * DEPTH;
    uint4 next[DEPTH][STRIPES][W::WORDS] = {};
    for (u32 base = warp_id(); base < args.tiles; base += TURN) {
        load<W, STRIPES, DEPTH>(next, args, part, stripe, base + TURN);
        // The assembler would move the loads to where they are needed, but not past this.
        sync_warp();
        add_tiles<W, STRIPES, COLUMNS, DEPTH, GRID>(total, w, args, part, room, stripe, first_row, base);
        if (COLUMNS > 2) {  // then DEPTH is 1
            for (u32 n = 0; n < STRIPES; n++)
                for (u32 i = 0; i < W::WORDS; i++) w[0][n][i] = next[0][n][i];
            continue;
        }
        base += TURN;
        load<W, STRIPES, DEPTH>(w, args, part, stripe, base + TURN);
        sync_warp();
        add_tiles<W, STRIPES, COLUMNS, DEPTH, GRID>(total, next, args, part, room, stripe, first_row, base);
    }
}

template <class W, u32 STRIPES, u32 COLUMNS, u32 DEPTH> DEVICE void linear_rows(const LinearArgs &args) {
    SHARED(float, sums);  // [WARPS][2][128], then shifts and scales, [STRIPES][groups][16], if staged
    // Blocks of other rows and the same weights come one after the other: memory is read once.
    u32 at = blockIdx.y * STRIPES, p = 0, first_row = blockIdx.x * COLUMNS * 8;
    for (u32 i = 1; i < args.part_count; i++)
        if (at >= args.parts[i].first_stripe) p = i;
    const Part &part = args.parts[p];
    u32 stripe = at - part.first_stripe;
    float total[STRIPES][COLUMNS][4] = {};
    uint2 *grid = (uint2 *)(sums + WARPS * 2 * 128);
    // Weights are asked for before the rows are made, which the kernels before this do.
    uint4 w[DEPTH][STRIPES][W::WORDS] = {};
    load<W, STRIPES, DEPTH>(w, args, part, stripe, warp_id());
    if (W::SCALED && args.staged) stage<W, STRIPES>(args, part, stripe, grid);
    wait_before();
    if (W::SCALED) sync_threads();
    if (!W::SCALED)
        sum_tiles<W, STRIPES, COLUMNS, DEPTH, NONE>(total, w, args, part, grid, stripe, first_row);
    else if (!args.staged)
        sum_tiles<W, STRIPES, COLUMNS, DEPTH, STORED>(total, w, args, part, grid, stripe, first_row);
    else if (args.group_tiles)
        sum_tiles<W, STRIPES, COLUMNS, DEPTH, STAGED>(total, w, args, part, grid, stripe, first_row);
    else
        sum_tiles<W, STRIPES, COLUMNS, DEPTH, STAGED_HALVES>(total, w, args, part, grid, stripe, first_row);
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
