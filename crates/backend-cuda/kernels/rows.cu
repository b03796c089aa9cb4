// Ops on rows of f32: embedding, norms, element by element; and f32 rows as bf16 in slots, which is
// what linears read.
#include "dev.cuh"

struct EmbedArgs {
    const u32 *tokens;
    const u16 *table;  // packed as a linear's bf16 weight: see linear.cuh
    float *out;        // [rows, width]
    u32 rows, width, first, count, tiles, unused;
};
static_assert(sizeof(EmbedArgs) == 48, "as the host has it");

KERNEL(embed, EmbedArgs, 256, 1) {
    u32 row = blockIdx.x, token = args.tokens[row];
    // Of another slice of the table.
    if (token < args.first || token - args.first >= args.count) return;
    u32 o = token - args.first, lane = o % 8 * 4, half = o / 8 % 2;
    for (u32 k = threadIdx.x; k < args.width; k += blockDim.x) {
        u32 s = k % 64 / 16, t = k / 4 % 4, i = k % 4;
        u64 tile = (u64)(o / 16) * args.tiles + k / 64;
        u64 at = ((tile * 4 + s) * WARP + lane + t) * 8 + (half + i / 2 * 2) * 2 + i % 2;
        args.out[(u64)row * args.width + k] = bf16_float(args.table[at]);
    }
}

struct GatherArgs {
    const float *from;
    const u32 *list;
    float *out;
    u32 rows, width;
};
static_assert(sizeof(GatherArgs) == 32, "as the host has it");

KERNEL(gather, GatherArgs, 256, 1) {
    const float *from = args.from + (u64)args.list[blockIdx.x] * args.width;
    for (u32 i = threadIdx.x; i < args.width; i += blockDim.x) args.out[(u64)blockIdx.x * args.width + i] = from[i];
}

// Sums of what several GPUs have, in their order; of one, a copy.
struct SumArgs {
    const float *parts[8];
    float *out;
    u64 first, count;
    u32 devices, unused;
};
static_assert(sizeof(SumArgs) == 96, "as the host has it");

KERNEL(sum_parts, SumArgs, 256, 4) {
    u64 step = 4 * (u64)gridDim.x * blockDim.x;
    for (u64 i = 4 * ((u64)blockIdx.x * blockDim.x + threadIdx.x); i < args.count; i += step) {
        u64 at = args.first + i;
        if (i + 4 <= args.count) {
            float4 sum = *(const float4 *)(args.parts[0] + at);
            for (u32 d = 1; d < args.devices; d++) {
                float4 more = *(const float4 *)(args.parts[d] + at);
                sum = float4{add_rn(sum.x, more.x), add_rn(sum.y, more.y), add_rn(sum.z, more.z), add_rn(sum.w, more.w)};
            }
            *(float4 *)(args.out + at) = sum;
            continue;
        }
        for (u64 k = 0; k < args.count - i; k++) {
            float sum = args.parts[0][at + k];
            for (u32 d = 1; d < args.devices; d++) sum = add_rn(sum, args.parts[d][at + k]);
            args.out[at + k] = sum;
        }
    }
}

struct RowsArgs {
    const float *a, *b;
    float *out;
    u32 *slots;  // [rows, stride / 2] pairs of bf16
    u32 rows, width, stride, len;
    float eps;
    u32 unused;
};
static_assert(sizeof(RowsArgs) == 56, "as the host has it");

// x * sigmoid(x).
DEVICE float silu(float x) { return x / (1.0f + exp2_fast(-1.4426950408889634f * x)); }

KERNEL(add, RowsArgs, 256, 1) {
    u64 n = (u64)args.rows * args.width, step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) args.out[i] = add_rn(args.a[i], args.b[i]);
}

KERNEL(mul, RowsArgs, 256, 1) {
    u64 n = (u64)args.rows * args.width, step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) args.out[i] = mul_rn(args.a[i], args.b[i]);
}

KERNEL(activate_silu, RowsArgs, 256, 1) {
    u64 n = (u64)args.rows * args.width, step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) args.out[i] = silu(args.a[i]);
}

