// Runs a launch: blocks one after the other, each with its threads as fibers. Included after the kernel.
#pragma once

#include "fibers.hpp"

namespace emulated {

// As f32, f16 and bf16 not a number, and no likely byte: who reads what nobody wrote shows it.
constexpr uint8_t GARBAGE[4] = {0xc5, 0xff, 0xd7, 0xff};

inline void thread_begins() {
    Thread& self = thread();
    Block& block = *self.block;
    block.work->function(block.work->arguments);
    if (self.copies_count != 0) fail("returns before its copies have arrived");
    if (self.products_count != 0) fail("returns before its wgmma are done");
    self.returned = true;
    // Those at the barrier do not wait for this one any more.
    if (--block.alive == block.at_barrier && block.alive != 0) {
        block.at_barrier = 0;
        release(block, block.threads, block.size.x, &self);
    }
    if (block.alive == 0) {
        switch_context(self.context, block.worker);
    } else {
        Thread* next = take_ready(block);
        if (next == nullptr) fail_deadlock(block);
        switch_context(self.context, next->context);
    }
    __builtin_unreachable();
}

inline void prepare_thread(Block& block, uint32_t number) {
    uint8_t* stack = block.work->stacks + number * STACK_BYTES;
    uint8_t* top = (uint8_t*)state_of_stack((uintptr_t)stack);
    Thread& thread = *(Thread*)top;
    memset((void*)&thread, 0, offsetof(Thread, copies));
    thread.block = &block;
    thread.warp = &block.warps[number / WARP_LANES];
    thread.warp->members[number % WARP_LANES] = &thread;
    thread.warp->size = WARP_LANES;
    if (block.size.x % WARPGROUP_THREADS == 0) {
        thread.warpgroup = &block.warpgroups[number / WARPGROUP_THREADS];
        thread.warpgroup->members[number % WARPGROUP_THREADS] = &thread;
        thread.warpgroup->size = WARPGROUP_THREADS;
    }
    thread.index = {number, 0, 0};
    thread.number = number;
    thread.lane = number % WARP_LANES;
    block.threads[number] = &thread;
    make_context(thread.context, stack, top, thread_begins);
}

inline void run_block(Block& block, Work& work, uint32_t number) {
    memset((void*)&block, 0, sizeof block);
    block.work = &work;
    block.index = {number % work.grid[0], number / work.grid[0] % work.grid[1], number / work.grid[0] / work.grid[1]};
    block.size = {work.threads, 1, 1};
    block.grid = {work.grid[0], work.grid[1], work.grid[2]};
    block.random = (work.seed + 1) * 0x9e3779b97f4a7c15 ^ (number + 1) * 0xbf58476d1ce4e5b9;
    block.order = work.seed == 0 ? 0 : random_bits(block) % 3;
    block.alive = work.threads;
    // Shared memory ends at a page that faults, up to a multiple of 1,024: what stands between is looked at afterwards.
    const uint32_t whole = (work.shared_bytes + 1023) / 1024 * 1024;
    for (uint32_t i = 0; i < whole; i++) work.shared[i] = GARBAGE[i % 4];
    memset(work.unfenced, 0, (work.shared_bytes + 15) / 16 * sizeof *work.unfenced);
    for (uint32_t i = 0; i < work.threads; i++) prepare_thread(block, i);
    release(block, block.threads, work.threads, nullptr);
    switch_context(block.worker, take_ready(block)->context);
    for (uint32_t i = work.shared_bytes; i < whole && !block.failed; i++) {
        if (work.shared[i] == GARBAGE[i % 4]) continue;
        snprintf(work.error, work.error_bytes, "block %u writes at %u of %u bytes of shared memory", number, i, work.shared_bytes);
        block.failed = true;
    }
}

}  // namespace emulated

// 0, or 1 and a text in `error`.
extern "C" int32_t tllm_emulated_run(emulated::Work* work) {
    emulated::Block block;
    for (;;) {
        uint32_t next = __atomic_fetch_add(work->next, 1, __ATOMIC_RELAXED);
        if (next >= work->blocks_count) return 0;
        emulated::run_block(block, *work, work->blocks[next]);
        if (block.failed) {
            __atomic_store_n(work->next, work->blocks_count, __ATOMIC_RELAXED);
            return 1;
        }
    }
}
