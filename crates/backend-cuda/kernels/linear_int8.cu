// Int8 weights times activations that are rounded to int8 on the fly, on integer tensor cores. Rounding
// and the order of sums are those of the default class (backend::numerics::blocks), so the results have
// the bits of the CPU's.
#include "linear.cuh"

#define ROUND 12582912.0f  // adding and subtracting 1.5 * 2^23 rounds to the nearest integer

struct RoundArgs {
    const float *x;  // [rows, width]
    s8 *codes;       // [rows, stride] in slots
    s8 *rest;        // the same: what an outlier hides (numerics::quantize_rest)
    float *scales;   // [rows, blocks]
    float *finer;    // the same; 0 where there is no rest
    int *sums;       // [rows, blocks, 2]: of the codes, and of the rest
    u32 rows, width, stride, blocks, block, unused;
};
static_assert(sizeof(RoundArgs) == 72, "as the host has it");

// A warp a row and block of columns.
KERNEL(round_int8, RoundArgs, 128, 8) {
    u32 row = blockIdx.x, b = blockIdx.y * 4 + warp_id();
    if (b >= args.blocks) return;
    u32 begin = b * args.block, end = smaller(begin + args.block, args.width);
    const float *x = args.x + (u64)row * args.width;
    float top = 0.0f;
    bool bad = false;
    for (u32 i = begin + lane_id(); i < end; i += WARP) {
        float v = fabsf(x[i]);
        bad |= !(v < bits_float(0x7f800000u));
        top = v > top ? v : top;
    }
    bad = warp_max(bad ? 1.0f : 0.0f) > 0.0f;
    top = warp_max(top);
    bool none = bad || top <= 1e-30f;
    float scale = bad ? bits_float(0x7fc00000u) : none ? 0.0f : top / 127.0f;
    float inverse = none ? 0.0f : 127.0f / top;
    float lost = 0.0f;
    for (u32 i = begin + lane_id(); i < end; i += WARP) {
        int code = none ? 0 : (s8)float_bits(add_rn(mul_rn(x[i], inverse), ROUND));
        lost += x[i] != 0.0f && code <= 2 && code >= -2 ? 1.0f : 0.0f;
    }
    bool again = scale > 0.0f && 2.0f * warp_sum(lost) > (float)(end - begin);
    float finer = again ? scale / 252.0f : 0.0f, finer_inverse = again ? 252.0f / scale : 0.0f;
    float sum = 0.0f, rest_sum = 0.0f;
    // Past the end there are zeros, up to the run of slots that is read.
    u32 padded = b + 1 == args.blocks ? args.stride : end;
    for (u32 i = begin + lane_id(); i < padded; i += WARP) {
        int code = 0, rest = 0;
        if (i < end && !none) {
            code = (s8)float_bits(add_rn(mul_rn(x[i], inverse), ROUND));
            float left = fma_rn((float)-code, scale, x[i]);
            if (again) rest = (s8)float_bits(add_rn(mul_rn(left, finer_inverse), ROUND));
        }
        u64 at = (u64)row * args.stride + slot(i);
        args.codes[at] = (s8)code;
        args.rest[at] = (s8)rest;
        sum += (float)code, rest_sum += (float)rest;
    }
    sum = warp_sum(sum), rest_sum = warp_sum(rest_sum);
    if (lane_id() == 0) {
        u64 at = (u64)row * args.blocks + b;
        args.scales[at] = scale;
        args.finer[at] = finer;
        args.sums[2 * at] = (int)sum;
        args.sums[2 * at + 1] = (int)rest_sum;
    }
}

struct Int8Args {
    Part part;
    const s8 *codes, *rest;
    const float *scales, *finer;
    const int *sums;
    u32 rows, stride, tiles, groups;
    u32 blocks, block_halves;  // halves of a tile, 32 inputs each, that share a scale of a row
    u32 group_blocks, scale_kind;
};
static_assert(sizeof(Int8Args) == 120, "as the host has it");

