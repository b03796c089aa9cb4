// What a machine can do, by bare loops: the oracle of what `optimize bench` measures. A shared library,
// so that both read the same memory, right after one another.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

// Sums that do not wait for each other, each in a register of its own.
#define EACH(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)

enum { SUMS = 12, ROUNDS = 1 << 22, MOST = 1024 };

static const uint64_t *words;
static size_t all_words;
static int threads;
static double (*work)(int thread);
static double done[MOST];
static volatile uint64_t sink;
static atomic_size_t next;  // share of the words

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

// Whether vectors of 64 bytes are read, or of 32; four sums of either, where the compiler was told of them.
// It depends on the pace of the memory which of the two loops is the faster one.
static int wide;

static uint64_t sum_of(const uint64_t *at, size_t count) {
    uint64_t sum = 0;
    size_t i = 0;
#ifdef __AVX2__
    __m256i halves[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
    for (; !wide && i + 16 <= count; i += 16)
        for (int k = 0; k < 4; k++)
            halves[k] = _mm256_add_epi64(halves[k], _mm256_loadu_si256((const __m256i *)(at + i + 4 * k)));
    for (int k = 0; k < 4; k++) {
        uint64_t lanes[4];
        _mm256_storeu_si256((__m256i *)lanes, halves[k]);
        sum += lanes[0] + lanes[1] + lanes[2] + lanes[3];
    }
#endif
#ifdef __AVX512F__
    __m512i sums[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
    for (; wide && i + 32 <= count; i += 32)
        for (int k = 0; k < 4; k++) sums[k] = _mm512_add_epi64(sums[k], _mm512_loadu_si512(at + i + 8 * k));
    for (int k = 0; k < 4; k++) sum += (uint64_t)_mm512_reduce_add_epi64(sums[k]);
#endif
    for (; i < count; i++) sum += at[i];
    return sum;
}

// Threads take a mebibyte at a time, whoever is free: one that is held up does not hold up the others.
static double read_words(int thread) {
    (void)thread;
    const size_t share = ((size_t)1 << 20) / 8;
    size_t count = 0;
    for (size_t from = share * next++; from < all_words; from = share * next++) {
        size_t some = from + share < all_words ? share : all_words - from;
        sink = sum_of(words + from, some);
        count += some;
    }
    return 8.0 * count;
}

#ifdef __AVX512F__
static double f32(int thread) {
    (void)thread;
    __m512 a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(1.0f);
#define ZERO(i) __m512 s##i = _mm512_setzero_ps();
#define STEP(i) s##i = _mm512_fmadd_ps(a, b, s##i); __asm__ volatile("" : "+v"(s##i));
    EACH(ZERO)
    for (int round = 0; round < ROUNDS; round++) { EACH(STEP) }
#undef ZERO
#undef STEP
    return 2.0 * 16 * SUMS * ROUNDS;
}
#elif defined(__AVX2__) && defined(__FMA__)
static double f32(int thread) {
    (void)thread;
    __m256 a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(1.0f);
#define ZERO(i) __m256 s##i = _mm256_setzero_ps();
#define STEP(i) s##i = _mm256_fmadd_ps(a, b, s##i); __asm__ volatile("" : "+x"(s##i));
    EACH(ZERO)
    for (int round = 0; round < ROUNDS; round++) { EACH(STEP) }
#undef ZERO
#undef STEP
    return 2.0 * 8 * SUMS * ROUNDS;
}
#endif

#ifdef __AVX512BF16__
static double bf16(int thread) {
    (void)thread;
    __m512bh a = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.5f), _mm512_set1_ps(0.5f));
    __m512bh b = _mm512_cvtne2ps_pbh(_mm512_set1_ps(1.0f), _mm512_set1_ps(1.0f));
#define ZERO(i) __m512 s##i = _mm512_setzero_ps();
#define STEP(i) s##i = _mm512_dpbf16_ps(s##i, a, b); __asm__ volatile("" : "+v"(s##i));
    EACH(ZERO)
    for (int round = 0; round < ROUNDS; round++) { EACH(STEP) }
#undef ZERO
#undef STEP
    return 2.0 * 32 * SUMS * ROUNDS;
}
#endif

#ifdef __AVX512VNNI__
static double int8(int thread) {
    (void)thread;
    __m512i a = _mm512_set1_epi32(0x01020304), b = _mm512_set1_epi32(0x01010101);
#define ZERO(i) __m512i s##i = _mm512_setzero_si512();
#define STEP(i) s##i = _mm512_dpbusd_epi32(s##i, a, b); __asm__ volatile("" : "+v"(s##i));
    EACH(ZERO)
    for (int round = 0; round < ROUNDS; round++) { EACH(STEP) }
#undef ZERO
#undef STEP
    return 2.0 * 64 * SUMS * ROUNDS;
}
#endif

// All begin together: a thread is slow to start, and may first share a core with another.
static atomic_int ready, go;

static void *thread_main(void *thread) {
    int index = (int)(intptr_t)thread;
    atomic_fetch_add(&ready, 1);
    while (!atomic_load(&go)) {
    }
    done[index] = work(index);
    return 0;
}

static double rate(void) {
    pthread_t all[MOST];
    double sum = 0;
    ready = go = 0;
    for (int i = 1; i < threads; i++)
        if (pthread_create(&all[i], 0, thread_main, (void *)(intptr_t)i)) exit(1);
    while (ready + 1 < threads) {
    }
    double wait = seconds() + 0.02;
    while (seconds() < wait) {
    }
    double begun = seconds();
    next = 0;
    go = 1;
    done[0] = work(0);
    for (int i = 1; i < threads; i++) pthread_join(all[i], 0);
    double took = seconds() - begun;
    for (int i = 0; i < threads; i++) sum += done[i];
    return sum / took;
}

static double rate_of(double (*what)(int thread)) {
    threads = (int)sysconf(_SC_NPROCESSORS_ONLN);
    if (threads < 1 || threads > MOST) return 0;
    work = what;
    return rate();
}

// Bytes a second of reading these words once, on all cores, by either loop.
double machine_read(const uint64_t *of, size_t count, int by_wide) {
    words = of, all_words = count, wide = by_wide;
    return rate_of(read_words);
}

// Operations a second of this kind, on all cores; 0 where the compiler was not told of the instructions.
double machine_multiply(const char *kind) {
#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
    if (!strcmp(kind, "f32")) return rate_of(f32);
#endif
#ifdef __AVX512BF16__
    if (!strcmp(kind, "bf16")) return rate_of(bf16);
#endif
#ifdef __AVX512VNNI__
    if (!strcmp(kind, "int8")) return rate_of(int8);
#endif
    return 0;
}
