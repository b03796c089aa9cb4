// Weights as they are stored to the order in which lanes read them (linear.cuh): a thread a word of 32
// bits. What is past the last output or input is the code of zero.
#include "linear.cuh"

enum DenseKind { DENSE_F32, DENSE_F16, DENSE_BF16 };

struct PackArgs {
    const void *from;  // [out, width]: codes of int8, or dense values
    u32 *to;           // [stripes, tiles] as packed
    u64 words;
    u32 out, width, tiles, kind;
};
static_assert(sizeof(PackArgs) == 40, "as the host has it");

struct Place { u32 output, input; };

// The first of a lane's inputs of a step, in row g or g + 8 of the stripe.
DEVICE Place place_of(const PackArgs &args, u64 tile, u32 lane, u32 step, u32 half) {
    u32 stripe = (u32)(tile / args.tiles), column = (u32)(tile % args.tiles);
    return Place{stripe * STRIPE + half * 8 + lane / 4, column * TILE + step * 16 + lane % 4 * 4};
}

DEVICE int code(const PackArgs &args, Place at, u32 i) {
    bool there = at.output < args.out && at.input + i < args.width;
    return there ? ((const s8 *)args.from)[(u64)at.output * args.width + at.input + i] : 0;
}

KERNEL(pack_int4, PackArgs, 256, 1) {
    u64 index = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= args.words) return;
    u32 step = (u32)(index % 4), lane = (u32)(index / 4 % WARP), word = 0;
    for (u32 half = 0; half < 2; half++) {
        Place at = place_of(args, index / (4 * WARP), lane, step, half);
        for (u32 i = 0; i < 4; i++) {
            // Register half + 2 (i / 2), of whose pair this is element i % 2: nibbles j and j + 4.
            u32 nibble = half + i / 2 * 2 + i % 2 * 4;
            word |= ((u32)(code(args, at, i) + 8) & 15u) << 4 * nibble;
        }
    }
    args.to[index] = word;
}

KERNEL(pack_int8, PackArgs, 256, 1) {
    u64 index = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= args.words) return;
    u32 of = (u32)(index % 4), lane = (u32)(index / 4 % WARP), pair = (u32)(index / (4 * WARP) % 2), word = 0;
    Place at = place_of(args, index / (8 * WARP), lane, 2 * pair + of / 2, of % 2);
    for (u32 i = 0; i < 4; i++) word |= ((u32)code(args, at, i) & 255u) << 8 * i;
    args.to[index] = word;
}

DEVICE float dense(const PackArgs &args, Place at, u32 i) {
    if (at.output >= args.out || at.input + i >= args.width) return 0.0f;
    u64 from = (u64)at.output * args.width + at.input + i;
    if (args.kind == DENSE_F32) return ((const float *)args.from)[from];
    u16 bits = ((const u16 *)args.from)[from];
    return args.kind == DENSE_F16 ? f16_float(bits) : bf16_float(bits);
}

KERNEL(pack_dense, PackArgs, 256, 1) {
    u64 index = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= args.words) return;
    u32 reg = (u32)(index % 4), lane = (u32)(index / 4 % WARP), step = (u32)(index / (4 * WARP) % 4);
    Place at = place_of(args, index / (16 * WARP), lane, step, reg % 2);
    args.to[index] = pack_bf16(dense(args, at, reg / 2 * 2), dense(args, at, reg / 2 * 2 + 1));
}

// Packed weights as bf16 in slots, [stripes * 16, stride]: what a library multiplies with rows that are in
// slots too. A warp a tile.
template <class W> DEVICE void unpack(const LinearArgs &args) {
    u32 tile = blockIdx.x * 8 + warp_id(), stripe = blockIdx.y, g = lane_id() / 4, t = lane_id() % 4;
    if (tile >= args.tiles) return;
    const Part &part = args.parts[0];
    uint4 w[W::WORDS], low[2], high[2];
    load_tile<W>(w, part.weight, (u64)stripe * args.tiles + tile);
    Group of[2] = {};
    load_groups<W>(of, args, part, stripe, tile);
    slots_of<W>(low, high, args, w, of);
    u16 *to = (u16 *)part.out + ((u64)stripe * STRIPE + g) * args.stride + tile * TILE + 16 * t;
    uint4 *first = (uint4 *)to, *second = (uint4 *)(to + (u64)8 * args.stride);
    first[0] = low[0], first[1] = low[1], second[0] = high[0], second[1] = high[1];
}
KERNEL(unpack_int4, LinearArgs, 256, 2) { unpack<Int4>(args); }
KERNEL(unpack_int8, LinearArgs, 256, 2) { unpack<Int8>(args); }
KERNEL(unpack_bf16, LinearArgs, 256, 2) { unpack<Bf16>(args); }

// After a weight is packed: what comes next may ask for weights before it waits (`linear_rows`), but not before
// this one has waited.
KERNEL(pack_done, PackArgs, 32, 1) {}
