// What a token is drawn from: of each row of logits a few tokens of which one is the reference
// sampler's, found without a sort. The host decides among them exactly (engine::shortlist), so
// what is approximate here changes no result. A block of 256 threads a row.
#include "dev.cuh"

#define THREADS 256
#define MOST 64
#define LEAST bits_float(0xff800000u)

enum Mode { BEST, NOISE, LARGEST };

// How one token's logit is changed, in this order.
struct Change { u32 token; float bias; u32 has_bias, repeated, count, present; };

struct Ask {
    u64 key;                      // of the noise
    float temperature, min_score; // of what is scaled by it
    float repetition, frequency, presence;
    u32 mode, first_change, changes, alternatives, wants_sum;
    float share;  // of all exponentials, that the most likely tokens must have; 1: no matter
    u32 unused;
};

struct Pair { u32 token; float logit; };

struct Found {
    u32 bad, best;
    float best_logit, raw_max, raw_sum;
    u32 count, raw_count, token;  // of the lists; above MOST where they did not hold all
    Pair list[MOST], raw[MOST];
};

struct SampleArgs {
    float *logits;  // [rows, width]; changed and changed back
    const Ask *asks;
    const Change *changes;
    float *originals;  // of each change
    Found *found;
    u32 *tokens;  // of each row: the drawn one, as far as can be told here
    u32 width, unused;
};

struct Best { float value; u32 at; };

