// Packed weights, as both linear kernels read them: a stripe is 16 outputs, a tile 64 inputs of a
// stripe. Of a tile a lane holds, for each of four steps of 16 inputs, the four registers of its A
// fragment in mma.m16n8k16: rows g and g + 8, inputs 16 s + 4 t + i.
#pragma once
#include "dev.cuh"

#define STRIPE 16
#define TILE 64
#define PARTS 3

enum ScaleKind { SCALE_BF16, SCALE_F16, SCALE_F32 };

// One weight of a launch: several that read the same rows are computed together.
struct Part {
    const uint4 *weight;
    const void *scales;  // [stripes, groups, 16]
    const s8 *zeros;     // the same, or none
    const float *bias;   // [out], or none
    float *out;          // [rows, out_width]
    u32 out_width, first_stripe;
};
static_assert(sizeof(Part) == 48, "as the host has it");

struct LinearArgs {
    Part parts[PARTS];
    const u16 *x;  // [rows, stride] bf16 in slots
    u32 rows, stride, tiles, part_count;
    u32 groups, group_tiles;  // tiles that share a scale, a power of two or all; 0: a tile has two, of 32 inputs each
    u32 scale_kind, staged;  // whether scales and zeros of a block go to shared memory, of `linear_rows`
};
static_assert(sizeof(LinearArgs) == 184, "as the host has it");

DEVICE float f16_float(u16 bits) {
    u32 sign = (u32)(bits & 0x8000u) << 16, magnitude = bits & 0x7fffu;
    if (magnitude >= 0x7c00u) return bits_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    // Exact: a power of two times an integer of eleven bits.
    return mul_rn(bits_float(sign | magnitude << 13), bits_float(0x77800000u));
}

DEVICE float scale_at(u32 kind, const void *scales, u32 at) {
    if (kind == SCALE_F32) return ((const float *)scales)[at];
    u16 bits = ((const u16 *)scales)[at];
    return kind == SCALE_BF16 ? bf16_float(bits) : f16_float(bits);
}

// Of arguments that say how many groups there are, and what kind of scales.
template <class Args> DEVICE float load_scale(const Args &args, const Part &part, u32 stripe, u32 group, u32 row) {
    return scale_at(args.scale_kind, part.scales, (stripe * args.groups + group) * STRIPE + row);
}

template <class Args> DEVICE float load_zero(const Args &args, const Part &part, u32 stripe, u32 group, u32 row) {
    return part.zeros ? (float)part.zeros[(stripe * args.groups + group) * STRIPE + row] : 0.0f;
}

DEVICE u32 group_of(const LinearArgs &args, u32 tile, u32 half) {
    u32 group = args.group_tiles ? tile >> (31 - leading_zeros(args.group_tiles)) : 2 * tile + half;
    return smaller(group, args.groups - 1);
}

// What a tile's codes are, and how a lane's four registers of a step come from them. `WORDS` is what a
// lane loads of a tile; `shift` makes of a zero what `step` takes from codes: `first` of those of row g, and
// `second` of row g + 8.
struct Bf16 {
    static constexpr u32 WORDS = 4;
    static constexpr bool SCALED = false;
    DEVICE u32 shift(float) { return 0; }
    DEVICE void step(u32 (&a)[4], const uint4 (&w)[WORDS], u32 s, u32, u32) {
        a[0] = w[s].x, a[1] = w[s].y, a[2] = w[s].z, a[3] = w[s].w;
    }
};

// Codes + 8 in nibbles; register j has nibbles j and j + 4 of its step's word. 0x4300 is 128 as bf16,
// and its low mantissa bit is one: so a nibble below it is 128 + nibble, exactly.
struct Int4 {
    static constexpr u32 WORDS = 1;
    static constexpr bool SCALED = true;
    DEVICE u32 shift(float zero) { return pack_bf16(-136.0f - zero, -136.0f - zero); }
    DEVICE void step(u32 (&a)[4], const uint4 (&w)[WORDS], u32 s, u32 first, u32 second) {
        u32 word = s == 0 ? w[0].x : s == 1 ? w[0].y : s == 2 ? w[0].z : w[0].w;
        for (u32 j = 0; j < 4; j++) {
            u32 codes = and_or(word >> 4 * j, 0x000f000fu, 0x43004300u);
            a[j] = fma_bf16x2(codes, 0x3f803f80u, j % 2 ? second : first);
        }
    }
};

