// NVIDIA's driver, as far as backend-cuda calls it, over the emulator: a library that loads in place of
// libcuda, so that whole programs run where there is no GPU. From the environment:
//
//     EMULATED_KERNELS     the library of kernels that lib.rs built
//     EMULATED_GPUS        how many GPUs there are; 1 if not said
//     EMULATED_CAPABILITY  of each, major and minor: 90 if not said
//     EMULATED_MEMORY      bytes of each; 4 GiB if not said
//     EMULATED_FAULT       which launch, counted from 1, reads where nothing is; none if not said
//
// It is as unforgiving as the API allows:
// - nothing of a stream is done before somebody waits for it, and what reads a pinned buffer reads it then;
// - what is asked without a current context, or of a stream, a function or a GPU of another one, fails;
// - copies and kernels stay within what is allocated, and within other GPUs only where access was given;
// - a fault stays: the context answers nothing else any more;
// - what cannot be captured breaks the capture, and one stream captures at a time only what it launches.
#include <dlfcn.h>

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace {

// Of cuda.h.
enum Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    ILLEGAL_ADDRESS = 700,
    NO_DEVICE = 100,
    NOT_SUPPORTED = 801,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
};
enum { COMPUTE_MAJOR = 75, COMPUTE_MINOR = 76, MULTIPROCESSORS = 16, MAX_DYNAMIC_SHARED = 8, EARLY_START = 6 };
constexpr uint32_t FATBIN = 0xba55ed50;
constexpr size_t ALIGNMENT = 256, SHARED_LIMIT = 48 << 10, SHARED_MOST = 227 << 10;

// As emulator.cpp has it.
struct EmulatorLaunch {
    const void *kernel;
    const unsigned char *args;
    size_t args_bytes;
    unsigned grid[3], threads[3];
    size_t shared;
    uint32_t order, seed, late, checked;
    const uint64_t (*regions)[2];
    size_t region_count;
    char *message;
    size_t message_bytes;
};

struct Device;
struct Stream;

// A moment of a stream that an event stands for.
struct Moment {
    Stream *stream;
    bool passed;
};

struct Context {
    Device *device;
    int users = 0;
    Result failed = SUCCESS;
};

struct Device {
    int index;
    Context context;
    std::map<uint64_t, size_t> memory;
    size_t used = 0, kept = 0;  // bytes that somebody has, and those the pool keeps
    std::set<int> readers;  // GPUs that may read what is here
};

struct Function {
    std::string name;
    const void *kernel;
    unsigned args_bytes;
    size_t shared_limit = SHARED_LIMIT;
    Context *context;
};

struct Module {
    Context *context;
    std::map<std::string, std::unique_ptr<Function>> functions;
};

struct Launched {
    const Function *function;
    unsigned grid[3], threads;
    size_t shared;
    std::vector<uint64_t> args;
};

struct Graph {
    std::vector<Launched> launches;
};

struct Stream {
    Context *context;
    std::deque<std::function<Result()>> asked;
    std::unique_ptr<Graph> capture;
    bool broken = false;
};

struct Event {
    Context *context;
    std::shared_ptr<Moment> moment;
};

std::recursive_mutex all;
bool initialized;
void *kernels;
std::vector<std::unique_ptr<Device>> devices;
std::map<uint64_t, size_t> pinned;
std::set<Stream *> streams;
std::set<Event *> events;
uint64_t launches;
thread_local Context *current;

long from_environment(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text ? atol(text) : otherwise;
}

// What went wrong, for whoever looks: the API has but numbers.
Result wrong(Result code, const char *format, ...) {
    va_list more;
    va_start(more, format);
    fputs("emulated driver: ", stderr);
    vfprintf(stderr, format, more);
    fputc('\n', stderr);
    va_end(more);
    return code;
}

bool within(const std::map<uint64_t, size_t> &memory, uint64_t at, size_t bytes) {
    auto next = memory.upper_bound(at);
    if (next == memory.begin()) return false;
    auto &[begin, size] = *--next;
    return at - begin <= size && bytes <= size - (at - begin);
}

// Whether a GPU may use this: what is its own, or another's that lets it.
bool reaches(const Device &device, uint64_t at, size_t bytes) {
    for (auto &other : devices)
        if ((&device == other.get() || other->readers.count(device.index)) && within(other->memory, at, bytes)) return true;
    return false;
}

