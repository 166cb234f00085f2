// Threads of a block as fibers on one thread of the system, and where they wait for each other.
//
// A fiber runs until it waits: for the other lanes of its warp, for its warpgroup, or for its block. Then the next that can run is switched
// to. Seed 0 runs them in turn; another seed shuffles who comes first and how far a warp runs ahead, so that what needs a barrier and has
// none gives another result. If nobody can run and some wait, that is a deadlock, and the launch fails with a text.
#pragma once

#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#if !defined(__x86_64__) || defined(TLLM_UCONTEXT)
#define TLLM_FIBERS_UCONTEXT
#include <ucontext.h>
#endif

namespace emulated {

constexpr uint32_t WARP_LANES = 32;
constexpr uint32_t WARPGROUP_THREADS = 128;
constexpr uint32_t THREADS_MAX = 1024;
// The first address of shared memory: what stands below belongs to the system on a device too.
constexpr uint32_t SHARED_FIRST = 1024;
// Distance of stacks, a power of two so that a stack pointer tells its thread. The lowest page of each faults.
constexpr size_t STACK_BYTES = 128 * 1024;
// What a thread's state takes at the top of its stack.
constexpr size_t STATE_BYTES = 24 * 1024;
// Tops of neighbouring stacks are moved against each other, or all would fall into the same sets of the caches.
constexpr size_t COLOUR_BYTES = 512;
constexpr size_t COLOURS = 64;

struct Index {
    uint32_t x, y, z;
};

// What a worker is given by the device in Rust; `src/work.rs` has the same struct.
struct Work {
    void (*function)(const void*);
    const void* arguments;
    const uint32_t* blocks;  // numbers of blocks in the order in which they begin
    uint32_t* next;          // the next of them, shared by the workers
    uint8_t* stacks;
    uint8_t* shared;         // of one block; a multiple of 1,024
    uint16_t* unfenced;      // for each 16 bytes of it, see `copies.hpp`; zeros
    char* error;
    uint64_t seed;
    uint32_t grid[3];
    uint32_t threads;
    uint32_t shared_bytes;
    uint32_t blocks_count;
    uint32_t error_bytes;
};

struct Thread;

// Threads that do something together: all of them, or it is a deadlock.
struct Group {
    Thread* members[WARPGROUP_THREADS];
    const char* what;
    uint32_t size;
    uint32_t arrived;
};

// A place to return to.
struct Context {
#ifdef TLLM_FIBERS_UCONTEXT
    ucontext_t place;
#else
    void* stack_pointer;
#endif
};

struct Block {
    Work* work;
    Index index;
    Index size;
    Index grid;
    uint64_t random;
    Context worker;
    uint32_t alive;
    uint32_t at_barrier;
    uint32_t order;      // 0: first in, first out; 1: last in, first out; 2: either
    uint32_t first;      // of `ready`, a ring
    uint32_t ready_count;
    bool failed;
    Thread* ready[THREADS_MAX];
    Thread* threads[THREADS_MAX];
    Group warps[THREADS_MAX / WARP_LANES];
    Group warpgroups[THREADS_MAX / WARPGROUP_THREADS];
};

// A copy into shared memory that has not arrived.
struct PendingCopy {
    uint8_t* to;
    const void* from;
    uint32_t group;
    uint8_t bytes;   // in shared memory
    uint8_t source;  // of them read; zeros after them
};
constexpr uint32_t PENDING_COPIES = 256;

// A product of a warpgroup that is under way.
constexpr uint32_t ACCUMULATORS_MAX = 128;
struct PendingProduct {
    int32_t* accumulators;
    uint64_t rows, columns;  // descriptors
    uint32_t group;
    uint32_t width;          // columns of the product
    bool adds;
    bool known;              // `sums` are computed
    int32_t sums[ACCUMULATORS_MAX];
};
constexpr uint32_t PENDING_PRODUCTS = 16;
constexpr uint32_t UNFENCED_CHUNKS = 512;

struct Thread {
    Context context;
    Block* block;
    Group* warp;
    Group* warpgroup;
    void* operands;       // of what the thread's group does together
    const char* waiting;  // what for, or null
    Index index;
    uint32_t number;
    uint32_t lane;
    bool returned;
    bool products_fenced;
    uint32_t copy_groups;     // closed so far
    uint32_t copies_first, copies_count;
    uint32_t product_groups;  // closed so far
    uint32_t products_first, products_count;
    uint32_t unfenced_count;
    PendingCopy copies[PENDING_COPIES];
    uint16_t unfenced[UNFENCED_CHUNKS];
    PendingProduct products[PENDING_PRODUCTS];
};
static_assert(sizeof(Thread) <= STATE_BYTES, "the state of a thread has its place");

inline uintptr_t state_of_stack(uintptr_t stack) {
    return stack + STACK_BYTES - STATE_BYTES - (stack / STACK_BYTES) % COLOURS * COLOUR_BYTES;
}

// The thread that runs. Its address follows from the stack alone, so it needs no thread-local storage.
inline Thread& thread() {
#ifdef __x86_64__
    uintptr_t pointer;
    __asm__("mov %%rsp, %0" : "=r"(pointer));
#else
    uintptr_t pointer = (uintptr_t)__builtin_frame_address(0);
#endif
    return *(Thread*)state_of_stack(pointer & ~(uintptr_t)(STACK_BYTES - 1));
}

#ifdef TLLM_FIBERS_UCONTEXT
inline void switch_context(Context& from, Context& to) { swapcontext(&from.place, &to.place); }

inline void make_context(Context& context, uint8_t* stack, uint8_t* top, void (*start)()) {
    getcontext(&context.place);
    context.place.uc_stack.ss_sp = stack;
    context.place.uc_stack.ss_size = (size_t)(top - stack);
    context.place.uc_link = nullptr;
    makecontext(&context.place, start, 0);
}
#else
// Keeps the registers that a call keeps, and changes stacks.
extern "C" __attribute__((visibility("hidden"))) void tllm_switch(void** from, void* to);
__asm__(R"(
    .text
    .p2align 4
    .hidden tllm_switch
    .globl tllm_switch
    .type tllm_switch, @function
tllm_switch:
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
    retq
    .size tllm_switch, . - tllm_switch
)");

inline void switch_context(Context& from, Context& to) { tllm_switch(&from.stack_pointer, to.stack_pointer); }

inline void make_context(Context& context, uint8_t*, uint8_t* top, void (*start)()) {
    void** words = (void**)top - 8;  // six registers, where to begin, and no address to return to
    memset(words, 0, 8 * sizeof *words);
    words[6] = (void*)start;
    context.stack_pointer = words;
}
#endif

inline uint32_t random_bits(Block& block) {
    block.random ^= block.random << 13;
    block.random ^= block.random >> 7;
    block.random ^= block.random << 17;
    return (uint32_t)(block.random >> 32);
}

// Whether something happens now that may happen now or later; later with seed 0.
inline bool early(Block& block) { return block.work->seed != 0 && (random_bits(block) & 1) != 0; }

// Ends the launch with a text. Threads are left where they are.
[[noreturn]] inline void fail(const char* format, ...) {
    Thread& self = thread();
    Block& block = *self.block;
    Work& work = *block.work;
    int used = snprintf(work.error, work.error_bytes, "block (%u, %u, %u) thread %u: ", block.index.x, block.index.y, block.index.z, self.number);
    va_list values;
    va_start(values, format);
    vsnprintf(work.error + used, work.error_bytes - (uint32_t)used, format, values);
    va_end(values);
    block.failed = true;
    switch_context(self.context, block.worker);
    __builtin_unreachable();
}

inline void make_ready(Block& block, Thread* thread) {
    thread->waiting = nullptr;
    block.ready[(block.first + block.ready_count++) % THREADS_MAX] = thread;
}

inline Thread* take_ready(Block& block) {
    if (block.ready_count == 0) return nullptr;
    bool last = block.order == 1 || (block.order == 2 && (random_bits(block) & 1) != 0);
    block.ready_count--;
    if (last) return block.ready[(block.first + block.ready_count) % THREADS_MAX];
    Thread* thread = block.ready[block.first];
    block.first = (block.first + 1) % THREADS_MAX;
    return thread;
}

// All but this thread can run again, in an order by lot.
inline void release(Block& block, Thread* const* members, uint32_t count, const Thread* self) {
    Thread* order[THREADS_MAX];
    uint32_t used = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (members[i] != self && !members[i]->returned) order[used++] = members[i];
    }
    if (block.work->seed != 0) {
        for (uint32_t i = used; i > 1; i--) {
            uint32_t other = (uint32_t)(((uint64_t)random_bits(block) * i) >> 32);
            Thread* moved = order[i - 1];
            order[i - 1] = order[other];
            order[other] = moved;
        }
    }
    for (uint32_t i = 0; i < used; i++) make_ready(block, order[i]);
}

