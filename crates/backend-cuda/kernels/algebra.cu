// What calibration computes: Gram matrices, the factor of an inverse, rank updates. Each entry is one
// thread's, and its sum has the order of backend::algebra: so the bits are those of the CPU.
#include "dev.cuh"

#define EDGE 64    // entries of a tile's side; a thread has 4 x 4 of them
#define DEPTH 16   // of what is held in shared memory
#define THREADS 256

// Fills `tile` [DEPTH][EDGE] with from[k][at ..], zeros outside.
template <class T> DEVICE void fill(T *tile, const T *from, u64 width, u32 first_k, u32 end_k, u32 at, u32 end) {
    for (u32 i = threadIdx.x; i < DEPTH * EDGE; i += THREADS) {
        u32 k = first_k + i / EDGE, column = at + i % EDGE;
        tile[i] = k < end_k && column < end ? from[k * width + column] : T(0);
    }
}

// sum[r][c] = fma(a[k][r], b[k][c], sum[r][c]) for k in order, below `depth`.
template <class T> DEVICE void multiply(T (&sum)[4][4], const T *a, const T *b, u32 depth) {
    u32 y = threadIdx.x / 16, x = threadIdx.x % 16;
    for (u32 k = 0; k < depth; k++)
        for (u32 r = 0; r < 4; r++)
            for (u32 c = 0; c < 4; c++)
                sum[r][c] = fma_rn(a[k * EDGE + y + 16 * r], b[k * EDGE + x + 16 * c], sum[r][c]);
}

struct GramArgs {
    const float *x;     // [rows, width]
    float *sum;         // [width, width]: the lower triangle
    const u32 *pieces;  // [count, 2]: rows that are summed from zero
    u32 width, count;
};
static_assert(sizeof(GramArgs) == 32, "as the host has it");

KERNEL(gram, GramArgs, THREADS, 1) {
    SHARED(float, a);  // [2][DEPTH][EDGE]
    float *b = a + DEPTH * EDGE;
    u32 i0 = blockIdx.y * EDGE, j0 = blockIdx.x * EDGE;
    if (j0 > i0) return;
    u32 y = threadIdx.x / 16, x = threadIdx.x % 16;
    float total[4][4];
    for (u32 r = 0; r < 4; r++)
        for (u32 c = 0; c < 4; c++) {
            u32 i = i0 + y + 16 * r, j = j0 + x + 16 * c;
            total[r][c] = i < args.width && j <= i ? args.sum[(u64)i * args.width + j] : 0.0f;
        }
    for (u32 piece = 0; piece < args.count; piece++) {
        u32 begin = args.pieces[2 * piece], end = args.pieces[2 * piece + 1];
        float sum[4][4] = {};
        for (u32 k = begin; k < end; k += DEPTH) {
            sync_threads();
            fill(a, args.x, args.width, k, end, i0, args.width);
            fill(b, args.x, args.width, k, end, j0, args.width);
            sync_threads();
            multiply(sum, a, b, smaller(DEPTH, end - k));
        }
        for (u32 r = 0; r < 4; r++)
            for (u32 c = 0; c < 4; c++) total[r][c] = add_rn(total[r][c], sum[r][c]);
    }
    for (u32 r = 0; r < 4; r++)
        for (u32 c = 0; c < 4; c++) {
            u32 i = i0 + y + 16 * r, j = j0 + x + 16 * c;
            if (i < args.width && j <= i) args.sum[(u64)i * args.width + j] = total[r][c];
        }
}

struct UpdateArgs {
    float *c;            // [rows, width]
    const float *a, *b;  // [depth, rows] and [depth, columns]
    u32 rows, width, first, columns, depth, unused;
};
static_assert(sizeof(UpdateArgs) == 48, "as the host has it");

KERNEL(rank_update, UpdateArgs, THREADS, 1) {
    SHARED(float, a);
    float *b = a + DEPTH * EDGE, sum[4][4] = {};
    u32 i0 = blockIdx.y * EDGE, j0 = blockIdx.x * EDGE, y = threadIdx.x / 16, x = threadIdx.x % 16;
    for (u32 k = 0; k < args.depth; k += DEPTH) {
        sync_threads();
        fill(a, args.a, args.rows, k, args.depth, i0, args.rows);
        fill(b, args.b, args.columns, k, args.depth, j0, args.columns);
        sync_threads();
        multiply(sum, a, b, smaller(DEPTH, args.depth - k));
    }
    for (u32 r = 0; r < 4; r++)
        for (u32 c = 0; c < 4; c++) {
            u32 i = i0 + y + 16 * r, j = j0 + x + 16 * c;
            if (i >= args.rows || j >= args.columns) continue;
            float *to = args.c + (u64)i * args.width + args.first + j;
            *to = add_rn(*to, -sum[r][c]);
        }
}