Result run_kernel(Context *context, const Launched &launched) {
    if (++launches == (uint64_t)from_environment("EMULATED_FAULT", 0))
        return wrong(ILLEGAL_ADDRESS, "%s: asked to fail", launched.function->name.c_str());
    std::vector<uint64_t> regions;
    for (auto &other : devices) {
        if (context->device != other.get() && !other->readers.count(context->device->index)) continue;
        for (auto &[at, bytes] : other->memory) regions.insert(regions.end(), {at, bytes});
    }
    char message[4096] = "";
    EmulatorLaunch launch{launched.function->kernel,
                          (const unsigned char *)launched.args.data(),
                          launched.function->args_bytes,
                          {launched.grid[0], launched.grid[1], launched.grid[2]},
                          {launched.threads, 1, 1},
                          launched.shared,
                          0, 0, 1, 0,
                          (const uint64_t(*)[2])regions.data(),
                          regions.size() / 2,
                          message,
                          sizeof message};
    ((void (*)(EmulatorLaunch *))dlsym(kernels, "emulator_launch"))(&launch);
    return message[0] ? wrong(ILLEGAL_ADDRESS, "%s: %s", launched.function->name.c_str(), message) : SUCCESS;
}

// Does what was asked of a stream first.
void step(Stream *stream) {
    auto next = std::move(stream->asked.front());
    stream->asked.pop_front();
    // After a fault nothing is done, but whoever waits is let go.
    Result result = next();
    if (result != SUCCESS && stream->context->failed == SUCCESS) stream->context->failed = result;
}

void drain(Stream *stream) {
    while (!stream->asked.empty()) step(stream);
}

void reach(const std::shared_ptr<Moment> &moment) {
    while (moment && !moment->passed) step(moment->stream);
}

// What is asked of a stream that records is not to be done.
Result ask(Stream *stream, std::function<Result()> what) {
    if (stream->capture) {
        stream->broken = true;
        return wrong(CAPTURE_UNSUPPORTED, "only launches are captured");
    }
    stream->asked.push_back(std::move(what));
    return SUCCESS;
}

// Every call but a few begins so.
#define BEGIN                                                                             \
    std::lock_guard<std::recursive_mutex> guard(all);                                      \
    if (!initialized) return wrong(NOT_INITIALIZED, "%s before cuInit", __func__);         \
    if (!current) return wrong(INVALID_CONTEXT, "%s: no context is current", __func__);    \
    if (current->failed != SUCCESS) return current->failed;
#define OF_STREAM(stream)                                                                                      \
    if (!streams.count(stream)) return wrong(INVALID_HANDLE, "%s: no such stream", __func__);                  \
    if (stream->context != current) return wrong(INVALID_HANDLE, "%s: a stream of another context", __func__);
#define OF_EVENT(event)                                                                            \
    if (!events.count(event)) return wrong(INVALID_HANDLE, "%s: no such event", __func__);

Device *device_of(int index) { return index >= 0 && (size_t)index < devices.size() ? devices[index].get() : nullptr; }

Result copy(Stream *stream, void *to, const void *from, size_t bytes) {
    return ask(stream, [=] {
        memcpy(to, from, bytes);
        return SUCCESS;
    });
}

Result launch(Function *function, const unsigned (&grid)[3], const unsigned (&block)[3], unsigned shared, Stream *stream, void **params) {
    if (function->context != current) return wrong(INVALID_HANDLE, "%s is of another context", function->name.c_str());
    if (!grid[0] || !grid[1] || !grid[2] || grid[0] > 0x7fffffff || grid[1] > 65535 || grid[2] > 65535)
        return wrong(INVALID_VALUE, "%s: a grid of %u x %u x %u", function->name.c_str(), grid[0], grid[1], grid[2]);
    if (!block[0] || block[0] > 1024 || block[1] != 1 || block[2] != 1)
        return wrong(INVALID_VALUE, "%s: blocks of %u threads", function->name.c_str(), block[0]);
    if (shared > function->shared_limit)
        return wrong(INVALID_VALUE, "%s: %u bytes of shared memory, without leave", function->name.c_str(), shared);
    Launched launched{function, {grid[0], grid[1], grid[2]}, block[0], shared, {}};
    launched.args.resize((function->args_bytes + 7) / 8);
    memcpy(launched.args.data(), params[0], function->args_bytes);
    if (stream->capture) {
        stream->capture->launches.push_back(std::move(launched));
        return SUCCESS;
    }
    Context *context = current;
    return ask(stream, [=] { return context->failed == SUCCESS ? run_kernel(context, launched) : SUCCESS; });
}

}  // namespace

#define API extern "C" __attribute__((visibility("default")))

