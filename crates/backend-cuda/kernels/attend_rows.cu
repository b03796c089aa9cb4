// Attention of few rows over long keys: what a step of decoding does, and a check of drafts. Keys are
// split at fixed positions, a block a split and key head, a warp 32 positions of it; the heads that
// share keys are rows of one product. What the warps found is merged in their order, the splits in
// theirs: so a row's result does not depend on what is beside it, nor on how long others are. Few splits
// are merged by the last of their blocks, many by a launch of their own; the sums are the same.
#include "attend.cuh"

#define WARPS 8
#define SPLIT 256
#define MOST_ROWS 16
#define LANES 16

struct Pair { u32 row, head, position; bool there; };

DEVICE Pair pair_of(const AttendArgs &args, const Item &item, u32 kv, u32 i) {
    u32 group = args.query_heads / args.kv_heads, pair = item.first_pair + i, row = pair / group;
    return Pair{item.first_row + row, kv * group + pair % group, item.start + row, row < item.rows};
}

DEVICE bool sees(const AttendArgs &args, const Pair &pair, u32 position) {
    return pair.there && position <= pair.position && (args.window == 0 || position + args.window > pair.position);
}

// The first position that a row at `position` sees.
DEVICE u32 first_seen(const AttendArgs &args, u32 position) {
    return args.window && position + 1 > args.window ? position + 1 - args.window : 0;
}

// The splits that rows of an item see, and how many pairs it has.
struct Extent { u32 first, splits, pairs; };

DEVICE Extent extent_of(const AttendArgs &args, const Item &item) {
    u32 first = first_seen(args, item.start) / SPLIT, group = args.query_heads / args.kv_heads;
    u32 pairs = smaller(item.rows * group - item.first_pair, MOST_ROWS);
    return Extent{first, (item.start + item.rows - 1) / SPLIT - first + 1, pairs};
}

// What the splits of pair `i` come to, from the item's first split on.
template <u32 DIM> DEVICE float *parts_of(const AttendArgs &args, const Item &item, const Extent &extent, u32 kv, u32 i) {
    return args.partial + ((u64)item.place + (kv * extent.pairs + i) * extent.splits) * (2 + DIM);
}

// What some splits of a pair come to in two columns.
struct Merged { float high, total, value[2]; };

DEVICE void join(Merged &all, const Merged &more) {
    float high = fmaxf(all.high, more.high);
    float old = all.high == LEAST ? 0.0f : exp2_fast(all.high - high);
    float now = more.high == LEAST ? 0.0f : exp2_fast(more.high - high);
    all.total = fma_rn(more.total, now, mul_rn(all.total, old));
    for (u32 i = 0; i < 2; i++) all.value[i] = fma_rn(more.value[i], now, mul_rn(all.value[i], old));
    all.high = high;
}

// Two columns of a split.
DEVICE Merged part_at(const float *part, u32 d) {
    uint2 head = *(const uint2 *)part, value = *(const uint2 *)(part + 2 + d);
    return Merged{bits_float(head.x), bits_float(head.y), {bits_float(value.x), bits_float(value.y)}};
}

// Every `step`th of `count` splits from `first` on, in order.
template <u32 DIM> DEVICE Merged merge(const float *parts, u32 first, u32 step, u32 count, u32 d) {
    Merged all = part_at(parts + first * (2 + DIM), d);
    for (u32 split = first + step; split < count; split += 4 * step) {
        // Asked for together; the last again where there are no more.
        Merged some[4];
#pragma unroll
        for (u32 j = 0; j < 4; j++) some[j] = part_at(parts + smaller(split + j * step, count - 1) * (2 + DIM), d);
#pragma unroll
        for (u32 j = 0; j < 4; j++)
            if (split + j * step < count) join(all, some[j]);
    }
    return all;
}

DEVICE void write_merged(const AttendArgs &args, const Pair &pair, u32 d, const Merged &all) {
    u16 *to = (u16 *)args.out + (u64)pair.row * args.stride;
    for (u32 i = 0; i < 2 && d + i < args.dim; i++)
        to[slot(pair.head * args.dim + d + i)] = (u16)pack_bf16(all.value[i] / all.total, 0.0f);
}

