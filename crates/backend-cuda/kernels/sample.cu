// What a token is drawn from: of each row of logits a few tokens of which one is the reference
// sampler's, found without a sort. The host decides among them exactly (engine::shortlist), so
// what is approximate here changes no result. A block of 1024 threads a row: as a row does not fit
// where a block keeps things, what costs is how often it is read.
#include "dev.cuh"

#define THREADS 1024
#define WARPS (THREADS / WARP)
#define MOST 64
#define BINS (2 * THREADS)
#define BIN_BITS 11
#define LEAST bits_float(0xff800000u)

enum Mode { BEST, NOISE, LARGEST };

// How one token's logit is changed, in this order.
struct Change { u32 token; float bias; u32 has_bias, repeated, count, present; };
static_assert(sizeof(Change) == 24, "as the host has it");

struct Ask {
    u64 key;                      // of the noise
    float temperature, min_score; // of what is scaled by it
    float repetition, frequency, presence;
    u32 mode, first_change, changes, alternatives, wants_sum;
    float share;  // of all exponentials, that the most likely tokens must have; 1: no matter
    u32 unused;
};
static_assert(sizeof(Ask) == 56, "as the host has it");

struct Pair { u32 token; float logit; };
static_assert(sizeof(Pair) == 8, "as the host has it");

struct Found {
    u32 bad, best;
    float best_logit, raw_max, raw_sum;
    u32 count, raw_count, token;  // of the lists; above MOST where they did not hold all
    Pair list[MOST], raw[MOST];
};
static_assert(sizeof(Found) == 1056, "as the host has it");

struct SampleArgs {
    float *logits;  // [rows, width]; changed and changed back
    const Ask *asks;
    const Change *changes;
    float *originals;  // of each change
    Found *found;
    u32 *tokens;  // of each row: the drawn one, as far as can be told here
    u32 width, unused;
};
static_assert(sizeof(SampleArgs) == 56, "as the host has it");

// Orders among which a threshold is; what all above them weigh, and what those of `low` do once it is alone.
struct Span { u32 low, high; u64 above, own; };

struct Room {
    u32 words[WARPS];
    u64 sums[2][WARPS];
    Span spans[2];
    u32 low[2][BINS], high[2][BINS];  // halves of what bins weigh
    u32 count;                        // of the pairs, of which those have room that are found first
    Pair pairs[MOST];
};
static_assert(sizeof(Room) <= 34 << 10, "what src/sample.rs launches with");
static_assert(MOST <= 2 * WARPS && WARPS == WARP && BINS == 1 << BIN_BITS, "see block_best and block_fold");

// The same in every thread, in one order: what `fold` makes of all threads' values. A block has as many warps
// as a warp has lanes.
template <class Fold> DEVICE u32 block_fold(u32 x, u32 *words, Fold fold) {
    for (u32 mask = 16; mask > 0; mask /= 2) x = fold(x, shuffle_xor(x, mask));
    if (lane_id() == 0) words[warp_id()] = x;
    sync_threads();
    x = words[lane_id()];
    for (u32 mask = 16; mask > 0; mask /= 2) x = fold(x, shuffle_xor(x, mask));
    sync_threads();
    return x;
}
DEVICE u32 block_sum(u32 x, u32 *words) {
    return block_fold(x, words, [](u32 a, u32 b) { return a + b; });
}
DEVICE u32 block_min(u32 x, u32 *words) { return block_fold(x, words, smaller); }
DEVICE float block_sum(float x, u32 *words) {
    auto add = [](u32 a, u32 b) { return float_bits(add_rn(bits_float(a), bits_float(b))); };
    return bits_float(block_fold(float_bits(x), words, add));
}
DEVICE float block_max(float x, u32 *words) {
    auto larger = [](u32 a, u32 b) { return float_bits(fmaxf(bits_float(a), bits_float(b))); };
    return bits_float(block_fold(float_bits(x), words, larger));
}

