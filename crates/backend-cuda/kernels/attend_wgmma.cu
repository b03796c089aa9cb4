// Attention of many rows on Hopper, as FlashAttention-3 overlaps it within a warpgroup (Shah et al. 2024): the
// soft-max of the next 64 positions is made while the tensor cores weigh the values of these. A block has 128
// rows of a head, 64 a warpgroup; keys and values are fetched two tiles ahead. Values lie transposed in their
// pages, so that 64 positions of a dimension are a row of what wgmma reads.
#include "attend.cuh"
#include "wgmma.cuh"

#define KEYS 64
#define PAGES (KEYS / PAGE)
#define STAGES 4
#define THREADS 256
#define CHUNKS 8  // of 16 bytes in 64 columns

// Where chunk `chunk` of a row of 128 bytes lies.
DEVICE u32 place(u32 row, u32 chunk) { return row * CHUNKS + (chunk ^ (row & 7)); }

template <u32 DIM> struct Room {
    static constexpr u32 KEY = DIM / 64 * KEYS * CHUNKS, STAGE = KEY + DIM * CHUNKS;
};

DEVICE uint4 widened(const void *base, u64 element) {
    uint2 codes = *(const uint2 *)((const s8 *)base + element);
    return uint4{widen(codes.x, 0), widen(codes.x, 2), widen(codes.y, 0), widen(codes.y, 2)};
}

// What a thread fetches of a tile: the same piece of keys and of values of every TIMES-th page.
template <u32 DIM> struct Fetcher {
    static constexpr u32 ROW = DIM / 8, PIECES = PAGE * ROW, TIMES = THREADS / PIECES, COUNT = PAGES / TIMES;
    const u32 *table;
    u32 begin, end, kv, page, piece, key_to;
    u32 places[COUNT];  // of the pages of the tile that is fetched next
};

template <u32 DIM> DEVICE Fetcher<DIM> fetcher_of(const AttendArgs &args, const Item &item, u32 begin, u32 end) {
    Fetcher<DIM> by;
    by.table = args.tables + item.table, by.begin = begin, by.end = end;
    by.kv = blockIdx.y / (args.query_heads / args.kv_heads);
    by.page = threadIdx.x / by.PIECES, by.piece = threadIdx.x % by.PIECES;
    by.key_to = by.piece % by.ROW / CHUNKS * KEYS * CHUNKS + place(by.piece / by.ROW, by.piece % CHUNKS);
    return by;
}

// Pages that no row sees may be anybody's, or none at all.
template <u32 DIM> DEVICE bool is_seen(const Fetcher<DIM> &by, u32 position) {
    return position < by.end && position + PAGE > by.begin;
}

// Asks where the pages of a tile lie: a turn before `fetch`, which need not wait for that.
template <u32 DIM> DEVICE void look_up(Fetcher<DIM> &by, u32 tile) {
#pragma unroll
    for (u32 n = 0; n < by.COUNT; n++) {
        u32 position = tile * KEYS + (n * by.TIMES + by.page) * PAGE;
        by.places[n] = is_seen(by, position) ? by.table[position / PAGE] : 0;
    }
}

template <class Kv, u32 DIM> DEVICE void fetch(const AttendArgs &args, const Fetcher<DIM> &by, uint4 *stage, u32 tile) {
    // Eight positions of a dimension; those from `end` on hold what somebody left there.
    u32 row = by.piece / 2, half = by.piece % 2;
#pragma unroll
    for (u32 n = 0; n < by.COUNT; n++) {
        u32 p = n * by.TIMES + by.page, position = tile * KEYS + p * PAGE, first = position + half * 8;
        bool there = is_seen(by, position);
        u64 element = ((u64)by.places[n] * args.kv_heads + by.kv) * (PAGE * DIM) + by.piece * 8;
        uint4 *key = stage + by.key_to + p * PAGE * CHUNKS;
        uint4 *value = stage + Room<DIM>::KEY + place(row, 2 * p + half);
        if (Kv::BYTES == 2) {
            u32 held = there && first < by.end ? smaller(by.end - first, 8) * 2 : 0;
            copy_async(key, (const u16 *)args.cache.k + element, there ? 16 : 0);
            copy_async(value, (const u16 *)args.cache.v + element, held);
        } else {
            // Codes are numbers, whoever left them; their weight is zero.
            *key = there ? widened(args.cache.k, element) : uint4{0, 0, 0, 0};
            *value = there ? widened(args.cache.v, element) : uint4{0, 0, 0, 0};
        }
    }
    commit_copies();
}

// A warpgroup's rows, as a thread has two of them.
struct Softmax { float top[2], sum[2], rescale[2]; };