API int cuInit(unsigned) {
    std::lock_guard<std::recursive_mutex> guard(all);
    if (initialized) return SUCCESS;
    const char *path = getenv("EMULATED_KERNELS");
    kernels = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : nullptr;
    if (!kernels) return wrong(NOT_INITIALIZED, "EMULATED_KERNELS: %s", path ? dlerror() : "not set");
    long count = from_environment("EMULATED_GPUS", 1);
    if (count == 0) return NO_DEVICE;
    for (int index = 0; index < count; index++) {
        devices.push_back(std::make_unique<Device>());
        devices.back()->index = index;
        devices.back()->context.device = devices.back().get();
    }
    initialized = true;
    return SUCCESS;
}

API int cuDriverGetVersion(int *version) {
    *version = 13000;
    return SUCCESS;
}

API int cuGetErrorString(int code, const char **text) {
    switch (code) {
        case INVALID_VALUE: *text = "invalid argument"; break;
        case OUT_OF_MEMORY: *text = "out of memory"; break;
        case NOT_INITIALIZED: *text = "initialization error"; break;
        case INVALID_DEVICE: *text = "invalid device ordinal"; break;
        case INVALID_CONTEXT: *text = "invalid device context"; break;
        case INVALID_HANDLE: *text = "invalid resource handle"; break;
        case NOT_FOUND: *text = "named symbol not found"; break;
        case ILLEGAL_ADDRESS: *text = "an illegal memory access was encountered"; break;
        case NOT_SUPPORTED: *text = "operation not supported"; break;
        case CAPTURE_UNSUPPORTED: *text = "operation not permitted when stream is capturing"; break;
        case CAPTURE_INVALIDATED: *text = "operation failed due to a previous error during capture"; break;
        default: *text = "another error"; break;
    }
    return SUCCESS;
}

API int cuDeviceGetCount(int *count) {
    if (!initialized) return NOT_INITIALIZED;
    *count = (int)devices.size();
    return SUCCESS;
}

API int cuDeviceGet(int *device, int index) {
    if (!device_of(index)) return INVALID_DEVICE;
    *device = index;
    return SUCCESS;
}

API int cuDeviceGetName(char *name, int bytes, int device) {
    if (!device_of(device)) return INVALID_DEVICE;
    snprintf(name, (size_t)bytes, "emulated GPU");
    return SUCCESS;
}

API int cuDeviceGetAttribute(int *value, int which, int device) {
    if (!device_of(device)) return INVALID_DEVICE;
    long capability = from_environment("EMULATED_CAPABILITY", 90);
    switch (which) {
        case COMPUTE_MAJOR: *value = (int)capability / 10; return SUCCESS;
        case COMPUTE_MINOR: *value = (int)capability % 10; return SUCCESS;
        case MULTIPROCESSORS: *value = 4; return SUCCESS;
        default: return wrong(INVALID_VALUE, "attribute %d is not emulated", which);
    }
}

API int cuDevicePrimaryCtxRetain(Context **context, int device) {
    std::lock_guard<std::recursive_mutex> guard(all);
    if (!device_of(device)) return INVALID_DEVICE;
    *context = &device_of(device)->context;
    (*context)->users++;
    return SUCCESS;
}

API int cuDevicePrimaryCtxRelease_v2(int device) {
    std::lock_guard<std::recursive_mutex> guard(all);
    Device *of = device_of(device);
    if (!of || of->context.users == 0) return wrong(INVALID_CONTEXT, "a context is released that nobody has");
    if (--of->context.users == 0) of->context.failed = SUCCESS;
    return SUCCESS;
}

API int cuCtxSetCurrent(Context *context) {
    std::lock_guard<std::recursive_mutex> guard(all);
    if (context && context->users == 0) return wrong(INVALID_CONTEXT, "the context was released");
    current = context;
    return SUCCESS;
}

API int cuDeviceGetDefaultMemPool(Device **pool, int device) {
    *pool = device_of(device);
    return *pool ? SUCCESS : INVALID_DEVICE;
}

API int cuMemPoolTrimTo(Device *pool, size_t least) {
    std::lock_guard<std::recursive_mutex> guard(all);
    pool->kept = std::max(pool->used, least);
    return SUCCESS;
}

API int cuMemPoolSetAttribute(Device *pool, int, void *) { return pool ? SUCCESS : INVALID_VALUE; }

API int cuDeviceCanAccessPeer(int *can, int device, int other) {
    *can = device != other;
    return SUCCESS;
}

API int cuMemPoolSetAccess(Device *pool, const int *description, size_t count) {
    std::lock_guard<std::recursive_mutex> guard(all);
    // A location is a kind (1 is a GPU) and a number; 3 is reading and writing.
    if (count != 1 || description[0] != 1 || description[2] != 3) return wrong(INVALID_VALUE, "not an access");
    pool->readers.insert(description[1]);
    return SUCCESS;
}