// A thread's next logits: of every THREADS fours one. Which are whose does not depend on where a row lies in
// memory, or what is said of it would depend on the rows before it.
template <u32 FOURS> struct Batch { float v[4 * FOURS]; };
DEVICE u32 place_of(u32 from, u32 k) { return from + k / 4 * (4 * THREADS) + k % 4; }

// All of them are asked for before any is looked at.
template <u32 FOURS> DEVICE Batch<FOURS> batch(const float *x, u32 from, u32 n) {
    Batch<FOURS> b;
    if (((u64)x / 4 | n) % 4 == 0) {
        for (u32 k = 0; k < 4 * FOURS; k += 4) {
            float4 four = {LEAST, LEAST, LEAST, LEAST};
            if (place_of(from, k) < n) four = *(const float4 *)(x + place_of(from, k));
            b.v[k] = four.x, b.v[k + 1] = four.y, b.v[k + 2] = four.z, b.v[k + 3] = four.w;
        }
    } else {
        for (u32 k = 0; k < 4 * FOURS; k++) b.v[k] = place_of(from, k) < n ? x[place_of(from, k)] : LEAST;
    }
    return b;
}

// Calls `visit` with the logits of this thread, in their order. Past the end of the row it sees some that are
// minus infinity: to test every place would cost as much as most visits.
template <u32 FOURS, class Visit> DEVICE void each(const float *x, u32 n, Visit visit) {
    for (u32 from = 4 * threadIdx.x; from < n; from += 4 * THREADS * FOURS) {
        Batch<FOURS> b = batch<FOURS>(x, from, n);
        for (u32 k = 0; k < 4 * FOURS; k++) visit(place_of(from, k), b.v[k]);
    }
}

// The same for the few that pass a test, which none past the end does: what is done with them is not there as
// often as there are logits in a batch.
template <u32 FOURS, class Test, class Visit> DEVICE void each_of_few(const float *x, u32 n, Test test, Visit visit) {
    for (u32 from = 4 * threadIdx.x; from < n; from += 4 * THREADS * FOURS) {
        Batch<FOURS> b = batch<FOURS>(x, from, n);
        u32 passed = 0;
        for (u32 k = 0; k < 4 * FOURS; k++)
            if (test(place_of(from, k), b.v[k])) passed |= 0x80000000u >> k;
        while (passed) {
            u32 k = leading_zeros(passed);
            passed &= ~(0x80000000u >> k);
            visit(place_of(from, k), x[place_of(from, k)]);
        }
    }
}

// The largest logit, of the lowest id among equals; what at least MOST of them are, if there are as many; and
// whether one is no number.
struct Best { float value; u32 at; float among; u32 bad; };

DEVICE Best block_best(const float *x, u32 n, u32 *words) {
    Best best = {LEAST, 4 * threadIdx.x < n ? 4 * threadIdx.x : 0xffffffffu, LEAST, 0};
    bool good = true;
    each<4>(x, n, [&](u32 i, float v) {
        good = good && v < bits_float(0x7f800000u);
        if (v > best.value) best.value = v, best.at = i;
    });
    // Of each half of a warp the largest; the least of these MOST.
    float half = best.value;
    for (u32 mask = 8; mask > 0; mask /= 2) half = fmaxf(half, shuffle_xor_float(half, mask));
    best.among = -block_max(-half, words);
    float top = block_max(half, words);
    best.at = block_min(best.value == top ? best.at : 0xffffffffu, words);
    best.bad = block_sum(good ? 0u : 1u, words);
    best.value = top;
    return best;
}