[[noreturn]] inline void fail_deadlock(Block& block) {
    char list[1024];
    int used = 0;
    list[0] = 0;
    // Threads in a row that wait for the same are named together.
    for (uint32_t i = 0; i < block.size.x && used < (int)sizeof list - 128;) {
        const Thread& one = *block.threads[i];
        uint32_t last = i;
        while (last + 1 < block.size.x && block.threads[last + 1]->waiting == one.waiting && block.threads[last + 1]->returned == one.returned) last++;
        used += snprintf(list + used, sizeof list - (size_t)used, " threads %u to %u: %s;", i, last, one.returned ? "returned" : one.waiting);
        i = last + 1;
    }
    fail("deadlock:%s", list);
}

inline void wait_here(const char* what) {
    Thread& self = thread();
    Block& block = *self.block;
    self.waiting = what;
    Thread* next = take_ready(block);
    if (next == nullptr) fail_deadlock(block);
    switch_context(self.context, next->context);
}

// __syncthreads: waits for all threads of the block that have not returned.
inline void block_barrier() {
    Thread& self = thread();
    Block& block = *self.block;
    if (++block.at_barrier < block.alive) {
        wait_here("the block's barrier");
        return;
    }
    block.at_barrier = 0;
    release(block, block.threads, block.size.x, &self);
}