API int cuMemGetInfo_v2(size_t *free, size_t *total) {
    BEGIN
    *total = (size_t)from_environment("EMULATED_MEMORY", 4L << 30);
    *free = *total - std::min(*total, current->device->kept);
    return SUCCESS;
}

API int cuStreamCreate(Stream **stream, unsigned) {
    BEGIN
    *stream = new Stream{current, {}, {}};
    streams.insert(*stream);
    return SUCCESS;
}

API int cuStreamDestroy_v2(Stream *stream) {
    BEGIN OF_STREAM(stream)
    drain(stream);
    streams.erase(stream);
    delete stream;
    return SUCCESS;
}

API int cuStreamSynchronize(Stream *stream) {
    BEGIN OF_STREAM(stream)
    if (stream->capture) return ask(stream, {});
    drain(stream);
    return current->failed;
}

API int cuStreamWaitEvent(Stream *stream, Event *event, unsigned) {
    BEGIN OF_STREAM(stream) OF_EVENT(event)
    return ask(stream, [moment = event->moment] {
        reach(moment);
        return SUCCESS;
    });
}

API int cuEventCreate(Event **event, unsigned) {
    BEGIN
    *event = new Event{current, {}};
    events.insert(*event);
    return SUCCESS;
}

API int cuEventDestroy_v2(Event *event) {
    BEGIN OF_EVENT(event)
    events.erase(event);
    delete event;
    return SUCCESS;
}

API int cuEventRecord(Event *event, Stream *stream) {
    BEGIN OF_STREAM(stream) OF_EVENT(event)
    if (event->context != stream->context) return wrong(INVALID_HANDLE, "an event of another context");
    auto moment = std::make_shared<Moment>(Moment{stream, false});
    event->moment = moment;
    return ask(stream, [moment] {
        moment->passed = true;
        return SUCCESS;
    });
}

API int cuEventSynchronize(Event *event) {
    BEGIN OF_EVENT(event)
    reach(event->moment);
    return current->failed;
}

API int cuMemAllocAsync(uint64_t *at, size_t bytes, Stream *stream) {
    BEGIN OF_STREAM(stream)
    size_t total = (size_t)from_environment("EMULATED_MEMORY", 4L << 30);
    // What is given back is there again once that is done.
    if (bytes > total || current->device->used > total - bytes) drain(stream);
    if (bytes == 0) return INVALID_VALUE;
    if (bytes > total || current->device->used > total - bytes) return OUT_OF_MEMORY;
    void *memory = aligned_alloc(ALIGNMENT, (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
    if (!memory) return OUT_OF_MEMORY;
    // What nobody wrote is not a number. Large memory is left as it comes: most of it is never used.
    if (bytes <= (64u << 20)) memset(memory, 0xff, bytes);
    *at = (uint64_t)memory;
    current->device->memory[*at] = bytes;
    current->device->used += bytes;
    current->device->kept = std::max(current->device->kept, current->device->used);
    return SUCCESS;
}

API int cuMemFreeAsync(uint64_t at, Stream *stream) {
    BEGIN OF_STREAM(stream)
    Device *device = current->device;
    return ask(stream, [=] {
        auto found = device->memory.find(at);
        if (found == device->memory.end()) return wrong(INVALID_VALUE, "%#lx is freed, which nobody has", at);
        device->used -= found->second;
        device->memory.erase(found);
        free((void *)at);
        return SUCCESS;
    });
}

API int cuMemHostAlloc(void **at, size_t bytes, unsigned) {
    BEGIN
    *at = malloc(bytes);
    if (!*at) return OUT_OF_MEMORY;
    pinned[(uint64_t)*at] = bytes;
    return SUCCESS;
}

API int cuMemFreeHost(void *at) {
    BEGIN
    if (!pinned.erase((uint64_t)at)) return wrong(INVALID_VALUE, "%p is not pinned", at);
    free(at);
    return SUCCESS;
}

API int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, Stream *stream) {
    BEGIN OF_STREAM(stream)
    if (!within(current->device->memory, to, bytes)) return wrong(INVALID_VALUE, "%zu bytes to %#lx: nobody's", bytes, to);
    // Of other memory a copy may read at any time until it is done, or make the caller wait for all before.
    if (!within(pinned, (uint64_t)from, bytes)) return wrong(INVALID_VALUE, "%zu bytes of memory that is not pinned", bytes);
    return copy(stream, (void *)to, from, bytes);
}

API int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, Stream *stream) {
    BEGIN OF_STREAM(stream)
    if (!within(current->device->memory, from, bytes)) return wrong(INVALID_VALUE, "%zu bytes of %#lx: nobody's", bytes, from);
    return copy(stream, to, (const void *)from, bytes);
}

