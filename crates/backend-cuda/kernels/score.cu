// What a slice of logits says of each row: a block of 256 threads a row. The host folds the slices.
#include "dev.cuh"

#define THREADS 256
#define LEAST bits_float(0xff800000u)
#define LOG2_E 1.4426950408889634f

struct Stats { float max, sum, target, cross; u32 best, unused[3]; };
static_assert(sizeof(Stats) == 32, "as the host has it");

struct ScoreArgs {
    const float *p, *q;   // [rows, width]; q of a divergence
    const u32 *targets;   // a row: a token
    Stats *p_stats, *q_stats;
    u32 width, first;
};
static_assert(sizeof(ScoreArgs) == 48, "as the host has it");

struct Best { float value; u32 at; };

// The larger, the one that comes first among equals. What is not a number is passed over.
DEVICE Best better(Best a, Best b) {
    bool second = b.value > a.value || (b.value == a.value && b.at < a.at);
    return second ? b : a;
}

DEVICE Best block_best(const float *x, u32 n, float *room) {
    Best best = {LEAST, 0xffffffffu};
    for (u32 i = threadIdx.x; i < n; i += THREADS) best = better(best, Best{x[i] == x[i] ? x[i] : LEAST, i});
    for (u32 mask = 16; mask > 0; mask /= 2) {
        float value = shuffle_xor_float(best.value, mask);
        u32 at = shuffle_xor(best.at, mask);
        best = better(best, Best{value, at});
    }
    if (lane_id() == 0) room[2 * warp_id()] = best.value, room[2 * warp_id() + 1] = bits_float(best.at);
    sync_threads();
    best = Best{room[0], float_bits(room[1])};
    for (u32 w = 1; w < THREADS / WARP; w++) best = better(best, Best{room[2 * w], float_bits(room[2 * w + 1])});
    sync_threads();
    return best;
}

DEVICE float block_sum(float x, float *room) {
    x = warp_sum(x);
    if (lane_id() == 0) room[warp_id()] = x;
    sync_threads();
    float sum = 0.0f;
    for (u32 w = 0; w < THREADS / WARP; w++) sum = add_rn(sum, room[w]);
    sync_threads();
    return sum;
}

// The row's statistics, and in `cross` the sum of exp(x - max) (x - other).
DEVICE Stats stats(const ScoreArgs &args, const float *x, const float *other, float *room) {
    Best best = block_best(x, args.width, room);
    float sum = 0.0f, cross = 0.0f;
    for (u32 i = threadIdx.x; i < args.width; i += THREADS) {
        float e = exp2_fast(mul_rn(x[i] - best.value, LOG2_E));
        sum = add_rn(sum, e);
        // A token without probability adds nothing, whatever the other says.
        if (other && e > 0.0f) cross = fma_rn(e, x[i] - other[i], cross);
    }
    sum = block_sum(sum, room);
    if (other) cross = block_sum(cross, room);
    u32 target = args.targets[blockIdx.x] - args.first;
    Stats s = {best.value, sum, target < args.width ? x[target] : LEAST, cross, best.at, {0, 0, 0}};
    return s;
}

KERNEL(fold_softmax, ScoreArgs, THREADS, 1) {
    SHARED(float, room);
    Stats s = stats(args, args.p + (u64)blockIdx.x * args.width, nullptr, room);
    if (threadIdx.x == 0) args.p_stats[blockIdx.x] = s;
}

KERNEL(fold_divergence, ScoreArgs, THREADS, 1) {
    SHARED(float, room);
    const float *p = args.p + (u64)blockIdx.x * args.width, *q = args.q + (u64)blockIdx.x * args.width;
    Stats a = stats(args, p, q, room), b = stats(args, q, nullptr, room);
    if (threadIdx.x == 0) args.p_stats[blockIdx.x] = a, args.q_stats[blockIdx.x] = b;
}