// Weights of the scores of a tile in their place, and what sums so far are to be multiplied by.
template <class Kv>
DEVICE void soften(float (&s)[KEYS / 2], Softmax &soft, const AttendArgs &args, const Item &item, u32 row, u32 tile, u32 begin,
                   u32 end) {
    u32 t = lane_id() % 4, kv = blockIdx.y / (args.query_heads / args.kv_heads), first = tile * KEYS;
    // Rows of this warpgroup that see all of the tile need no look at positions.
    bool whole = first + KEYS <= end && first + KEYS - 1 <= item.start + warp_id() / 4 * 64 && args.window == 0;
    u64 pages[PAGES] = {};
    if (Kv::BYTES == 1)
        for (u32 p = 0; p < PAGES; p++) {
            u32 position = first + p * PAGE;
            bool there = position < end && position + PAGE > begin;
            pages[p] = (u64)(there ? args.tables[item.table + position / PAGE] : 0) * args.kv_heads + kv;
        }
    if (!whole)
#pragma unroll
        for (u32 e = 0; e < KEYS / 2; e++) {
            u32 position = first + e / 4 * 8 + 2 * t + e % 2, own = item.start + row + e % 4 / 2 * 8;
            bool seen = position <= own && position < end && (args.window == 0 || position + args.window > own);
            if (!seen) s[e] = LEAST;
        }
    float high[2] = {soft.top[0], soft.top[1]};
#pragma unroll
    for (u32 e = 0; e < KEYS / 2; e++) {
        // Scales of positions that are not seen may be anything.
        if (Kv::BYTES == 1 && s[e] != LEAST)
            s[e] = mul_rn(s[e], args.cache.k_scales[pages[e / 8] * PAGE + (e / 4 * 8 + 2 * t + e % 2) % PAGE]);
        s[e] = mul_rn(s[e], args.scale);
        // fmaxf passes over what is not a number; the sum does not.
        high[e % 4 / 2] = fmaxf(high[e % 4 / 2], s[e]);
    }
    float top[2];
    for (u32 r = 0; r < 2; r++) {
        high[r] = quad_max(high[r]);
        soft.rescale[r] = soft.top[r] == LEAST ? 0.0f : exp2_fast(soft.top[r] - high[r]);
        soft.top[r] = high[r];
        soft.sum[r] = mul_rn(soft.sum[r], soft.rescale[r]);
        // Of a row that saw nothing yet every score is the least.
        top[r] = high[r] == LEAST ? 0.0f : high[r];
    }
#pragma unroll
    for (u32 e = 0; e < KEYS / 2; e++) {
        bool seen = s[e] != LEAST;
        s[e] = exp2_fast(s[e] - top[e % 4 / 2]);
        soft.sum[e % 4 / 2] = add_rn(soft.sum[e % 4 / 2], s[e]);
        if (Kv::BYTES == 1 && seen)
            s[e] = mul_rn(s[e], args.cache.v_scales[pages[e / 8] * PAGE + (e / 4 * 8 + 2 * t + e % 2) % PAGE]);
    }
}

// Weights as what wgmma reads of its rows.
DEVICE void pack(u32 (&weights)[PAGES][4], const float (&s)[KEYS / 2]) {
#pragma unroll
    for (u32 p = 0; p < PAGES; p++)
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            const float *pair = s + 8 * p + j / 2 * 4 + j % 2 * 2;
            weights[p][j] = pack_bf16(pair[0], pair[1]);
        }
}

DEVICE void weigh(float (&out)[64], const u32 (&weights)[4], const uint4 *values) { wgmma_64x128(out, weights, values); }
DEVICE void weigh(float (&out)[32], const u32 (&weights)[4], const uint4 *values) { wgmma_64x64(out, weights, values); }

template <u32 DIM> DEVICE void multiply(float (&s)[KEYS / 2], const u32 (&queries)[DIM / 16][4], const uint4 *stage) {
    for (u32 i = 0; i < KEYS / 2; i++) s[i] = 0.0f;
    wgmma_fence(s);
#pragma unroll
    for (u32 step = 0; step < DIM / 16; step++)
        wgmma_64x64(s, queries[step], stage + step / 4 * KEYS * CHUNKS + step % 4 * 2);
    wgmma_commit();
}

// Adds the values of a tile, weighed.
template <u32 DIM> DEVICE void weigh_all(float (&out)[DIM / 2], const u32 (&weights)[PAGES][4], const uint4 *stage) {
    wgmma_fence(out);
#pragma unroll
    for (u32 p = 0; p < PAGES; p++) weigh(out, weights[p], stage + Room<DIM>::KEY + 2 * p);
    wgmma_commit();
}