// Codes as they are. A word has four inputs of one row; 2^23 + code + 128 is a float whose low byte
// is the code with its sign bit turned.
struct Int8 {
    static constexpr u32 WORDS = 2;
    static constexpr bool SCALED = true;
    DEVICE u32 shift(float zero) { return float_bits(zero); }
    DEVICE float value(u32 turned, u32 byte, u32 zero) {
        return bits_float(0x4b000000u | (turned >> 8 * byte & 0xffu)) - 8388736.0f - bits_float(zero);
    }
    DEVICE void step(u32 (&a)[4], const uint4 (&w)[WORDS], u32 s, u32 first, u32 second) {
        const uint4 &v = w[s / 2];
        u32 low = (s % 2 ? v.z : v.x) ^ 0x80808080u, high = (s % 2 ? v.w : v.y) ^ 0x80808080u;
        a[0] = pack_bf16(value(low, 0, first), value(low, 1, first));
        a[1] = pack_bf16(value(high, 0, second), value(high, 1, second));
        a[2] = pack_bf16(value(low, 2, first), value(low, 3, first));
        a[3] = pack_bf16(value(high, 2, second), value(high, 3, second));
    }
};

// A pair of values times the scale of its row, rounded once if the scale is a bf16.
DEVICE u32 scaled(u32 scale_kind, u32 pair, float scale) {
    if (scale_kind == SCALE_BF16) return fma_bf16x2(pair, pack_bf16(scale, scale), 0x80008000u);
    return pack_bf16(mul_rn(bf16_low(pair), scale), mul_rn(bf16_high(pair), scale));
}

// A lane's part of a tile.
template <class W> DEVICE void load_tile(uint4 (&w)[W::WORDS], const uint4 *weight, u64 tile) {
    for (u32 i = 0; i < W::WORDS; i++) w[i] = load_once(weight + (tile * W::WORDS + i) * WARP + lane_id());
}

// What rows g and g + 8 of a stripe have of a group.
struct Group {
    u32 shift[2];
    float scale[2];
};

// Of both halves of a tile.
template <class W>
DEVICE void load_groups(Group (&of)[2], const LinearArgs &args, const Part &part, u32 stripe, u32 tile) {
    if (!W::SCALED) return;
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        if (half == 1 && args.group_tiles) {
            of[1] = of[0];
            return;
        }
        u32 group = group_of(args, tile, half);
        for (u32 i = 0; i < 2; i++) {
            of[half].shift[i] = W::shift(load_zero(args, part, stripe, group, lane_id() / 4 + 8 * i));
            of[half].scale[i] = load_scale(args, part, stripe, group, lane_id() / 4 + 8 * i);
        }
    }
}

// Sixteen values of row g of a tile, and of row g + 8, as bf16: slots 16 t .. of their run.
template <class W>
DEVICE void slots_of(uint4 (&low)[2], uint4 (&high)[2], const LinearArgs &args, const uint4 (&w)[W::WORDS], const Group (&of)[2]) {
    u32 a[4][4];
#pragma unroll
    for (u32 s = 0; s < 4; s++) {
        W::step(a[s], w, s, of[s / 2].shift[0], of[s / 2].shift[1]);
        if (W::SCALED)
            for (u32 j = 0; j < 4; j++) a[s][j] = scaled(args.scale_kind, a[s][j], of[s / 2].scale[j % 2]);
    }
    for (u32 i = 0; i < 2; i++) {
        low[i] = uint4{a[2 * i][0], a[2 * i][2], a[2 * i + 1][0], a[2 * i + 1][2]};
        high[i] = uint4{a[2 * i][1], a[2 * i][3], a[2 * i + 1][1], a[2 * i + 1][3]};
    }
}

#define CHUNKS (TILE * 2 / 16)  // of 16 bytes in a row of a tile

// Where chunk `chunk` of a row lies in shared memory: so that wgmma reads it, and no two lanes collide.
DEVICE u32 place(u32 row, u32 chunk) { return row * CHUNKS + (chunk ^ (row & 7)); }

// A tile of ROWS rows on its way to shared memory; zeros past the last row.
template <u32 ROWS> DEVICE void fetch(const LinearArgs &args, uint4 *stage, u32 first_row, u32 tile) {
    if (tile < args.tiles)
        for (u32 i = threadIdx.x; i < ROWS * CHUNKS; i += blockDim.x) {
            u32 row = i / CHUNKS, chunk = i % CHUNKS;
            bool there = first_row + row < args.rows;
            const u16 *from = args.x + (there ? (u64)(first_row + row) * args.stride + tile * TILE + chunk * 8 : 0);
            copy_async(stage + place(row, chunk), from, there ? 16 : 0);
        }
    commit_copies();
}