DEVICE u32 block_sum(u32 x, u32 *room) {
    for (u32 mask = 16; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
    if (lane_id() == 0) room[warp_id()] = x;
    sync_threads();
    u32 sum = 0;
    for (u32 w = 0; w < THREADS / WARP; w++) sum += room[w];
    sync_threads();
    return sum;
}

DEVICE float block_max(float x, u32 *room) {
    x = warp_max(x);
    if (lane_id() == 0) room[warp_id()] = float_bits(x);
    sync_threads();
    float top = LEAST;
    for (u32 w = 0; w < THREADS / WARP; w++) top = fmaxf(top, bits_float(room[w]));
    sync_threads();
    return top;
}

// The largest, the lowest id among equals.
DEVICE Best block_best(const float *x, u32 n, u32 *room) {
    Best best = {LEAST, 0xffffffffu};
    for (u32 i = threadIdx.x; i < n; i += THREADS)
        if (x[i] > best.value || (best.at == 0xffffffffu && x[i] == best.value)) best = Best{x[i], i};
    float top = block_max(best.value, room);
    u32 at = best.value == top ? best.at : 0xffffffffu;
    for (u32 mask = 16; mask > 0; mask /= 2) at = smaller(at, shuffle_xor(at, mask));
    if (lane_id() == 0) room[warp_id()] = at;
    sync_threads();
    for (u32 w = 0; w < THREADS / WARP; w++) at = smaller(at, room[w]);
    sync_threads();
    return Best{top, at};
}

// Where this thread's `count` things go among those of the block; their number in `all`.
DEVICE u32 block_place(u32 count, u32 *all, u32 *room) {
    room[threadIdx.x] = count;
    sync_threads();
    for (u32 step = 1; step < THREADS; step *= 2) {
        u32 before = threadIdx.x >= step ? room[threadIdx.x - step] : 0;
        sync_threads();
        room[threadIdx.x] += before;
        sync_threads();
    }
    u32 end = room[threadIdx.x];
    *all = room[THREADS - 1];
    sync_threads();
    return end - count;
}

// Floats as integers of the same order.
DEVICE u32 order_of(float x) {
    u32 bits = float_bits(x == 0.0f ? 0.0f : x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The `wanted` largest logits and whatever equals the last of them, in no order: a threshold is found
// bit by bit.
DEVICE u32 largest(const float *x, u32 n, u32 wanted, Pair *list, u32 *room) {
    u32 threshold = 0;
    for (u32 bit = 32; bit-- > 0;) {
        u32 higher = threshold | 1u << bit, count = 0;
        for (u32 i = threadIdx.x; i < n; i += THREADS) count += order_of(x[i]) >= higher;
        if (block_sum(count, room) >= wanted) threshold = higher;
    }
    u32 count = 0, all;
    for (u32 i = threadIdx.x; i < n; i += THREADS) count += order_of(x[i]) >= threshold;
    u32 place = block_place(count, &all, room);
    for (u32 i = threadIdx.x; i < n; i += THREADS)
        if (order_of(x[i]) >= threshold && place < MOST) list[place++] = Pair{i, x[i]};
    sync_threads();  // the logits may be changed next
    return all;
}

DEVICE u64 mix(u64 x) {
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

// engine::noise: the bits of a token, the variate of bits, and what it is at most.
DEVICE u32 noise_of(u64 key, u32 token) { return (u32)(mix(key ^ (u64)token * 0xd6e8feb86659fd93ull) >> 32); }
DEVICE float gumbel(u32 bits) {
    double u = ((double)bits + 0.5) / 4294967296.0;
    return (float)-log(-log(u));
}
DEVICE float gumbel_bound(u32 bits) { return (float)leading_zeros(~bits) * 0.69314718f + 0.694f; }

DEVICE float scaled(float x, float top, float temperature) {
    return x == top ? 0.0f : fmaxf((x - top) / temperature, -3.402823466e38f);
}

// Exponentials as integers, so that their sum has no order.
DEVICE u64 weight(float x, float top, float temperature) {
    return (u64)(exp2_fast(scaled(x, top, temperature) * 1.4426950408889634f) * 1099511627776.0f);
}

DEVICE u64 block_sum_64(u64 x, u32 *room) {
    // In three parts, of which none carries over: 2^57 at most.
    u32 low = block_sum((u32)(x & 0xfffffu), room), middle = block_sum((u32)(x >> 20 & 0xfffffu), room);
    return (u64)low + ((u64)middle << 20) + ((u64)block_sum((u32)(x >> 40), room) << 40);
}

// The most likely tokens that have `ask.share` of all exponentials, as far as sums tell that differ in their
// last digits: certainly those whose order is at least `certain`, none below `possible`.
struct Nucleus { u32 possible, certain; };

DEVICE Nucleus nucleus(const Ask &ask, const float *x, u32 n, float top, u32 *room) {
    u64 all = 0;
    for (u32 i = threadIdx.x; i < n; i += THREADS) all += weight(x[i], top, ask.temperature);
    all = block_sum_64(all, room);
    // A share of it is far more than sums of 2^-24 parts of exponentials can differ by.
    u64 wanted = (u64)((double)all * ask.share), margin = all >> 13;
    u64 bounds[2] = {wanted > margin ? wanted - margin : 1, wanted + margin}, at_first = 0;
    u32 thresholds[2] = {0, 0};
    for (u32 bit = 32; bit-- > 0;) {
        u64 sums[2] = {0, 0};
        for (u32 i = threadIdx.x; i < n; i += THREADS) {
            u32 order = order_of(x[i]);
            bool above[2] = {order >= (thresholds[0] | 1u << bit), order >= (thresholds[1] | 1u << bit)};
            if (!above[0] && !above[1]) continue;
            u64 w = weight(x[i], top, ask.temperature);
            for (u32 k = 0; k < 2; k++) sums[k] += above[k] ? w : 0;
        }
        for (u32 k = 0; k < 2; k++) {
            u64 sum = block_sum_64(sums[k], room);
            if (sum < bounds[k]) continue;
            thresholds[k] |= 1u << bit;
            if (k == 0) at_first = sum;
        }
    }
    // The last token that may be the one with which the share is reached. Of several that equal it some may
    // be left out, unless all but one of them do not reach it.
    u32 equal = 0;
    u64 own = 0;
    for (u32 i = threadIdx.x; i < n; i += THREADS)
        if (order_of(x[i]) == thresholds[0]) equal++, own += weight(x[i], top, ask.temperature);
    equal = block_sum(equal, room);
    own = equal ? block_sum_64(own, room) / equal : 0;
    bool certain = equal == 1 || (equal > 1 && at_first - own < bounds[0]);
    return Nucleus{thresholds[1], certain ? thresholds[0] : thresholds[0] + 1};
}

// The tokens whose logit plus noise is next to the largest there is.
DEVICE u32 near_winner(const Ask &ask, const float *x, u32 n, float top, u32 least, Pair *list, u32 *winner, u32 *room) {
    const float margin = 1e-3f;  // far above what two logarithms can differ by
    float best = LEAST;
    for (u32 i = threadIdx.x; i < n; i += THREADS) {
        float score = scaled(x[i], top, ask.temperature);
        u32 bits = noise_of(ask.key, i);
        if (x[i] == LEAST || order_of(x[i]) < least || score < ask.min_score) continue;
        if (score + gumbel_bound(bits) < best) continue;
        best = fmaxf(best, score + gumbel(bits));
    }
    best = block_max(best, room);
    u32 all = 0, place = 0, at = 0xffffffffu;
    for (u32 pass = 0; pass < 2; pass++) {
        u32 count = 0;
        for (u32 i = threadIdx.x; i < n; i += THREADS) {
            float score = scaled(x[i], top, ask.temperature);
            u32 bits = noise_of(ask.key, i);
            if (x[i] == LEAST || order_of(x[i]) < least || score < ask.min_score) continue;
            if (score + gumbel_bound(bits) < best - margin) continue;
            float sum = score + gumbel(bits);
            if (sum < best - margin) continue;
            if (sum == best) at = smaller(at, i);
            if (pass == 1 && place + count < MOST) list[place + count] = Pair{i, x[i]};
            count++;
        }
        if (pass == 0) place = block_place(count, &all, room);
    }
    for (u32 mask = 16; mask > 0; mask /= 2) at = smaller(at, shuffle_xor(at, mask));
    if (lane_id() == 0) room[warp_id()] = at;
    sync_threads();
    for (u32 w = 0; w < THREADS / WARP; w++) at = smaller(at, room[w]);
    sync_threads();
    *winner = at;
    return all;
}

KERNEL(sample, SampleArgs, THREADS, 2) {
    SHARED(u32, room);  // [THREADS]
    const Ask ask = args.asks[blockIdx.x];
    float *x = args.logits + (u64)blockIdx.x * args.width;
    Found *found = args.found + blockIdx.x;
    u32 bad = 0;
    for (u32 i = threadIdx.x; i < args.width; i += THREADS) bad |= !(x[i] < bits_float(0x7f800000u));
    bad = block_sum(bad, room);
    if (threadIdx.x == 0) found->bad = bad, found->count = 0, found->raw_count = 0, found->token = 0, args.tokens[blockIdx.x] = 0;
    if (bad) return;
    if (ask.wants_sum) {
        Best raw = block_best(x, args.width, room);
        float sum = 0.0f;
        for (u32 i = threadIdx.x; i < args.width; i += THREADS)
            sum += exp2_fast((x[i] - raw.value) * 1.4426950408889634f);
        sum = warp_sum(sum);
        if (lane_id() == 0) room[warp_id()] = float_bits(sum);
        sync_threads();
        sum = 0.0f;
        for (u32 w = 0; w < THREADS / WARP; w++) sum = add_rn(sum, bits_float(room[w]));
        sync_threads();
        if (threadIdx.x == 0) found->raw_max = raw.value, found->raw_sum = sum;
        if (ask.alternatives) {
            u32 count = largest(x, args.width, smaller(ask.alternatives, args.width), found->raw, room);
            if (threadIdx.x == 0) found->raw_count = count;
        }
    }
    const Change *changes = args.changes + ask.first_change;
    float *originals = args.originals + ask.first_change;
    for (u32 i = threadIdx.x; i < ask.changes; i += THREADS) {
        Change c = changes[i];
        float y = x[c.token];
        originals[i] = y;
        if (c.has_bias) y = add_rn(y, c.bias);
        if (c.repeated) y = y > 0.0f ? y / ask.repetition : mul_rn(y, ask.repetition);
        for (u32 n = 0; n < c.count; n++) y = add_rn(y, -ask.frequency);
        if (c.present) y = add_rn(y, -ask.presence);
        x[c.token] = y;
    }
    sync_threads();
    Best best = block_best(x, args.width, room);
    u32 count = 0, token = smaller(best.at, args.width - 1);
    if (best.value != LEAST) {
        if (ask.mode == NOISE) {
            Nucleus of = {0, 0};
            if (ask.share < 1.0f) of = nucleus(ask, x, args.width, best.value, room);
            count = near_winner(ask, x, args.width, best.value, of.possible, found->list, &token, room);
            u32 unsure = 0;
            for (u32 i = threadIdx.x; i < smaller(count, MOST); i += THREADS)
                unsure += order_of(found->list[i].logit) < of.certain;
            if (block_sum(unsure, room)) count = MOST + 1;
        }
        if (ask.mode == LARGEST) count = largest(x, args.width, smaller(MOST, args.width), found->list, room);
    }
    if (threadIdx.x == 0) found->token = token, args.tokens[blockIdx.x] = token;
    if (threadIdx.x == 0) found->best = best.at, found->best_logit = best.value, found->count = count;
    sync_threads();
    for (u32 i = threadIdx.x; i < ask.changes; i += THREADS) x[changes[i].token] = originals[i];
}
