// The machine under emulated kernels. A block runs on one thread of the system, a CUDA thread is a
// fiber of it that runs until it must wait for others.
#include "emulator.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <map>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

// Saves what the calling convention says a call keeps, and goes on where `to` was saved.
extern "C" void emulator_switch(void **from, void *to);
#if defined(__x86_64__)
asm(R"(
.text
.globl emulator_switch
.hidden emulator_switch
.type emulator_switch,@function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch, .-emulator_switch
)");
#else
#error "the switch of fibers is written for x86-64"
#endif

// Where this library lies, as the linker says.
extern "C" __attribute__((visibility("hidden"))) const char __ehdr_start[], _end[];

namespace emulator {

thread_local Self *self __attribute__((tls_model("initial-exec")));

namespace {

constexpr size_t STACK = 256 << 10;
constexpr unsigned WARP = 32;

enum class State : uint8_t { Ready, AtBarrier, InWarp, Done };
enum class Order : uint32_t { Forward, Reverse, Random };

/// What a warp does together.
enum class Kind : uint8_t { Sync, Xor, Bf16, S8, Wgmma, Quad };

struct Copy { unsigned char *to; const unsigned char *from; unsigned bytes, size; };

/// What a thread of another block did before it let others see it: everything of its block from earlier
/// epochs, and what the thread itself did in this one.
struct Released { uint32_t block, epoch; uint16_t thread; };

/// This thread's part of a product of a warpgroup.
struct Wgmma { float *c; unsigned columns; uintptr_t a, b; float rows[2][16]; };

struct Fiber : Self {
    void *stack;
    State state;
    Kind kind;
    int line;
    unsigned index, phase;
    std::vector<Copy> open;
    std::vector<std::vector<Copy>> groups;
    std::vector<Wgmma> products;               // asked for and not committed
    std::vector<std::vector<Wgmma>> committed;  // and those that are
    int64_t published;                         // the epoch of the last fence of proxies
    bool fenced;                          // since the last barrier
    std::vector<Released> taken, seen;  // by atomics; and those that a fence followed
};

/// What lanes bring to what they do together and take from it. There are two, in turn: a lane may be
/// at the next before another has taken the result of the last.
struct Slots { alignas(64) unsigned char in[WARP][64]; unsigned char out[WARP][64]; };

struct Warp { Slots slots[2]; uint32_t arrived; uint32_t epoch; };

/// Who has touched a byte last: the writer, and two readers of different warps.
struct Access { uint32_t block, epoch, warp_epoch; uint16_t thread; uint8_t valid, atomic; };
struct Cell { Access write, reads[2]; uint32_t in_flight; };

}  // namespace

/// Memory of the device that is in use.
struct Region { uintptr_t begin, bytes; };

/// One launch.
struct Launch {
    void (*kernel)(const void *);
    const void *args;
    size_t args_bytes;
    Dim grid, threads;
    size_t shared;
    uint32_t order, seed;
    uint32_t late, checked;
    const Region *regions;
    size_t region_count;
    char *message;
    size_t message_bytes;
};

namespace {

struct Shadow {
    uintptr_t begin = 0, bytes = 0;
    Cell *cells = nullptr;
    bool shared = false;
    void open(uintptr_t at, size_t size, bool is_shared) {
        begin = at, bytes = size, shared = is_shared;
        void *room = mmap(nullptr, std::max<size_t>(size, 1) * sizeof(Cell), PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        cells = room == MAP_FAILED ? nullptr : static_cast<Cell *>(room);
    }
    void close() { if (cells) munmap(cells, std::max<size_t>(bytes, 1) * sizeof(Cell)); cells = nullptr; }
};

struct Block {
    const Launch *launch;
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    std::vector<unsigned char> shared_room;
    unsigned char *shared;
    unsigned char *stacks;
    void *scheduler;
    uint32_t number, epoch;
    bool failed;
    std::vector<Shadow> shadows;  // the first is of shared memory
    std::vector<Released> seen;   // by all of its threads
};

thread_local Block *block __attribute__((tls_model("initial-exec")));
std::mutex report_lock;
/// Of each place of atomics, what was let go there. Of checked launches, whose blocks one thread runs.
thread_local std::map<uintptr_t, std::vector<Released>> released;
std::atomic<unsigned> reports;

Fiber &fiber() { return *static_cast<Fiber *>(self); }

/// Adds to what the launch says; the first eight count.
void report(const char *format, ...) {
    std::lock_guard<std::mutex> held(report_lock);
    if (reports++ >= 8) return;
    const Launch &l = *block->launch;
    size_t used = strlen(l.message);
    va_list list;
    va_start(list, format);
    vsnprintf(l.message + used, l.message_bytes - used, format, list);
    va_end(list);
    used = strlen(l.message);
    const char *where = self ? ", thread %u of block %u\n" : " of block %u\n";
    if (self) snprintf(l.message + used, l.message_bytes - used, where, fiber().index, block->number);
    else snprintf(l.message + used, l.message_bytes - used, where, block->number);
}

void yield() { emulator_switch(&fiber().stack, block->scheduler); }

/// Ends the block: nobody goes on.
void fail() {
    block->failed = true;
    yield();
}

// -- the checker ---------------------------------------------------------------------------------

bool sees(const std::vector<Released> &seen, const Access &o) {
    for (const Released &r : seen)
        if (r.block == o.block && (o.epoch < r.epoch || (o.epoch == r.epoch && o.thread == r.thread))) return true;
    return false;
}

bool same_place(const Access &o, const Fiber &f, bool shared) {
    // Other blocks are ordered by atomics between fences, and by nothing else.
    if (o.block != block->number) return !shared && !sees(block->seen, o) && !sees(f.seen, o);
    if (o.thread == f.index || o.epoch != block->epoch) return false;
    bool one_warp = o.thread / WARP == f.index / WARP;
    return !(one_warp && o.warp_epoch != block->warps[f.index / WARP].epoch);
}

void mark(Cell &cell, bool write, bool atomic) {
    Fiber &f = fiber();
    uint32_t warp_epoch = block->warps[f.index / WARP].epoch;
    Access now{block->number, block->epoch, warp_epoch, (uint16_t)f.index, 1, atomic};
    if (write) { cell.write = now; return; }
    Access &first = cell.reads[0];
    if (first.valid && first.thread / WARP != f.index / WARP) cell.reads[1] = first;
    first = now;
}

enum class Flight { None, Begins, Lands, Atomic, Proxy };

void access(const void *at, size_t bytes, bool write, Flight flight = Flight::None) {
    if (!self || !block->launch->checked) return;
    uintptr_t a = (uintptr_t)at;
    const Launch &l = *block->launch;
    uintptr_t stacks = (uintptr_t)block->stacks;
    if (a >= stacks && a < stacks + block->fibers.size() * STACK) return;
    if (a >= (uintptr_t)l.args && a + bytes <= (uintptr_t)l.args + l.args_bytes && !write) return;
    // What threadIdx and its like are read from.
    if (at == &self || (a >= (uintptr_t)self && a < (uintptr_t)self + sizeof(Fiber))) return;
    const char *does = write ? "write" : "read";
    for (Shadow &s : block->shadows) {
        if (a < s.begin || a >= s.begin + s.bytes) continue;
        size_t offset = a - s.begin;
        if (offset + bytes > s.bytes) break;
        const char *kind = s.shared ? "shared" : "global";
        for (size_t i = 0; i < bytes; i++) {
            Cell &c = s.cells[offset + i];
            const char *hazard = nullptr;
            if (c.in_flight && flight != Flight::Lands) hazard = "touches a copy in flight";
            else if (c.write.valid && !(c.write.atomic && flight == Flight::Atomic) &&
                     same_place(c.write, fiber(), s.shared))
                hazard = write ? "write after write" : "read after write";
            else if (flight == Flight::Proxy && c.write.valid && c.write.epoch > block->fibers[c.write.thread].published)
                hazard = "read before a fence of proxies";
            else if (write)
                for (const Access &r : c.reads)
                    if (r.valid && same_place(r, fiber(), s.shared)) hazard = "write after read";
            if (hazard) {
                report("race: %s at %s + %zu, line %d", hazard, kind, offset + i, fiber().line);
                return;
            }
            if (flight == Flight::Begins) c.in_flight = 1;
            if (flight == Flight::Lands) c.in_flight = 0;
            mark(c, write, flight == Flight::Atomic);
        }
        return;
    }
    // Constants of the kernels lie in this library's image; everything else is nobody's.
    if (!write && a >= (uintptr_t)__ehdr_start && a < (uintptr_t)_end) return;
    report("out of bounds: %s of %zu bytes", does, bytes);
}

// -- what a warp does together -------------------------------------------------------------------

float bf16(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

struct Product { uint32_t a[4], b[2], c[4]; };

/// Element (row, k) of A lies in lane 4 * (row % 8) + ...: PTX ISA, "Matrix fragments for mma.m16n8k16".
template <class T, int DEPTH> void unpack(const Slots &s, T (&a)[16][DEPTH], T (&b)[DEPTH][8],
                                          T (*value)(const uint32_t *, int)) {
    constexpr int PER = DEPTH / 8;  // elements of a register
    for (unsigned lane = 0; lane < WARP; lane++) {
        Product p;
        memcpy(&p, s.in[lane], sizeof p);
        unsigned g = lane / 4, t = lane % 4;
        for (int r = 0; r < 4; r++)
            for (int i = 0; i < PER; i++)
                a[g + (r % 2) * 8][t * PER + i + (r / 2) * (DEPTH / 2)] = value(&p.a[r], i);
        for (int r = 0; r < 2; r++)
            for (int i = 0; i < PER; i++) b[t * PER + i + r * (DEPTH / 2)][g] = value(&p.b[r], i);
    }
}

template <class C, class T, int DEPTH>
void multiply(Slots &s, T (*value)(const uint32_t *, int)) {
    T a[16][DEPTH], b[DEPTH][8];
    unpack<T, DEPTH>(s, a, b, value);
    C sums[16][8];
    for (unsigned lane = 0; lane < WARP; lane++) {
        Product p;
        memcpy(&p, s.in[lane], sizeof p);
        for (int r = 0; r < 4; r++) memcpy(&sums[lane / 4 + r / 2 * 8][lane % 4 * 2 + r % 2], &p.c[r], 4);
    }
    for (int row = 0; row < 16; row++)
        for (int k = 0; k < DEPTH; k++)
            for (int col = 0; col < 8; col++) sums[row][col] += C(a[row][k]) * C(b[k][col]);
    for (unsigned lane = 0; lane < WARP; lane++)
        for (int r = 0; r < 4; r++)
            memcpy(s.out[lane] + 4 * r, &sums[lane / 4 + r / 2 * 8][lane % 4 * 2 + r % 2], 4);
}

void together(Kind kind, Slots &s) {
    switch (kind) {
        case Kind::Sync:
        case Kind::Wgmma: return;
        case Kind::Xor:
            for (unsigned lane = 0; lane < WARP; lane++) {
                uint32_t from;
                memcpy(&from, s.in[lane] + 4, 4);
                memcpy(s.out[lane], s.in[from % WARP], 4);
            }
            return;
        case Kind::Quad:
            for (unsigned lane = 0; lane < WARP; lane++)
                for (unsigned i = 0; i < 4; i++) memcpy(s.out[lane] + 16 * i, s.in[lane / 4 * 4 + i], 16);
            return;
        case Kind::Bf16:
            return multiply<float, float, 16>(s, [](const uint32_t *r, int i) { return bf16(*r >> 16 * i); });
        case Kind::S8:
            return multiply<int, int, 32>(s, [](const uint32_t *r, int i) { return (int)(int8_t)(*r >> 8 * i); });
    }
}

/// Waits for the other lanes, has the last that comes do it, and gives back what is this lane's.
const unsigned char *meet(Kind kind, const void *in, size_t bytes, int line) {
    Fiber &f = fiber();
    Warp &warp = block->warps[f.index / WARP];
    Slots &slots = warp.slots[f.phase++ % 2];
    memcpy(slots.in[f.lane], in, bytes);
    f.kind = kind, f.line = line, f.state = State::InWarp;
    warp.arrived |= 1u << f.lane;
    if (warp.arrived != ~0u) {
        yield();
        return slots.out[f.lane];
    }
    for (unsigned i = 0; i < WARP; i++) {
        Fiber &other = block->fibers[f.index / WARP * WARP + i];
        if (other.kind != kind || other.line != line) {
            report("lanes part: line %d and line %d", line, other.line);
            fail();
        }
        other.state = State::Ready;
    }
    warp.arrived = 0;
    if (kind == Kind::Sync) warp.epoch++;  // only this orders memory
    together(kind, slots);
    return slots.out[f.lane];
}

template <class T> T meet_for(Kind kind, const void *in, size_t bytes, int line) {
    T out;
    memcpy(&out, meet(kind, in, bytes, line), sizeof out);
    return out;
}

// -- blocks --------------------------------------------------------------------------------------

void entry() {
    Fiber &f = fiber();
    block->launch->kernel(block->launch->args);
    if (!f.open.empty() || !f.groups.empty()) report("copies in flight at the end");
    if (!f.products.empty() || !f.committed.empty()) report("products in flight at the end");
    f.state = State::Done;
    yield();
}

void begin(Block &b, Dim at, uint32_t number) {
    const Launch &l = *b.launch;
    b.number = number, b.epoch = 0, b.failed = false;
    b.seen.clear();
    memset(b.shared, 0xff, l.shared);  // not a number, in every width of floats
    if (l.checked) {
        b.shadows[0].close();
        b.shadows[0].open((uintptr_t)b.shared, l.shared, true);
    }
    for (Warp &w : b.warps) w.arrived = 0, w.epoch = 0;
    for (unsigned i = 0; i < b.fibers.size(); i++) {
        Fiber &f = b.fibers[i];
        f.block = at, f.block_dim = l.threads, f.grid_dim = l.grid;
        f.thread = Dim{i % l.threads.x, i / l.threads.x % l.threads.y, i / l.threads.x / l.threads.y};
        f.lane = i % WARP, f.index = i, f.phase = 0, f.line = 0, f.state = State::Ready;
        f.shared = b.shared;
        f.open.clear(), f.groups.clear();
        f.products.clear(), f.committed.clear(), f.published = -1;
        f.fenced = false, f.taken.clear(), f.seen.clear();
        void **top = (void **)(b.stacks + (i + 1) * STACK);
        *--top = nullptr;
        *--top = (void *)entry;
        for (int k = 0; k < 6; k++) *--top = nullptr;
        f.stack = top;
    }
}

/// Nobody can go on: either all are at the same barrier, or something is wrong. Whether to go on.
bool release(Block &b) {
    int line = 0;
    unsigned waiting = 0;
    bool same = true;
    for (const Fiber &f : b.fibers) {
        if (f.state != State::AtBarrier) continue;
        same &= waiting == 0 || f.line == line;
        line = f.line, waiting++;
    }
    self = nullptr;
    if (!same) return report("threads part: barriers at different lines"), false;
    if (waiting < b.fibers.size())
        return report("deadlock: %u of %zu threads at the barrier of line %d", waiting, b.fibers.size(), line), false;
    for (Fiber &f : b.fibers) {
        f.state = State::Ready, f.fenced = false;
        b.seen.insert(b.seen.end(), f.seen.begin(), f.seen.end());
        f.seen.clear();
    }
    b.epoch++;
    return true;
}

void run(Block &b) {
    const Launch &l = *b.launch;
    std::mt19937 random(l.seed + b.number);
    std::vector<unsigned> order(b.fibers.size());
    for (unsigned i = 0; i < order.size(); i++)
        order[i] = (Order)l.order == Order::Reverse ? order.size() - 1 - i : i;
    for (;;) {
        if ((Order)l.order == Order::Random) std::shuffle(order.begin(), order.end(), random);
        bool ran = false, done = true;
        for (unsigned i : order) {
            Fiber &f = b.fibers[i];
            if (f.state == State::Ready) {
                self = &f;
                ran = true;
                emulator_switch(&b.scheduler, f.stack);
                self = nullptr;
                if (b.failed) return;
            }
            done &= f.state == State::Done;
        }
        if (done || (!ran && !release(b))) return;
    }
}

void blocks(const Launch &l, std::atomic<uint32_t> &next) {
    Block b;
    b.launch = &l;
    size_t threads = (size_t)l.threads.x * l.threads.y * l.threads.z;
    block = &b;
    self = nullptr;
    b.fibers.resize(threads);
    b.warps.resize((threads + WARP - 1) / WARP);
    b.shared_room.resize(l.shared + 1024);
    b.shared = (unsigned char *)(((uintptr_t)b.shared_room.data() + 1023) & ~(uintptr_t)1023);
    void *stacks = mmap(nullptr, threads * STACK, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks == MAP_FAILED) return report("no memory for stacks");
    b.stacks = (unsigned char *)stacks;
    if (l.checked) {
        b.shadows.resize(1 + l.region_count);
        for (size_t i = 0; i < l.region_count; i++)
            b.shadows[i + 1].open(l.regions[i].begin, l.regions[i].bytes, false);
    }
    uint32_t count = l.grid.x * l.grid.y * l.grid.z;
    for (uint32_t n = next++; n < count; n = next++) {
        begin(b, Dim{n % l.grid.x, n / l.grid.x % l.grid.y, n / l.grid.x / l.grid.y}, n);
        run(b);
        if (b.failed) break;
    }
    for (Shadow &s : b.shadows) s.close();
    munmap(stacks, threads * STACK);
    block = nullptr;
}

}  // namespace

void sync_threads(int line) {
    Fiber &f = fiber();
    f.line = line, f.state = State::AtBarrier;
    yield();
}

void sync_warp(int line) { meet(Kind::Sync, "", 0, line); }

uint32_t shuffle_xor(uint32_t value, unsigned mask, int line) {
    uint32_t in[2] = {value, self->lane ^ mask};
    return meet_for<uint32_t>(Kind::Xor, in, 8, line);
}

void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int line) {
    Product p;
    memcpy(p.a, a, 16), memcpy(p.b, b, 8), memcpy(p.c, c, 16);
    memcpy(c, meet(Kind::Bf16, &p, sizeof p, line), 16);
}

void mma_s8(int (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int line) {
    Product p;
    memcpy(p.a, a, 16), memcpy(p.b, b, 8), memcpy(p.c, c, 16);
    memcpy(c, meet(Kind::S8, &p, sizeof p, line), 16);
}

namespace {
void land(const Copy &c) {
    if (c.bytes) access(c.from, c.bytes, false);
    access(c.to, c.size, true, Flight::Lands);
    memcpy(c.to, c.from, c.bytes);
    memset(c.to + c.bytes, 0, c.size - c.bytes);
}
}  // namespace

/// Sixteen bytes, of which the first `bytes` are copied and the rest is zero. Late copies land when
/// they are waited for and not before.
void copy_async(void *to, const void *from, unsigned bytes, int line) {
    Fiber &f = fiber();
    f.line = line;
    if (((uintptr_t)to | (uintptr_t)from) % 16) return report("misaligned: a copy at line %d", line), fail();
    Copy c{(unsigned char *)to, (const unsigned char *)from, bytes, 16};
    access(to, 16, true, Flight::Begins);
    if (block->launch->late) f.open.push_back(c);
    else land(c);
}

void fence_proxy() { fiber().published = block->epoch; }

namespace {
/// Element k of a row of a matrix that begins at a multiple of 1024 bytes, but for whole steps of 16 columns.
uintptr_t swizzled(uintptr_t matrix, unsigned row, unsigned k) {
    uintptr_t at = matrix + row / 8 * 1024 + row % 8 * 128 + 2 * k;
    return at ^ (at >> 7 & 7) << 4;
}

/// Sixteen bf16 of a row.
void read_row(float (&to)[16], uintptr_t matrix, unsigned row) {
    for (unsigned k = 0; k < 16; k += 8) {
        uintptr_t at = swizzled(matrix, row, k);
        access((const void *)at, 16, false, Flight::Proxy);
        for (unsigned i = 0; i < 8; i++) {
            uint16_t bits;
            memcpy(&bits, (const void *)(at + 2 * i), 2);
            to[k + i] = bf16(bits);
        }
    }
}

void multiply(const Wgmma &p) {
    Fiber &f = fiber();
    unsigned g = f.lane / 4, t = f.lane % 4, first = f.index / WARP % 4 * 16;
    float a[2][16], b[16];
    memcpy(a, p.rows, sizeof a);
    if (p.a)
        for (unsigned half = 0; half < 2; half++) read_row(a[half], p.a, first + g + 8 * half);
    for (unsigned column = 0; column < p.columns / 4; column++) {
        read_row(b, p.b, column / 2 * 8 + 2 * t + column % 2);
        for (unsigned half = 0; half < 2; half++)
            for (unsigned k = 0; k < 16; k++)
                p.c[column / 2 * 4 + 2 * half + column % 2] += a[half][k] * b[k];
    }
}
}  // namespace

void wgmma_fence(int line) { meet(Kind::Wgmma, "", 0, line); }

/// Late products are made when they are waited for, of what is then in shared memory.
void wgmma_of(float *c, unsigned columns, const void *a, const uint32_t *registers, const void *b, int line) {
    Wgmma product{c, columns, (uintptr_t)a, (uintptr_t)b, {}};
    if (registers) {
        // Of rows g and g + 8 each lane of four has four columns.
        const unsigned char *quad = meet(Kind::Quad, registers, 16, line);
        for (unsigned lane = 0; lane < 4; lane++)
            for (unsigned r = 0; r < 4; r++)
                for (unsigned i = 0; i < 2; i++) {
                    uint16_t bits;
                    memcpy(&bits, quad + 16 * lane + 4 * r + 2 * i, 2);
                    product.rows[r % 2][r / 2 * 8 + 2 * lane + i] = bf16(bits);
                }
    } else meet(Kind::Wgmma, "", 0, line);
    if (block->launch->late) fiber().products.push_back(product);
    else multiply(product);
}

void wgmma_commit(int line) {
    meet(Kind::Wgmma, "", 0, line);
    Fiber &f = fiber();
    f.committed.push_back(std::move(f.products));
    f.products.clear();
}

void wgmma_wait(unsigned pending, int line) {
    meet(Kind::Wgmma, "", 0, line);
    Fiber &f = fiber();
    while (f.committed.size() > pending) {
        for (const Wgmma &product : f.committed.front()) multiply(product);
        f.committed.erase(f.committed.begin());
    }
}

void fence() {
    std::atomic_thread_fence(std::memory_order_seq_cst);
    Fiber &f = fiber();
    f.fenced = true;
    f.seen.insert(f.seen.end(), f.taken.begin(), f.taken.end());
    f.taken.clear();
}

/// Relaxed, as on a GPU: only fences order what is around it.
uint32_t atomic_add(uint32_t *at, uint32_t value, int line) {
    Fiber &f = fiber();
    f.line = line;
    if (block->launch->checked) {
        access(at, 4, true, Flight::Atomic);
        std::vector<Released> &here = released[(uintptr_t)at];
        f.taken.insert(f.taken.end(), here.begin(), here.end());
        if (f.fenced) here.push_back(Released{block->number, block->epoch, (uint16_t)f.index});
    }
    return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
}

void commit_copies() {
    Fiber &f = fiber();
    f.groups.push_back(std::move(f.open));
    f.open.clear();
}

void wait_copies(unsigned pending) {
    Fiber &f = fiber();
    while (f.groups.size() > pending) {
        for (const Copy &c : f.groups.front()) land(c);
        f.groups.erase(f.groups.begin());
    }
}

}  // namespace emulator

/// Runs a launch; what is wrong with it is in its message.
extern "C" void emulator_launch(emulator::Launch *launch) {
    using namespace emulator;
    launch->message[0] = 0;
    reports = 0;
    released.clear();
    std::atomic<uint32_t> next{0};
    uint32_t count = launch->grid.x * launch->grid.y * launch->grid.z;
    // The checker follows one block after the other.
    unsigned workers = launch->checked ? 1 : std::min(count, std::thread::hardware_concurrency());
    std::vector<std::thread> others;
    for (unsigned i = 1; i < workers; i++) others.emplace_back([&] { blocks(*launch, next); });
    blocks(*launch, next);
    for (std::thread &t : others) t.join();
}

// What g++ -fsanitize=thread,alignment has kernels call.
extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
#define TOUCH(N)                                                                            \
    void __tsan_read##N(void *p) { emulator::access(p, N, false); }                          \
    void __tsan_write##N(void *p) { emulator::access(p, N, true); }                          \
    void __tsan_unaligned_read##N(void *p) { emulator::access(p, N, false); }                \
    void __tsan_unaligned_write##N(void *p) { emulator::access(p, N, true); }
TOUCH(1) TOUCH(2) TOUCH(4) TOUCH(8) TOUCH(16)
void __tsan_read_range(void *p, size_t n) { emulator::access(p, n, false); }
void __tsan_write_range(void *p, size_t n) { emulator::access(p, n, true); }
void __tsan_vptr_update(void *, void *) {}
void __tsan_vptr_read(void *) {}
void *__tsan_memcpy(void *to, const void *from, size_t n) {
    emulator::access(from, n, false), emulator::access(to, n, true);
    return memcpy(to, from, n);
}
void *__tsan_memset(void *to, int value, size_t n) {
    emulator::access(to, n, true);
    return memset(to, value, n);
}
struct TypeMismatch { const char *file; uint32_t line, column; };
void __ubsan_handle_type_mismatch_v1(TypeMismatch *what, void *p) {
    emulator::report("misaligned: %p at line %u", p, what->line);
}
}