template <class Kv, u32 DIM> DEVICE void attend_wgmma(const AttendArgs &args) {
    SHARED(uint4, stages);  // [STAGES][keys, values]
    const Item item = args.items[blockIdx.x];
    u32 g = lane_id() / 4, t = lane_id() % 4, head = blockIdx.y;
    u32 end = item.start + item.rows;
    u32 begin = args.window && item.start + 1 > args.window ? item.start + 1 - args.window : 0;
    u32 row = warp_id() * 16 + g, first_tile = begin / KEYS, last_tile = (end - 1) / KEYS;
    // In registers, so that shared memory is read for keys and values alone.
    u32 queries[DIM / 16][4];
#pragma unroll
    for (u32 step = 0; step < DIM / 16; step++)
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            u32 r = row + j % 2 * 8;
            u64 from = ((u64)(item.first_row + r) * args.query_heads + head) * DIM + step * 16 + j / 2 * 8 + 2 * t;
            queries[step][j] = r < item.rows ? *(const u32 *)(args.queries + from) : 0;
        }
    Fetcher<DIM> by = fetcher_of<DIM>(args, item, begin, end);
    for (u32 i = 0; i < STAGES - 1; i++) {
        look_up(by, first_tile + i);
        fetch<Kv>(args, by, stages + i * Room<DIM>::STAGE, first_tile + i);
    }
    look_up(by, first_tile + STAGES - 1);
    Softmax soft = {{LEAST, LEAST}, {0.0f, 0.0f}, {0.0f, 0.0f}};
    float out[DIM / 2] = {}, s[KEYS / 2];
    u32 weights[PAGES][4];
    wait_copies<STAGES - 2>();
    fence_proxy();
    sync_threads();
    multiply<DIM>(s, queries, stages);
    wgmma_wait<0>(s);
    soften<Kv>(s, soft, args, item, row, first_tile, begin, end);
    pack(weights, s);
    u32 tile = first_tile;
    for (; tile < last_tile; tile++) {
        u32 at = tile - first_tile;
        const uint4 *stage = stages + at % STAGES * Room<DIM>::STAGE;
        wait_copies<STAGES - 3>();
        fence_proxy();
        sync_threads();
        multiply<DIM>(s, queries, stages + (at + 1) % STAGES * Room<DIM>::STAGE);
        weigh_all<DIM>(out, weights, stage);
        // While the tensor cores are busy: everybody was done with the tile before this one at the barrier.
        if (tile + STAGES - 1 <= last_tile) {
            fetch<Kv>(args, by, stages + (at + STAGES - 1) % STAGES * Room<DIM>::STAGE, tile + STAGES - 1);
            look_up(by, tile + STAGES);
        } else commit_copies();
        wgmma_wait<1>(s);
        soften<Kv>(s, soft, args, item, row, tile + 1, begin, end);
        wgmma_wait<0>(out);
#pragma unroll
        for (u32 i = 0; i < DIM / 2; i++) out[i] = mul_rn(out[i], soft.rescale[i / 2 % 2]);
        pack(weights, s);
    }
    weigh_all<DIM>(out, weights, stages + (tile - first_tile) % STAGES * Room<DIM>::STAGE);
    wgmma_wait<0>(out);
    wait_copies<0>();
    float inverse[2];
    for (u32 r = 0; r < 2; r++) inverse[r] = 1.0f / quad_sum(soft.sum[r]);
#pragma unroll
    for (u32 d = 0; d < DIM / 8; d++)
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32 r = row + i / 2 * 8, column = d * 8 + 2 * t + i % 2;
            if (r >= item.rows || column >= args.dim) continue;
            u16 *to = (u16 *)args.out + (u64)(item.first_row + r) * args.stride;
            to[slot(head * args.dim + column)] = (u16)pack_bf16(mul_rn(out[4 * d + i], inverse[i / 2]), 0.0f);
        }
}

KERNEL(attend_wgmma_bf16_64, AttendArgs, THREADS, 1) { HOPPER(attend_wgmma<KvBf16, 64>(args);) }
KERNEL(attend_wgmma_bf16_128, AttendArgs, THREADS, 1) { HOPPER(attend_wgmma<KvBf16, 128>(args);) }
KERNEL(attend_wgmma_int8_64, AttendArgs, THREADS, 1) { HOPPER(attend_wgmma<KvInt8, 64>(args);) }
KERNEL(attend_wgmma_int8_128, AttendArgs, THREADS, 1) { HOPPER(attend_wgmma<KvInt8, 128>(args);) }
