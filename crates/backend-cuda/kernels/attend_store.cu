// What comes before attention, in one pass over q, k and v: the heads' norms, where a model has them,
// rotary positions, and the keys and values into their pages.
#include "attend.cuh"

#define MOST 256  // elements of a head

struct Side {
    const float *x;     // [rows, heads, dim]
    const float *norm;  // [dim], or none
    float eps;
    u32 half;                // of the rotary elements; 0: none
    const float *cos, *sin;  // [positions, half]
};
static_assert(sizeof(Side) == 40, "as the host has it");

struct StoreArgs {
    Side q, k, v;
    u16 *queries;          // [rows, query heads, padded dim] in slots
    Cache cache;
    const u32 *positions;  // of each row
    const u32 *places;     // where in the pages each row goes
    u32 query_heads, kv_heads, dim, padded;
};
static_assert(sizeof(StoreArgs) == 192, "as the host has it");

// A warp a row and head.
template <bool INT8> DEVICE void store(const StoreArgs &args) {
    SHARED(float, rooms);  // [4][MOST]
    float *x = rooms + warp_id() * MOST;
    u32 row = blockIdx.x, head = blockIdx.y * 4 + warp_id();
    u32 heads = args.query_heads + 2 * args.kv_heads;
    // Every lane of the warp leaves, and there is no barrier of the block.
    if (head >= heads) return;
    bool is_query = head < args.query_heads, is_key = !is_query && head < args.query_heads + args.kv_heads;
    const Side &side = is_query ? args.q : is_key ? args.k : args.v;
    u32 kv = is_query ? head : (head - args.query_heads) % args.kv_heads;
    u32 of = is_query ? args.query_heads : args.kv_heads;
    const float *from = side.x + ((u64)row * of + kv) * args.dim;
    float squares = 0.0f;
    for (u32 i = lane_id(); i < args.padded; i += WARP) {
        x[i] = i < args.dim ? from[i] : 0.0f;
        squares = fma_rn(x[i], x[i], squares);
    }
    if (side.norm) {
        float inverse = 1.0f / sqrtf(warp_sum(squares) / (float)args.dim + side.eps);
        for (u32 i = lane_id(); i < args.dim; i += WARP) x[i] = mul_rn(mul_rn(x[i], inverse), side.norm[i]);
    }
    sync_warp();
    if (side.half) {
        u64 at = (u64)args.positions[row] * side.half;
        for (u32 i = lane_id(); i < side.half; i += WARP) {
            float a = x[i], b = x[i + side.half], c = side.cos[at + i], s = side.sin[at + i];
            x[i] = a * c - b * s;
            x[i + side.half] = b * c + a * s;
        }
        sync_warp();
    }
    if (is_query) {
        u16 *to = args.queries + ((u64)row * args.query_heads + head) * args.padded;
        for (u32 i = 2 * lane_id(); i < args.padded; i += 2 * WARP) *(u32 *)(to + slot(i)) = pack_bf16(x[i], x[i + 1]);
        return;
    }
    u32 place = args.places[row];
    u64 page = (u64)(place / PAGE) * args.kv_heads + kv;
    float inverse = 0.0f, scale = 1.0f;
    if (INT8) {
        float top = 0.0f;
        bool bad = false;
        for (u32 i = lane_id(); i < args.padded; i += WARP) {
            top = fmaxf(top, fabsf(x[i]));
            bad |= !(fabsf(x[i]) < bits_float(0x7f800000u));
        }
        bad = warp_max(bad ? 1.0f : 0.0f) > 0.0f;
        top = warp_max(top);
        bool none = bad || top <= 1e-30f;
        scale = bad ? bits_float(0x7fc00000u) : none ? 0.0f : top / 127.0f;
        inverse = none ? 0.0f : 127.0f / top;
        if (lane_id() == 0) (is_key ? args.cache.k_scales : args.cache.v_scales)[page * PAGE + place % PAGE] = scale;
    }
    void *to = is_key ? args.cache.k : args.cache.v;
    for (u32 i = lane_id(); i < args.padded; i += WARP) {
        u64 at = is_key ? (page * PAGE + place % PAGE) * args.padded + slot(i) : (page * args.padded + i) * PAGE + place % PAGE;
        if (INT8) {
            int code = inverse > 0.0f ? (s8)float_bits(add_rn(mul_rn(x[i], inverse), 12582912.0f)) : 0;
            ((s8 *)to)[at] = (s8)code;
        } else {
            ((u16 *)to)[at] = (u16)pack_bf16(x[i], 0.0f);
        }
    }
}

KERNEL(attend_store_bf16, StoreArgs, 128, 4) { store<false>(args); }
KERNEL(attend_store_int8, StoreArgs, 128, 4) { store<true>(args); }