// Writes columns `2 i` and `2 i + 1` of a row; those past the width are zero.
DEVICE void store_pair(const RowsArgs &args, u32 row, u32 i, float low, float high) {
    args.slots[((u64)row * args.stride + slot(2 * i)) / 2] =
        pack_bf16(2 * i < args.width ? low : 0.0f, 2 * i + 1 < args.width ? high : 0.0f);
}

DEVICE float column(const float *row, u32 i, u32 width) { return i < width ? row[i] : 0.0f; }

KERNEL(to_slots, RowsArgs, 256, 1) {
    u32 row = blockIdx.x;
    const float *a = args.a + (u64)row * args.width;
    for (u32 i = blockIdx.y * blockDim.x + threadIdx.x; i < args.stride / 2; i += gridDim.y * blockDim.x)
        store_pair(args, row, i, column(a, 2 * i, args.width), column(a, 2 * i + 1, args.width));
}

KERNEL(from_slots, RowsArgs, 256, 1) {
    u32 row = blockIdx.x;
    const u16 *slots = (const u16 *)args.slots + (u64)row * args.stride;
    for (u32 i = threadIdx.x; i < args.width; i += blockDim.x)
        args.out[(u64)row * args.width + i] = bf16_float(slots[slot(i)]);
}

KERNEL(silu_mul, RowsArgs, 256, 1) {
    u32 row = blockIdx.x;
    const float *a = args.a + (u64)row * args.width, *b = args.b + (u64)row * args.width;
    for (u32 i = blockIdx.y * blockDim.x + threadIdx.x; i < args.stride / 2; i += gridDim.y * blockDim.x) {
        float low = 2 * i < args.width ? mul_rn(silu(a[2 * i]), b[2 * i]) : 0.0f;
        float high = 2 * i + 1 < args.width ? mul_rn(silu(a[2 * i + 1]), b[2 * i + 1]) : 0.0f;
        store_pair(args, row, i, low, high);
    }
}

struct NormArgs {
    const float *a, *more;  // more: what is added first, or none
    const float *weight;
    float *sum;  // [rows, width]: where the sum goes
    u32 *slots;
    u32 rows, width, stride;
    float eps;
};
static_assert(sizeof(NormArgs) == 56, "as the host has it");

#define NORM_THREADS 256

// What the root-mean-square norm multiplies a row by. Every thread's sum is of the columns that are its own, in
// their order, so that it does not matter how many are read at a time.
DEVICE float norm_scale(float squares, const NormArgs &args, float *sums) {
    squares = warp_sum(squares);
    if (lane_id() == 0) sums[warp_id()] = squares;
    sync_threads();
    squares = 0.0f;
    for (u32 w = 0; w < NORM_THREADS / WARP; w++) squares = add_rn(squares, sums[w]);
    return 1.0f / sqrtf(squares / (float)args.width + args.eps);
}

// Of rows of at most HELD columns a thread: all is asked for before any of it is used, so a row waits for memory
// once. The compiler would not do so itself, as `sum` may be where the others are.
template <u32 HELD> DEVICE void norm_held(const NormArgs &args, float *sums) {
    u64 from = (u64)blockIdx.x * args.width;
    float v[HELD], more[HELD], weight[HELD];
    for (u32 k = 0; k < HELD; k++) v[k] = column(args.a + from, threadIdx.x + k * NORM_THREADS, args.width);
    if (args.more) {
        for (u32 k = 0; k < HELD; k++)
            more[k] = column(args.more + from, threadIdx.x + k * NORM_THREADS, args.width);
    }
    for (u32 k = 0; k < HELD; k++) weight[k] = column(args.weight, threadIdx.x + k * NORM_THREADS, args.width);
    if (args.more) {
        for (u32 k = 0; k < HELD; k++) {
            u32 i = threadIdx.x + k * NORM_THREADS;
            v[k] = add_rn(v[k], more[k]);
            if (i < args.width) args.sum[from + i] = v[k];
        }
    }
    float squares = 0.0f;
    for (u32 k = 0; k < HELD; k++) squares = fma_rn(v[k], v[k], squares);
    float scale = norm_scale(squares, args, sums);
    // Whole runs of 64 columns further, a slot is as far further.
    u16 *slots = (u16 *)args.slots + (u64)blockIdx.x * args.stride + slot(threadIdx.x);
    for (u32 k = 0; k < HELD; k++) {
        u32 bits = pack_bf16(mul_rn(mul_rn(v[k], scale), weight[k]), 0.0f);
        if (threadIdx.x + k * NORM_THREADS < args.stride) slots[k * NORM_THREADS] = (u16)bits;
    }
}