struct ColumnsArgs {
    const float *from;  // [rows, width]
    float *out;         // [rows, columns]
    u32 rows, width, first, columns;
};
static_assert(sizeof(ColumnsArgs) == 32, "as the host has it");

// A block a row.
KERNEL(take_columns, ColumnsArgs, 128, 8) {
    const float *from = args.from + (u64)blockIdx.x * args.width + args.first;
    float *out = args.out + (u64)blockIdx.x * args.columns;
    for (u32 i = threadIdx.x; i < args.columns; i += blockDim.x) out[i] = from[i];
}

// -- the factor of an inverse: see backend::algebra::inverse_factor ---------------------------------

#define ROWS 128

struct FactorArgs {
    double *matrix;  // [n, n]
    u32 *failed;
    u32 n, begin, end, unused;
};
static_assert(sizeof(FactorArgs) == 32, "as the host has it");

// Rows of a block from the last to the first, within the columns of the block. One block of threads.
KERNEL(factor_eliminate, FactorArgs, THREADS, 1) {
    SHARED(double, row);  // [ROWS]
    u32 size = args.end - args.begin;
    double *m = args.matrix + (u64)args.begin * args.n + args.begin;
    for (u32 k = size; k-- > 0;) {
        double pivot = m[(u64)k * args.n + k];
        // All threads read the same pivot, and leave together.
        if (!(pivot > 0.0 && pivot < 1.7976931348623157e308)) {
            if (threadIdx.x == 0) *args.failed = 1;
            return;
        }
        double scale = 1.0 / sqrt(pivot);
        sync_threads();
        for (u32 j = threadIdx.x; j < size; j += THREADS) {
            double x = j == k ? scale : m[(u64)k * args.n + j] * scale;
            row[j] = x;
            m[(u64)k * args.n + j] = x;
        }
        sync_threads();
        for (u32 at = threadIdx.x; at < k * size; at += THREADS) {
            u32 i = at / size, j = at % size;
            if (j <= i || j >= k) m[(u64)i * args.n + j] = fma_rn(-row[i], row[j], m[(u64)i * args.n + j]);
        }
        sync_threads();
    }
    for (u32 at = threadIdx.x; at < size * size; at += THREADS)
        if (at % size < at / size) m[(u64)(at / size) * args.n + at % size] = 0.0;
}

// Columns outside the block: its rows become sums of them. 32 columns a block of threads.
KERNEL(factor_rows, FactorArgs, THREADS, 1) {
    SHARED(double, columns);  // [ROWS][32]
    if (*args.failed) return;
    u32 size = args.end - args.begin, j0 = blockIdx.x * 32;
    for (u32 at = threadIdx.x; at < size * 32; at += THREADS) {
        u32 j = j0 + at % 32;
        columns[at] = j < args.n ? args.matrix[(u64)(args.begin + at / 32) * args.n + j] : 0.0;
    }
    sync_threads();
    for (u32 at = threadIdx.x; at < size * 32; at += THREADS) {
        u32 i = at / 32, j = j0 + at % 32;
        if (j >= args.n || (j >= args.begin && j < args.end)) continue;
        double sum = 0.0;
        for (u32 k = 0; k < size; k++)
            sum = fma_rn(args.matrix[(u64)(args.begin + i) * args.n + args.begin + k], columns[k * 32 + at % 32], sum);
        args.matrix[(u64)(args.begin + i) * args.n + j] = sum;
    }
}

// What the block's rows take from those before it: entries (i, j) with j up to i or from the block on.
KERNEL(factor_update, FactorArgs, THREADS, 1) {
    SHARED(double, a);
    if (*args.failed) return;
    double *b = a + DEPTH * EDGE, sum[4][4] = {};
    u32 i0 = blockIdx.y * EDGE, j0 = blockIdx.x * EDGE, y = threadIdx.x / 16, x = threadIdx.x % 16;
    if (j0 > i0 + EDGE - 1 && j0 + EDGE <= args.begin) return;
    const double *rows = args.matrix + (u64)args.begin * args.n;
    u32 size = args.end - args.begin;
    for (u32 k = 0; k < size; k += DEPTH) {
        sync_threads();
        fill(a, rows, args.n, k, size, i0, args.begin);
        fill(b, rows, args.n, k, size, j0, args.n);
        sync_threads();
        multiply(sum, a, b, smaller(DEPTH, size - k));
    }
    for (u32 r = 0; r < 4; r++)
        for (u32 c = 0; c < 4; c++) {
            u32 i = i0 + y + 16 * r, j = j0 + x + 16 * c;
            if (i >= args.begin || j >= args.n || (j > i && j < args.begin)) continue;
            args.matrix[(u64)i * args.n + j] -= sum[r][c];
        }
}
