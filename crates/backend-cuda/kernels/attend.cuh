// Keys and values in pages of 16 positions, as the attention kernels read them. A head's size is padded
// with zeros to a whole number of runs of 64.
//
// Keys: [pages, kv heads, 16, dim] in slots. Values: [pages, kv heads, dim, 16], transposed, so that a
// lane finds the positions of its B fragment side by side. In both int8 and bf16; int8 has a scale a
// head and position, [pages, kv heads, 16].
//
// Column n of the two halves j of a page's scores is position 4 (n / 2) + 2 j + n % 2: a lane's scores
// are then those of the positions 4 t .. 4 t + 3, which are those of its values.
#pragma once
#include "dev.cuh"

#define PAGE 16
#define LEAST bits_float(0xff800000u)  // minus infinity

struct Cache {
    void *k, *v;
    float *k_scales, *v_scales;  // of int8
};
static_assert(sizeof(Cache) == 32, "as the host has it");

// Rows of one sequence that a block works on; of `attend_rows` from pair `first_pair` of (row, head of
// the group) on, what its splits come to from `place` on.
struct Item { u32 first_row, rows, start, table, first_pair, place; };

struct AttendArgs {
    const u16 *queries;  // [rows, query heads, padded dim] in slots
    Cache cache;
    const u32 *tables;
    const Item *items;
    float *partial;  // of attend_rows, an item: [kv heads, pairs, splits, 2 + dim]: maximum, sum, weighted values
    u32 *out;        // [rows, stride / 2] pairs of bf16 in slots
    float scale;     // of scores, in powers of two
    u32 window;      // 0: none
    u32 query_heads, kv_heads, dim, stride;
    u32 *arrived;    // of attend_rows: [items, kv heads] zeros, and zeros again after it; none: no merge
};
static_assert(sizeof(AttendArgs) == 104, "as the host has it");

// The widest part of a head's values that a block has; above it blocks share a head.
#define MOST_OUT 128
template <u32 DIM> struct Parts {
    static constexpr u32 OUT = DIM < MOST_OUT ? DIM : MOST_OUT, COUNT = DIM / OUT;
};

// The position in a page of column `n` of half `j`.
DEVICE u32 key_of(u32 j, u32 n) { return n / 2 * 4 + 2 * j + n % 2; }

struct KvBf16 {
    static constexpr u32 BYTES = 2;
    // Four steps' B registers of a key: sixteen slots.
    DEVICE void key(uint4 (&w)[2], const void *base, u64 element) {
        const uint4 *at = (const uint4 *)((const u16 *)base + element);
        w[0] = at[0], w[1] = at[1];
    }
    DEVICE void value(u32 (&b)[2], const void *base, u64 element) {
        uint2 v = *(const uint2 *)((const u16 *)base + element);
        b[0] = v.x, b[1] = v.y;
    }
};

DEVICE u32 widen(u32 codes, u32 first) {
    u32 turned = codes ^ 0x80808080u;
    float low = bits_float(0x4b000000u | (turned >> 8 * first & 0xffu)) - 8388736.0f;
    float high = bits_float(0x4b000000u | (turned >> 8 * (first + 1) & 0xffu)) - 8388736.0f;
    return pack_bf16(low, high);
}

struct KvInt8 {
    static constexpr u32 BYTES = 1;
    DEVICE void key(uint4 (&w)[2], const void *base, u64 element) {
        uint4 v = *(const uint4 *)((const s8 *)base + element);
        w[0] = uint4{widen(v.x, 0), widen(v.x, 2), widen(v.y, 0), widen(v.y, 2)};
        w[1] = uint4{widen(v.z, 0), widen(v.z, 2), widen(v.w, 0), widen(v.w, 2)};
    }
    DEVICE void value(u32 (&b)[2], const void *base, u64 element) {
        u32 v = *(const u32 *)((const s8 *)base + element);
        b[0] = widen(v, 0), b[1] = widen(v, 2);
    }
};

// The maximum and the sum over the four lanes that share a row of scores.
DEVICE float quad_max(float x) {
    x = fmaxf(x, shuffle_xor_float(x, 1));
    return fmaxf(x, shuffle_xor_float(x, 2));
}
DEVICE float quad_sum(float x) {
    x = add_rn(x, shuffle_xor_float(x, 1));
    return add_rn(x, shuffle_xor_float(x, 2));
}

// Of four positions from `first` on, those from `end` on hold what somebody left there.
DEVICE void clear_from(u32 (&b)[2], u32 first, u32 end) {
    for (u32 i = 0; i < 4; i++)
        if (first + i >= end) b[i / 2] &= i % 2 ? 0x0000ffffu : 0xffff0000u;
}