API int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, Stream *stream) {
    BEGIN OF_STREAM(stream)
    if (!reaches(*current->device, to, bytes) || !reaches(*current->device, from, bytes))
        return wrong(INVALID_VALUE, "%zu bytes from %#lx to %#lx: nobody's", bytes, from, to);
    return copy(stream, (void *)to, (const void *)from, bytes);
}

API int cuMemsetD8Async(uint64_t at, unsigned char value, size_t bytes, Stream *stream) {
    BEGIN OF_STREAM(stream)
    if (!within(current->device->memory, at, bytes)) return wrong(INVALID_VALUE, "%zu bytes at %#lx: nobody's", bytes, at);
    return ask(stream, [=] {
        memset((void *)at, value, bytes);
        return SUCCESS;
    });
}

API int cuModuleLoadData(Module **module, const void *image) {
    BEGIN
    uint32_t magic;
    memcpy(&magic, image, sizeof magic);
    if (magic != FATBIN) return INVALID_IMAGE;
    *module = new Module{current, {}};
    return SUCCESS;
}

API int cuModuleUnload(Module *module) {
    BEGIN
    delete module;
    return SUCCESS;
}

API int cuModuleGetFunction(Function **function, Module *module, const char *name) {
    BEGIN
    if (module->context != current) return wrong(INVALID_HANDLE, "a module of another context");
    void *kernel = dlsym(kernels, name), *size = dlsym(kernels, (std::string(name) + "_args").c_str());
    if (!kernel || !size) return NOT_FOUND;
    auto &entry = module->functions[name];
    if (!entry) entry.reset(new Function{name, kernel, *(const unsigned *)size, SHARED_LIMIT, current});
    *function = entry.get();
    return SUCCESS;
}

API int cuFuncSetAttribute(Function *function, int which, int value) {
    BEGIN
    if (which != MAX_DYNAMIC_SHARED || value < 0 || (size_t)value > SHARED_MOST) return INVALID_VALUE;
    function->shared_limit = (size_t)value;
    return SUCCESS;
}

API int cuLaunchKernel(Function *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                       unsigned shared, Stream *stream, void **params, void **) {
    BEGIN OF_STREAM(stream)
    return launch(function, {gx, gy, gz}, {bx, by, bz}, shared, stream, params);
}

struct Config {
    unsigned grid[3], block[3], shared;
    Stream *stream;
    const uint32_t *attributes;
    unsigned count;
};

API int cuLaunchKernelEx(const Config *config, Function *function, void **params, void **) {
    BEGIN OF_STREAM(config->stream)
    // The one attribute there is: an early start, which is of Hopper and later.
    if (config->count != 1 || config->attributes[0] != EARLY_START) return INVALID_VALUE;
    if (from_environment("EMULATED_CAPABILITY", 90) < 90) return NOT_SUPPORTED;
    return launch(function, config->grid, config->block, config->shared, config->stream, params);
}

API int cuStreamBeginCapture_v2(Stream *stream, int) {
    BEGIN OF_STREAM(stream)
    if (stream->capture) return INVALID_VALUE;
    stream->capture = std::make_unique<Graph>();
    stream->broken = false;
    return SUCCESS;
}

API int cuStreamEndCapture(Stream *stream, Graph **graph) {
    BEGIN OF_STREAM(stream)
    if (!stream->capture) return INVALID_VALUE;
    *graph = stream->capture.release();
    if (!stream->broken) return SUCCESS;
    delete *graph;
    *graph = nullptr;
    return CAPTURE_INVALIDATED;
}

API int cuGraphInstantiateWithFlags(Graph **instance, Graph *graph, unsigned long long) {
    BEGIN
    *instance = new Graph(*graph);
    return SUCCESS;
}

API int cuGraphLaunch(Graph *instance, Stream *stream) {
    BEGIN OF_STREAM(stream)
    Context *context = current;
    for (const Launched &launched : instance->launches) {
        Result asked = ask(stream, [=] { return context->failed == SUCCESS ? run_kernel(context, launched) : SUCCESS; });
        if (asked != SUCCESS) return asked;
    }
    return SUCCESS;
}

API int cuGraphDestroy(Graph *graph) {
    BEGIN
    delete graph;
    return SUCCESS;
}

API int cuGraphExecDestroy(Graph *instance) {
    BEGIN
    delete instance;
    return SUCCESS;
}
