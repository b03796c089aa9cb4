// Attention of many rows, as flash attention does it (Dao 2023): 64 rows of a head a block, 16 a warp,
// over keys and values that are fetched 64 positions at a time while the last are computed with.
#include "attend.cuh"

#define ROWS 64
#define KEYS 64
#define PAGES (KEYS / PAGE)

// Chunks of 16 bytes in a key's row lie so that the two rows of a quarter warp do not collide.
template <u32 CHUNKS> DEVICE u32 place(u32 row, u32 chunk) { return row * CHUNKS + (chunk ^ (row & 1)); }

template <class Kv, u32 DIM>
DEVICE void fetch(const AttendArgs &args, const Item &item, uint4 *stage, u32 first, u32 begin, u32 end) {
    constexpr u32 CHUNKS = DIM * 2 / 16, VALUES = KEYS * CHUNKS, OUT = Parts<DIM>::OUT, PARTS = Parts<DIM>::COUNT;
    u32 kv = blockIdx.y / PARTS / (args.query_heads / args.kv_heads), part = blockIdx.y % PARTS;
    for (u32 i = threadIdx.x; i < VALUES + VALUES / PARTS; i += blockDim.x) {
        bool is_key = i < VALUES;
        u32 in_page = is_key ? PAGE * CHUNKS : PAGE * CHUNKS / PARTS;
        u32 c = is_key ? i : i - VALUES, p = c / in_page, rest = c % in_page;
        u32 position = first + p * PAGE;
        // Pages that no row sees may be anybody's, or none at all.
        bool there = position < end && position + PAGE > begin;
        u64 page = (u64)(there ? args.tables[item.table + position / PAGE] : 0) * args.kv_heads + kv;
        uint4 *to = is_key ? stage + place<CHUNKS>(p * PAGE + rest / CHUNKS, rest % CHUNKS) : stage + VALUES + c;
        const void *base = is_key ? args.cache.k : args.cache.v;
        u64 element = page * PAGE * DIM + (is_key ? 0 : part * OUT * PAGE) + rest * 8;
        if (Kv::BYTES == 2) {
            copy_async(to, (const u16 *)base + element, there ? 16 : 0);
        } else {
            uint2 codes = there ? *(const uint2 *)((const s8 *)base + element) : uint2{0, 0};
            *to = uint4{widen(codes.x, 0), widen(codes.x, 2), widen(codes.y, 0), widen(codes.y, 2)};
        }
    }
    commit_copies();
}