// What the threads of a group do together, when the last of them has come: `run` is given the members, whose `operands` are their own.
template <class Run>
inline void together(Group& group, const char* what, void* operands, Run run) {
    Thread& self = thread();
    self.operands = operands;
    if (group.arrived == 0) {
        group.what = what;
    } else if (group.what != what && strcmp(group.what, what) != 0) {
        fail("waits for %s where others of its warp or warpgroup wait for %s", what, group.what);
    }
    if (++group.arrived < group.size) {
        wait_here(what);
        return;
    }
    group.arrived = 0;
    run(group.members);
    release(*self.block, group.members, group.size, &self);
}

// Bytes of the block's dynamic shared memory. Addresses as instructions take them begin at SHARED_FIRST.
inline uint8_t* shared_memory() { return thread().block->work->shared; }

inline uint32_t shared_address(const void* pointer) {
    const Work& work = *thread().block->work;
    ptrdiff_t offset = (const uint8_t*)pointer - work.shared;
    if (offset < 0 || offset > (ptrdiff_t)work.shared_bytes) fail("a pointer that is not into shared memory is taken for one");
    return (uint32_t)offset + SHARED_FIRST;
}

inline uint8_t* shared_pointer(uint32_t address, uint32_t bytes, uint32_t alignment, const char* what) {
    const Work& work = *thread().block->work;
    if (address < SHARED_FIRST || address - SHARED_FIRST + (uint64_t)bytes > work.shared_bytes) {
        fail("%s at %d of %u bytes of shared memory", what, (int)(address - SHARED_FIRST), work.shared_bytes);
    }
    if (address % alignment != 0) fail("%s at %u of shared memory, which is no multiple of %u", what, address - SHARED_FIRST, alignment);
    return work.shared + (address - SHARED_FIRST);
}

}  // namespace emulated