#define ROWS 64
#define COLUMNS 4

// Adds what a block of columns gives: one fused multiply-add of its exact sum.
DEVICE void take_in(const Int8Args &args, float (&total)[COLUMNS][4], int (&sum)[COLUMNS][4], u32 b,
                    u32 stripe, u32 first_row, const float *row_scales, u32 which) {
    u32 g = lane_id() / 4, t = lane_id() % 4;
    u32 group = smaller(b / args.group_blocks, args.groups - 1);
    for (u32 c = 0; c < COLUMNS; c++)
        for (u32 i = 0; i < 4; i++) {
            u32 row = first_row + 8 * c + 2 * t + i % 2;
            int exact = sum[c][i];
            sum[c][i] = 0;
            if (row >= args.rows) continue;
            u64 at = (u64)row * args.blocks + b;
            float scale = row_scales[at];
            if (which == 1 && !(scale > 0.0f)) continue;
            u32 out = g + i / 2 * 8;
            if (args.part.zeros) exact -= (int)load_zero(args, args.part, stripe, group, out) * args.sums[2 * at + which];
            float both = mul_rn(scale, load_scale(args, args.part, stripe, group, out));
            total[c][i] = fma_rn((float)exact, both, total[c][i]);
        }
}

// 64 outputs by 64 rows: four warps by stripes, two by rows.
KERNEL(linear_int8, Int8Args, 256, 1) {
    u32 g = lane_id() / 4, t = lane_id() % 4;
    u32 stripe = blockIdx.y * 4 + warp_id() % 4, first_row = blockIdx.x * ROWS + warp_id() / 4 * 32;
    float total[COLUMNS][4] = {};
    int sum[COLUMNS][4] = {}, rest[COLUMNS][4] = {};
    u32 begun = 0, b = 0;
    for (u32 tile = 0; tile < args.tiles; tile++) {
        uint4 w[2], x[COLUMNS], y[COLUMNS], none = {0, 0, 0, 0};
        load_tile<Int8>(w, args.part.weight, (u64)stripe * args.tiles + tile);
        for (u32 c = 0; c < COLUMNS; c++) {
            u32 row = first_row + 8 * c + g;
            u64 at = (u64)row * args.stride + tile * TILE + 16 * t;
            x[c] = row < args.rows ? *(const uint4 *)(args.codes + at) : none;
            y[c] = row < args.rows ? *(const uint4 *)(args.rest + at) : none;
        }
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            u32 a[4] = {w[half].x, w[half].y, w[half].z, w[half].w};
#pragma unroll
            for (u32 c = 0; c < COLUMNS; c++) {
                u32 codes[2] = {half ? x[c].z : x[c].x, half ? x[c].w : x[c].y};
                u32 others[2] = {half ? y[c].z : y[c].x, half ? y[c].w : y[c].y};
                mma_s8(sum[c], a, codes);
                mma_s8(rest[c], a, others);
            }
            begun++;
            if (begun == args.block_halves || (tile + 1 == args.tiles && half == 1)) {
                // What is past the last block is zeros.
                if (b < args.blocks) {
                    take_in(args, total, sum, b, stripe, first_row, args.scales, 0);
                    take_in(args, total, rest, b, stripe, first_row, args.finer, 1);
                }
                b++, begun = 0;
            }
        }
    }
    for (u32 c = 0; c < COLUMNS; c++)
        for (u32 i = 0; i < 4; i++) {
            u32 out = stripe * STRIPE + g + i / 2 * 8, row = first_row + 8 * c + 2 * t + i % 2;
            if (out >= args.part.out_width || row >= args.rows) continue;
            float bias = args.part.bias ? args.part.bias[out] : 0.0f;
            args.part.out[(u64)row * args.part.out_width + out] = add_rn(total[c][i], bias);
        }
}
