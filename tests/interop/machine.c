// What a machine can do, by bare loops: the oracle of what `optimize bench` measures.
//
// machine read | f32 | bf16 | int8: prints bytes or operations a second, on all cores, the best of some
// tries; nothing where the compiler was not told of the instructions.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

// Sums that do not wait for each other, each in a register of its own.
#define EACH(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)

enum { SUMS = 12, ROUNDS = 1 << 22, TRIES = 7, MOST = 1024 };
static const size_t WORDS = ((size_t)512 << 20) / 8;

static uint64_t *words;
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

// Threads take a mebibyte at a time, whoever is free: one that is held up does not hold up the others.
static int wide;  // whether four vectors are summed at a time: which is faster depends on the memory's pace

static double read_words(int thread) {
    (void)thread;
    const size_t share = ((size_t)1 << 20) / 8;
    size_t count = 0;
    for (size_t from = share * next++; from < WORDS; from = share * next++) {
        size_t to = from + share < WORDS ? from + share : WORDS;
        uint64_t sum = 0;
#ifdef __AVX512F__
        __m512i sums[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
        for (; wide && from + 32 <= to; from += 32, count += 32)
            for (int k = 0; k < 4; k++) sums[k] = _mm512_add_epi64(sums[k], _mm512_loadu_si512(words + from + 8 * k));
        for (int k = 0; k < 4; k++) sum += (uint64_t)_mm512_reduce_add_epi64(sums[k]);
#endif
        for (size_t i = from; i < to; i++) sum += words[i];
        sink = sum;
        count += to - from;
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

int main(int count, char **arguments) {
    const char *what = count > 1 ? arguments[1] : "";
    threads = (int)sysconf(_SC_NPROCESSORS_ONLN);
    if (threads < 1 || threads > MOST) return 1;
    if (!strcmp(what, "read")) {
        work = read_words;
        words = malloc(8 * WORDS);
        if (!words) return 1;
        for (size_t i = 0; i < WORDS; i++) words[i] = i;
    }
#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
    if (!strcmp(what, "f32")) work = f32;
#endif
#ifdef __AVX512BF16__
    if (!strcmp(what, "bf16")) work = bf16;
#endif
#ifdef __AVX512VNNI__
    if (!strcmp(what, "int8")) work = int8;
#endif
    if (!work) return 0;
    double best = 0;
    // Both loops as often: only reads have two.
    for (int i = 0; i < (work == read_words ? 2 * TRIES : TRIES); i++) {
        wide = i >= TRIES;
        double now = rate();
        if (now > best) best = now;
    }
    printf("%.6e\n", best);
    return 0;
}