// The splits that a row sees, counted from those of its item.
struct Own { u32 first, count; };

DEVICE Own own_of(const AttendArgs &args, const Extent &extent, const Pair &pair) {
    u32 first = first_seen(args, pair.position) / SPLIT;
    return Own{first - extent.first, pair.position / SPLIT - first + 1};
}

// The values of 32 positions of a warp on their way to `to`, [2 pages, OUT, 16]: they need no registers while
// scores are made. What another sequence left has no weight, but may be no number: zeros are there instead.
template <class Kv, u32 DIM>
DEVICE void fetch_values(const AttendArgs &args, u8 *to, const u64 (&pages)[2], u32 part, u32 first, u32 begin, u32 end) {
    constexpr u32 OUT = Parts<DIM>::OUT, CHUNKS = OUT * Kv::BYTES, HELD = 16 / Kv::BYTES;
#pragma unroll
    for (u32 p = 0; p < 2; p++) {
        const u8 *from = (const u8 *)args.cache.v + (pages[p] * DIM + part * OUT) * PAGE * Kv::BYTES;
        u32 page = first + p * PAGE, position = page + lane_id() % Kv::BYTES * HELD;
        bool live = position < end && page + PAGE > begin;
        u32 bytes = live ? smaller(end - position, HELD) * Kv::BYTES : 0;
#pragma unroll
        for (u32 c = 0; c < CHUNKS; c += WARP)
            copy_async(to + (p * CHUNKS + c + lane_id()) * 16, from + (c + lane_id()) * 16, bytes);
    }
    commit_copies();
}