template <class Kv, u32 DIM> DEVICE void attend_tiles(const AttendArgs &args) {
    constexpr u32 OUT = Parts<DIM>::OUT, PARTS = Parts<DIM>::COUNT;
    constexpr u32 CHUNKS = DIM * 2 / 16, STAGE = KEYS * CHUNKS + KEYS * CHUNKS / PARTS;
    SHARED(uint4, stages);  // [2][keys, values]
    const Item item = args.items[blockIdx.x];
    u32 head = blockIdx.y / PARTS, part = blockIdx.y % PARTS, kv = head / (args.query_heads / args.kv_heads);
    u32 g = lane_id() / 4, t = lane_id() % 4;
    u32 end = item.start + item.rows;
    u32 begin = args.window && item.start + 1 > args.window ? item.start + 1 - args.window : 0;
    u32 row[2] = {warp_id() * 16 + g, warp_id() * 16 + g + 8};
    uint4 q[DIM / 64][2][2], none = {0, 0, 0, 0};
    for (u32 run = 0; run < DIM / 64; run++)
        for (u32 r = 0; r < 2; r++) {
            u64 at = ((u64)(item.first_row + row[r]) * args.query_heads + head) * DIM + run * 64 + 16 * t;
            const uint4 *from = (const uint4 *)(args.queries + at);
            q[run][r][0] = row[r] < item.rows ? from[0] : none;
            q[run][r][1] = row[r] < item.rows ? from[1] : none;
        }
    float top[2] = {LEAST, LEAST}, sum[2] = {0.0f, 0.0f}, out[OUT / 8][4] = {};
    u32 first_tile = begin / KEYS, last_tile = (end - 1) / KEYS;
    fetch<Kv, DIM>(args, item, stages, first_tile * KEYS, begin, end);
    for (u32 tile = first_tile; tile <= last_tile; tile++) {
        const uint4 *stage = stages + (tile - first_tile) % 2 * STAGE;
        wait_copies<0>();
        sync_threads();
        if (tile < last_tile)
            fetch<Kv, DIM>(args, item, stages + (tile + 1 - first_tile) % 2 * STAGE, (tile + 1) * KEYS, begin, end);
        float scores[2 * PAGES][4] = {};
#pragma unroll
        for (u32 run = 0; run < DIM / 64; run++)
#pragma unroll
            for (u32 n = 0; n < 2 * PAGES; n++)
#pragma unroll
                for (u32 pair = 0; pair < 2; pair++) {
                    uint4 k = stage[place<CHUNKS>(n / 2 * PAGE + key_of(n % 2, g), run * 8 + 2 * t + pair)];
                    const uint4 &x = q[run][0][pair], &y = q[run][1][pair];
                    u32 even[4] = {x.x, y.x, x.y, y.y}, odd[4] = {x.z, y.z, x.w, y.w};
                    u32 b[2] = {k.x, k.y}, c[2] = {k.z, k.w};
                    mma_bf16(scores[n], even, b);
                    mma_bf16(scores[n], odd, c);
                }
        float high[2] = {top[0], top[1]};
        u64 pages[PAGES] = {};
        if (Kv::BYTES == 1)
            for (u32 p = 0; p < PAGES; p++) {
                u32 position = tile * KEYS + p * PAGE;
                bool there = position < end && position + PAGE > begin;
                pages[p] = (u64)(there ? args.tables[item.table + position / PAGE] : 0) * args.kv_heads + kv;
            }
#pragma unroll
        for (u32 n = 0; n < 2 * PAGES; n++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                u32 in_page = key_of(n % 2, 2 * t + i % 2), position = tile * KEYS + n / 2 * PAGE + in_page;
                u32 own = item.start + row[i / 2];
                bool seen = position <= own && position < end && (args.window == 0 || position + args.window > own);
                float score = mul_rn(scores[n][i], args.scale);
                if (Kv::BYTES == 1 && seen) score = mul_rn(score, args.cache.k_scales[pages[n / 2] * PAGE + in_page]);
                scores[n][i] = seen ? score : LEAST;
                high[i / 2] = fmaxf(high[i / 2], scores[n][i]);
            }
        float rescale[2];
        for (u32 r = 0; r < 2; r++) {
            high[r] = quad_max(high[r]);
            rescale[r] = top[r] == LEAST ? 0.0f : exp2_fast(top[r] - high[r]);
            top[r] = high[r];
            sum[r] = mul_rn(sum[r], rescale[r]);
        }
#pragma unroll
        for (u32 d = 0; d < OUT / 8; d++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) out[d][i] = mul_rn(out[d][i], rescale[i / 2]);
#pragma unroll
        for (u32 p = 0; p < PAGES; p++) {
            u32 a[4];
#pragma unroll
            for (u32 j = 0; j < 2; j++)
#pragma unroll
                for (u32 r = 0; r < 2; r++) {
                    float w[2];
                    for (u32 i = 0; i < 2; i++) {
                        float score = scores[2 * p + j][2 * r + i];
                        w[i] = score == LEAST ? 0.0f : exp2_fast(score - top[r]);
                        sum[r] = add_rn(sum[r], w[i]);
                        if (Kv::BYTES == 1 && score != LEAST)
                            w[i] = mul_rn(w[i], args.cache.v_scales[pages[p] * PAGE + key_of(j, 2 * t + i)]);
                    }
                    a[2 * j + r] = pack_bf16(w[0], w[1]);
                }
            u32 position = tile * KEYS + p * PAGE;
            const u16 *values = (const u16 *)(stage + KEYS * CHUNKS) + p * PAGE * OUT;
#pragma unroll
            for (u32 d = 0; d < OUT / 8; d++) {
                u32 b[2];
                KvBf16::value(b, values, (d * 8 + g) * PAGE + 4 * t);
                if (position + PAGE > end) clear_from(b, position + 4 * t, end);
                mma_bf16(out[d], a, b);
            }
        }
    }
    for (u32 r = 0; r < 2; r++) sum[r] = quad_sum(sum[r]);
#pragma unroll
    for (u32 d = 0; d < OUT / 8; d++)
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32 r = i / 2, column = part * OUT + d * 8 + 2 * t + i % 2;
            if (row[r] >= item.rows || column >= args.dim) continue;
            u16 *to = (u16 *)args.out + (u64)(item.first_row + row[r]) * args.stride;
            to[slot(head * args.dim + column)] = (u16)pack_bf16(out[d][i] / sum[r], 0.0f);
        }
}

KERNEL(attend_tiles_bf16_64, AttendArgs, 128, 2) { attend_tiles<KvBf16, 64>(args); }
KERNEL(attend_tiles_bf16_128, AttendArgs, 128, 2) { attend_tiles<KvBf16, 128>(args); }
KERNEL(attend_tiles_bf16_256, AttendArgs, 128, 1) { attend_tiles<KvBf16, 256>(args); }
KERNEL(attend_tiles_int8_64, AttendArgs, 128, 2) { attend_tiles<KvInt8, 64>(args); }
KERNEL(attend_tiles_int8_128, AttendArgs, 128, 2) { attend_tiles<KvInt8, 128>(args); }
KERNEL(attend_tiles_int8_256, AttendArgs, 128, 1) { attend_tiles<KvInt8, 256>(args); }