// Of rows of any width.
DEVICE void norm_wide(const NormArgs &args, float *sums) {
    u64 row = blockIdx.x;
    const float *x = args.a + row * args.width;
    float squares = 0.0f;
    for (u32 i = threadIdx.x; i < args.width; i += NORM_THREADS) {
        float v = x[i];
        if (args.more) {
            v = add_rn(v, args.more[row * args.width + i]);
            args.sum[row * args.width + i] = v;
        }
        squares = fma_rn(v, v, squares);
    }
    float scale = norm_scale(squares, args, sums);
    if (args.more) x = args.sum + row * args.width;
    for (u32 i = threadIdx.x; i < args.stride / 2; i += NORM_THREADS) {
        float low = mul_rn(mul_rn(column(x, 2 * i, args.width), scale), column(args.weight, 2 * i, args.width));
        float high = mul_rn(mul_rn(column(x, 2 * i + 1, args.width), scale), column(args.weight, 2 * i + 1, args.width));
        args.slots[(row * args.stride + slot(2 * i)) / 2] = pack_bf16(low, high);
    }
}

// Root-mean-square norm of whole rows, times the weight, as slots; of the sum of two where there are two.
KERNEL(norm_rows, NormArgs, NORM_THREADS, 1) {
    SHARED(float, sums);
    if (args.width <= 8 * NORM_THREADS) norm_held<8>(args, sums);
    else if (args.width <= 16 * NORM_THREADS) norm_held<16>(args, sums);
    else if (args.width <= 32 * NORM_THREADS) norm_held<32>(args, sums);
    else norm_wide(args, sums);
}

// Root-mean-square norm of every run of `len` elements `a`, times the weight `b`, as f32: a warp a run.
KERNEL(norm_runs, RowsArgs, 128, 1) {
    u32 runs = args.rows * (args.width / args.len), run = blockIdx.x * 4 + warp_id();
    if (run >= runs) return;
    const float *a = args.a + (u64)run * args.len;
    float sum = 0.0f;
    for (u32 i = lane_id(); i < args.len; i += WARP) sum = fma_rn(a[i], a[i], sum);
    float inverse = 1.0f / sqrtf(warp_sum(sum) / (float)args.len + args.eps);
    for (u32 i = lane_id(); i < args.len; i += WARP)
        args.out[(u64)run * args.len + i] = mul_rn(mul_rn(a[i], inverse), args.b[i]);
}

struct RopeArgs {
    float *x;               // [rows, width]
    const float *cos, *sin;  // [positions, half]
    const u32 *positions;   // a row
    u32 rows, width, head_dim, half;
};
static_assert(sizeof(RopeArgs) == 48, "as the host has it");

KERNEL(rope, RopeArgs, 128, 1) {
    u32 row = blockIdx.x, heads = args.width / args.head_dim;
    const float *cos = args.cos + (u64)args.positions[row] * args.half;
    const float *sin = args.sin + (u64)args.positions[row] * args.half;
    for (u32 i = threadIdx.x; i < heads * args.half; i += blockDim.x) {
        float *head = args.x + (u64)row * args.width + i / args.half * args.head_dim;
        u32 k = i % args.half;
        float a = head[k], b = head[k + args.half];
        head[k] = a * cos[k] - b * sin[k];
        head[k + args.half] = b * cos[k] + a * sin[k];
    }
}