template <class Kv, u32 DIM> DEVICE void attend_rows(const AttendArgs &args) {
    constexpr u32 OUT = Parts<DIM>::OUT, PARTS = Parts<DIM>::COUNT;
    SHARED(float, shared);
    u32 kv = blockIdx.y / PARTS, part = blockIdx.y % PARTS;
    float *tops = shared, *sums = shared + WARPS * MOST_ROWS, *values = sums + WARPS * MOST_ROWS;
    const Item item = args.items[blockIdx.z];
    const Extent extent = extent_of(args, item);
    if (blockIdx.x >= extent.splits) return;
    u32 g = lane_id() / 4, t = lane_id() % 4;
    u32 first = (extent.first + blockIdx.x) * SPLIT, end = item.start + item.rows, begin = first_seen(args, item.start);
    Pair pairs[2] = {pair_of(args, item, kv, g), pair_of(args, item, kv, g + 8)};
    u32 warp_first = first + warp_id() * 32;
    float *own = values + warp_id() * MOST_ROWS * OUT;
    float top[2] = {LEAST, LEAST}, sum[2] = {0.0f, 0.0f}, out[OUT / 8][4] = {};
    if (warp_first < end && warp_first + 32 > begin) {
        u64 pages[2];
        for (u32 p = 0; p < 2; p++) {
            u32 position = warp_first + p * PAGE;
            bool live = position < end && position + PAGE > begin;
            pages[p] = (u64)(live ? args.tables[item.table + position / PAGE] : 0) * args.kv_heads + kv;
        }
        fetch_values<Kv, DIM>(args, (u8 *)own, pages, part, warp_first, begin, end);
        float scores[4][4] = {};  // halves of two pages
#pragma unroll
        for (u32 run = 0; run < DIM / 64; run++) {
            uint4 q[2][2], none = {0, 0, 0, 0};
            for (u32 r = 0; r < 2; r++) {
                u64 at = ((u64)pairs[r].row * args.query_heads + pairs[r].head) * DIM + run * 64 + 16 * t;
                const uint4 *from = (const uint4 *)(args.queries + at);
                q[r][0] = pairs[r].there ? from[0] : none;
                q[r][1] = pairs[r].there ? from[1] : none;
            }
#pragma unroll
            for (u32 n = 0; n < 4; n++) {
                uint4 k[2];
                Kv::key(k, args.cache.k, (pages[n / 2] * PAGE + key_of(n % 2, g)) * DIM + run * 64 + 16 * t);
#pragma unroll
                for (u32 s = 0; s < 4; s++) {
                    const uint4 &x = q[0][s / 2], &y = q[1][s / 2], &w = k[s / 2];
                    u32 a[4] = {s % 2 ? x.z : x.x, s % 2 ? y.z : y.x, s % 2 ? x.w : x.y, s % 2 ? y.w : y.y};
                    u32 b[2] = {s % 2 ? w.z : w.x, s % 2 ? w.w : w.y};
                    mma_bf16(scores[n], a, b);
                }
            }
        }
#pragma unroll
        for (u32 n = 0; n < 4; n++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                u32 in_page = key_of(n % 2, 2 * t + i % 2), position = warp_first + n / 2 * PAGE + in_page;
                float score = mul_rn(scores[n][i], args.scale);
                if (Kv::BYTES == 1) score = mul_rn(score, args.cache.k_scales[pages[n / 2] * PAGE + in_page]);
                scores[n][i] = sees(args, pairs[i / 2], position) ? score : LEAST;
                // fmaxf passes over what is not a number; the sum does not.
                top[i / 2] = fmaxf(top[i / 2], scores[n][i]);
            }
        for (u32 r = 0; r < 2; r++) top[r] = quad_max(top[r]);
        u32 weights[4][2];
#pragma unroll
        for (u32 n = 0; n < 4; n++)
#pragma unroll
            for (u32 r = 0; r < 2; r++) {
                float w[2];
                for (u32 i = 0; i < 2; i++) {
                    float score = scores[n][2 * r + i];
                    w[i] = score == LEAST ? 0.0f : exp2_fast(score - top[r]);
                    sum[r] = add_rn(sum[r], w[i]);
                    u32 in_page = key_of(n % 2, 2 * t + i);
                    if (Kv::BYTES == 1 && score != LEAST)
                        w[i] = mul_rn(w[i], args.cache.v_scales[pages[n / 2] * PAGE + in_page]);
                }
                weights[n][r] = pack_bf16(w[0], w[1]);
            }
        for (u32 r = 0; r < 2; r++) sum[r] = quad_sum(sum[r]);
        wait_copies<0>();
        sync_warp();
#pragma unroll
        for (u32 p = 0; p < 2; p++) {
            u32 a[4] = {weights[2 * p][0], weights[2 * p][1], weights[2 * p + 1][0], weights[2 * p + 1][1]};
#pragma unroll
            for (u32 d = 0; d < OUT / 8; d++) {
                u32 b[2];
                Kv::value(b, own, (p * OUT + d * 8 + g) * PAGE + 4 * t);
                mma_bf16(out[d], a, b);
            }
        }
        // What comes of them takes their place.
        sync_warp();
    }
    if (t == 0)
        for (u32 r = 0; r < 2; r++) {
            tops[warp_id() * MOST_ROWS + g + 8 * r] = top[r];
            sums[warp_id() * MOST_ROWS + g + 8 * r] = sum[r];
        }
#pragma unroll
    for (u32 d = 0; d < OUT / 8; d++)
#pragma unroll
        for (u32 i = 0; i < 4; i++)
            own[(g + i / 2 * 8) * OUT + d * 8 + 2 * t + i % 2] = out[d][i];
    sync_threads();
    for (u32 i = threadIdx.x; i < MOST_ROWS * OUT; i += blockDim.x) {
        u32 r = i / OUT, d = i % OUT;
        if (r >= extent.pairs) continue;
        float high = LEAST, total = 0.0f, value = 0.0f;
        for (u32 w = 0; w < WARPS; w++) high = fmaxf(high, tops[w * MOST_ROWS + r]);
        for (u32 w = 0; w < WARPS; w++) {
            float t = tops[w * MOST_ROWS + r], rescale = t == LEAST ? 0.0f : exp2_fast(t - high);
            total = fma_rn(sums[w * MOST_ROWS + r], rescale, total);
            value = fma_rn(values[(w * MOST_ROWS + r) * OUT + d], rescale, value);
        }
        float *to = parts_of<DIM>(args, item, extent, kv, r) + blockIdx.x * (2 + DIM);
        if (part == 0 && d == 0) to[0] = high, to[1] = total;
        to[2 + part * OUT + d] = value;
    }
    if (!args.arrived) return;
    // As many blocks write to these pairs as there are splits that somebody sees.
    u32 *arrived = args.arrived + blockIdx.z * args.kv_heads + kv;
    if (!is_last(arrived, extent.splits * PARTS, (u32 *)shared)) return;
    for (u32 i = threadIdx.x; i < extent.pairs * DIM / 2; i += blockDim.x) {
        u32 r = i / (DIM / 2), d = i % (DIM / 2) * 2;
        Pair pair = pair_of(args, item, kv, r);
        Own own = own_of(args, extent, pair);
        const float *parts = parts_of<DIM>(args, item, extent, kv, r) + own.first * (2 + DIM);
        write_merged(args, pair, d, merge<DIM>(parts, 0, 1, own.count, d));
    }
}