// Floats as integers of the same order, and back.
DEVICE u32 order_of(float x) {
    u32 bits = float_bits(x == 0.0f ? 0.0f : x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
DEVICE float of_order(u32 order) { return bits_float(order & 0x80000000u ? order & 0x7fffffffu : ~order); }

// Thresholds are found a digit at a time: the tokens of a span of orders are weighed in bins, and the span
// becomes the bin in which the threshold is. Weights are integers, so sums of them have no order.
DEVICE u32 first_shift(const Span &span) {
    u32 bits = 32 - leading_zeros(span.high - span.low);
    return bits > BIN_BITS ? bits - BIN_BITS : 0;
}
DEVICE u32 next_shift(u32 shift) { return shift > BIN_BITS ? shift - BIN_BITS : 0; }

// What the tokens of the first COUNT spans weigh, into their bins.
template <u32 COUNT, class Weigh> DEVICE void fill_bins(const float *x, u32 n, u32 shift, Room *room, Weigh weigh) {
    u32 low[COUNT], high[COUNT];
    float least[COUNT], most[COUNT];
    for (u32 s = 0; s < COUNT; s++) {
        low[s] = room->spans[s].low, high[s] = room->spans[s].high;
        least[s] = of_order(low[s]), most[s] = of_order(high[s]);
        for (u32 i = threadIdx.x; i < BINS; i += THREADS) room->low[s][i] = room->high[s][i] = 0;
    }
    sync_threads();
    each<2>(x, n, [&](u32, float v) {
        bool inside = false;
        for (u32 s = 0; s < COUNT; s++) inside |= v >= least[s] && v <= most[s];
        if (!inside) return;
        u64 weight = weigh(v);
        if (weight == 0) return;
        for (u32 s = 0; s < COUNT; s++) {
            u32 order = order_of(v), bin = (order - low[s]) >> shift;
            if (order < low[s] || order > high[s]) continue;
            u32 old = atomic_add(&room->low[s][bin], (u32)weight);
            u32 carried = (u32)(weight >> 32) + (old + (u32)weight < old);
            if (carried) atomic_add(&room->high[s][bin], carried);
        }
    });
    sync_threads();
}

DEVICE u64 shuffle_xor_64(u64 x, u32 mask) {
    return (u64)shuffle_xor((u32)(x >> 32), mask) << 32 | shuffle_xor((u32)x, mask);
}

// What this thread's two bins weigh, they with all bins above them, and all bins.
struct Reach { u64 upper, both, with_above, all; };

DEVICE Reach reach_of_bins(u32 s, Room *room) {
    u32 bin = 2 * threadIdx.x;
    u64 lower = (u64)room->high[s][bin] << 32 | room->low[s][bin];
    u64 upper = (u64)room->high[s][bin + 1] << 32 | room->low[s][bin + 1];
    u64 of_group = lower + upper, with_above = of_group;
    for (u32 mask = 1; mask < WARP; mask *= 2) {
        u64 other = shuffle_xor_64(of_group, mask);
        if (!(lane_id() & mask)) with_above += other;
        of_group += other;
    }
    if (lane_id() == 0) room->sums[s][warp_id()] = of_group;
    sync_threads();
    u64 all = room->sums[s][lane_id()], above = lane_id() > warp_id() ? all : 0;
    for (u32 mask = 16; mask > 0; mask /= 2) {
        all += shuffle_xor_64(all, mask);
        above += shuffle_xor_64(above, mask);
    }
    return Reach{upper, lower + upper, with_above + above, all};
}

// Leaves of a span the highest bin with which, and with all above it, `bound` is reached; nothing if even all
// do not reach it. Of the threads at most one finds it in its bins.
DEVICE void narrow(const Reach &reach, u64 bound, u32 shift, Span *to) {
    Span span = *to;
    u64 with_above = reach.with_above + span.above;
    sync_threads();
    if (threadIdx.x == 0 && with_above < bound) to->low = 0, to->high = 0;
    if (with_above >= bound && with_above - reach.both < bound) {
        u64 higher = with_above - reach.both;
        bool in_upper = higher + reach.upper >= bound;
        u32 low = span.low + ((2 * threadIdx.x + in_upper) << shift);
        to->low = low, to->high = smaller(span.high, low + ((1u << shift) - 1));
        to->above = in_upper ? higher : higher + reach.upper;
        to->own = in_upper ? reach.upper : reach.both - reach.upper;
    }
    sync_threads();
}

// Begins a list; adds to it; and writes it by the tokens' ids, from what a thread each adds. How many there are,
// which may be more than have room.
DEVICE void begin_list(Room *room) {
    if (threadIdx.x == 0) room->count = 0;
    sync_threads();
}
DEVICE void add_to_list(u32 i, float v, Room *room) {
    u32 place = atomic_add(&room->count, 1);
    if (place < MOST) room->pairs[place] = Pair{i, v};
}
DEVICE u32 end_list(Pair *list, Room *room) {
    sync_threads();
    u32 count = room->count;
    if (threadIdx.x < count && count <= MOST) {
        Pair own = room->pairs[threadIdx.x];
        u32 place = 0;
        for (u32 k = 0; k < count; k++) place += room->pairs[k].token < own.token;
        list[place] = own;
    }
    sync_threads();
    return count;
}

// The `wanted` largest logits, at most MOST, and whatever equals the last of them.
DEVICE u32 largest(const float *x, u32 n, u32 wanted, const Best &best, Pair *list, Room *room) {
    // Those of minus infinity are never weighed.
    u32 low = best.among == LEAST ? order_of(LEAST) + 1 : order_of(best.among);
    if (threadIdx.x == 0) room->spans[0] = Span{low, order_of(best.value), 0, 0};
    sync_threads();
    for (u32 shift = first_shift(room->spans[0]);; shift = next_shift(shift)) {
        fill_bins<1>(x, n, shift, room, [](float) { return (u64)1; });
        narrow(reach_of_bins(0, room), wanted, shift, &room->spans[0]);
        if (shift == 0) break;
    }
    float least = room->spans[0].low ? of_order(room->spans[0].low) : LEAST;
    begin_list(room);
    each<4>(x, n, [&](u32 i, float v) {
        if (v >= least && i < n) add_to_list(i, v, room);
    });
    return end_list(list, room);
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

// The most likely tokens that have `ask.share` of all exponentials, as far as sums tell that differ in their
// last digits: certainly those whose order is at least `certain`, none below `possible`.
struct Nucleus { u32 possible, certain; };

DEVICE Nucleus nucleus(const Ask &ask, const float *x, u32 n, float top, Room *room) {
    auto weigh = [&](float v) { return weight(v, top, ask.temperature); };
    // Below that, exponentials are nothing.
    Span span = {order_of(top - 28.0f * ask.temperature), order_of(top), 0, 0};
    if (threadIdx.x < 2) room->spans[threadIdx.x] = span;
    sync_threads();
    u32 shift = first_shift(span);
    fill_bins<1>(x, n, shift, room, weigh);
    Reach reach = reach_of_bins(0, room);
    // A share of it is far more than sums of 2^-24 parts of exponentials can differ by.
    u64 wanted = (u64)((double)reach.all * ask.share), margin = reach.all >> 13;
    u64 bounds[2] = {wanted > margin ? wanted - margin : 1, wanted + margin};
    for (u32 s = 0; s < 2; s++) narrow(reach, bounds[s], shift, &room->spans[s]);
    while (shift > 0) {
        shift = next_shift(shift);
        fill_bins<2>(x, n, shift, room, weigh);
        for (u32 s = 0; s < 2; s++) narrow(reach_of_bins(s, room), bounds[s], shift, &room->spans[s]);
    }
    // The last token that may be the one with which the share is reached. Of several that equal it some may
    // be left out, unless all but one of them do not reach it.
    Span last = room->spans[0];
    u64 one = weigh(of_order(last.low));
    bool certain = last.own == one || last.above + last.own - one < bounds[0];
    return Nucleus{room->spans[1].low, certain ? last.low : last.low + 1};
}

// The tokens whose logit plus noise is next to the largest there is.
DEVICE u32 near_winner(const Ask &ask, const float *x, u32 n, const Best &top, u32 least, Pair *list, u32 *winner,
                       Room *room) {
    const float margin = 1e-3f;  // far above what two logarithms can differ by
    float inverse = 1.0f / ask.temperature, best = gumbel(noise_of(ask.key, top.at));
    // A logit that may come, and with noise that is `best` or close: noise is less than 23. Divided by the
    // temperature in a hurry, so those are taken too of which that tells nothing.
    float cut = 0.0f;
    auto set_cut = [&] {
        u32 order = order_of(top.value + (best - 24.0f) * ask.temperature);
        u32 lowest = least > order_of(LEAST) ? least : order_of(LEAST) + 1;
        cut = of_order(order > lowest ? order : lowest);
    };
    auto may_win = [&](u32 i, float v) {
        return v >= cut && !((v - top.value) * inverse + gumbel_bound(noise_of(ask.key, i)) < best - 2.0f * margin);
    };
    auto sum_of = [&](u32 i, float v) {
        float score = scaled(v, top.value, ask.temperature);
        return score < ask.min_score ? LEAST : score + gumbel(noise_of(ask.key, i));
    };
    set_cut();
    each_of_few<2>(x, n, may_win, [&](u32 i, float v) { best = fmaxf(best, sum_of(i, v)); });
    best = block_max(best, room->words);
    set_cut();
    u32 at = 0xffffffffu;
    begin_list(room);
    each_of_few<2>(x, n, may_win, [&](u32 i, float v) {
        float sum = sum_of(i, v);
        if (sum < best - margin) return;
        if (sum == best) at = smaller(at, i);
        add_to_list(i, v, room);
    });
    at = block_min(at, room->words);
    *winner = at < n ? at : top.at;
    return end_list(list, room);
}

// The logits as the asker has them; what they were is kept.
DEVICE void change(const Ask &ask, float *x, const Change *changes, float *originals) {
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
}

// What the logits are like before any change.
DEVICE void find_raw(const Ask &ask, const float *x, u32 n, const Best &raw, Found *found, Room *room) {
    float sum = 0.0f;
    each<4>(x, n, [&](u32, float v) { sum += exp2_fast((v - raw.value) * 1.4426950408889634f); });
    sum = block_sum(sum, room->words);
    if (threadIdx.x == 0) found->raw_max = raw.value, found->raw_sum = sum;
    if (!ask.alternatives) return;
    u32 count = largest(x, n, smaller(ask.alternatives, n), raw, found->raw, room);
    if (threadIdx.x == 0) found->raw_count = count;
}

// The tokens among which the host decides, and the one that is drawn as far as can be told here.
DEVICE u32 find(const Ask &ask, const float *x, u32 n, const Best &best, Found *found, u32 *token, Room *room) {
    if (ask.mode == LARGEST) return largest(x, n, smaller(MOST, n), best, found->list, room);
    if (ask.mode != NOISE) return 0;
    Nucleus of = {0, 0};
    if (ask.share < 1.0f) of = nucleus(ask, x, n, best.value, room);
    u32 count = near_winner(ask, x, n, best, of.possible, found->list, token, room);
    u32 unsure = threadIdx.x < smaller(count, MOST) && order_of(room->pairs[threadIdx.x].logit) < of.certain;
    return block_sum(unsure, room->words) ? MOST + 1 : count;
}

KERNEL(sample, SampleArgs, THREADS, 1) {
    SHARED(Room, room);
    const Ask ask = args.asks[blockIdx.x];
    u32 width = args.width;
    float *x = args.logits + (u64)blockIdx.x * width;
    Found *found = args.found + blockIdx.x;
    Best best = block_best(x, width, room->words);
    if (threadIdx.x == 0) found->bad = best.bad, found->count = 0, found->raw_count = 0, found->token = 0;
    if (threadIdx.x == 0) args.tokens[blockIdx.x] = 0;
    if (best.bad) return;
    if (ask.wants_sum) find_raw(ask, x, width, best, found, room);
    if (ask.changes) {
        change(ask, x, args.changes + ask.first_change, args.originals + ask.first_change);
        best = block_best(x, width, room->words);
    }
    u32 token = smaller(best.at, width - 1), count = 0;
    if (best.value != LEAST) count = find(ask, x, width, best, found, &token, room);
    if (threadIdx.x == 0) found->token = token, args.tokens[blockIdx.x] = token;
    if (threadIdx.x == 0) found->best = best.at, found->best_logit = best.value, found->count = count;
    sync_threads();
    for (u32 i = threadIdx.x; i < ask.changes; i += THREADS)
        x[args.changes[ask.first_change + i].token] = args.originals[ask.first_change + i];
}