// Merges the splits of a row and head: every LANES-th of them, then what those come to. So LANES splits and
// less are merged as a block of `attend_rows` does it. However many threads there are, they do the same sums.
template <u32 DIM> DEVICE void attend_merge(const AttendArgs &args) {
    constexpr u32 OUT = Parts<DIM>::OUT, PARTS = Parts<DIM>::COUNT, THREADS = OUT / 2;
    SHARED(float, shared);
    float *tops = shared, *sums = shared + LANES, *values = sums + LANES;
    const Item item = args.items[blockIdx.z];
    const Extent extent = extent_of(args, item);
    u32 kv = blockIdx.y / PARTS, part = blockIdx.y % PARTS, column = threadIdx.x % THREADS * 2, d = part * OUT + column;
    if (blockIdx.x >= extent.pairs) return;
    Pair pair = pair_of(args, item, kv, blockIdx.x);
    Own own = own_of(args, extent, pair);
    const float *parts = parts_of<DIM>(args, item, extent, kv, blockIdx.x) + own.first * (2 + DIM);
    u32 lanes = smaller(own.count, LANES);
    for (u32 lane = threadIdx.x / THREADS; lane < lanes; lane += blockDim.x / THREADS) {
        Merged some = merge<DIM>(parts, lane, LANES, own.count, d);
        if (column == 0) tops[lane] = some.high, sums[lane] = some.total;
        for (u32 i = 0; i < 2; i++) values[lane * OUT + column + i] = some.value[i];
    }
    sync_threads();
    if (threadIdx.x >= THREADS) return;
    Merged all = {tops[0], sums[0], {values[column], values[column + 1]}};
    for (u32 lane = 1; lane < lanes; lane++) {
        const float *value = values + lane * OUT + column;
        join(all, Merged{tops[lane], sums[lane], {value[0], value[1]}});
    }
    write_merged(args, pair, d, all);
}

KERNEL(attend_rows_bf16_64, AttendArgs, 256, 2) { attend_rows<KvBf16, 64>(args); }
KERNEL(attend_rows_bf16_128, AttendArgs, 256, 2) { attend_rows<KvBf16, 128>(args); }
KERNEL(attend_rows_bf16_256, AttendArgs, 256, 1) { attend_rows<KvBf16, 256>(args); }
KERNEL(attend_rows_int8_64, AttendArgs, 256, 2) { attend_rows<KvInt8, 64>(args); }
KERNEL(attend_rows_int8_128, AttendArgs, 256, 2) { attend_rows<KvInt8, 128>(args); }
KERNEL(attend_rows_int8_256, AttendArgs, 256, 2) { attend_rows<KvInt8, 256>(args); }
KERNEL(attend_merge_64, AttendArgs, 512, 1) { attend_merge<64>(args); }
KERNEL(attend_merge_128, AttendArgs, 1024, 1) { attend_merge<128>(args); }
KERNEL(attend_merge_256, AttendArgs, 1024, 1) { attend_merge<256>(args); }
