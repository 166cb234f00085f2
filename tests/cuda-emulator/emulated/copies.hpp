// Copies to shared memory that arrive later.
//
// With seed 0 a copy arrives when it is waited for; with others by lot, at once or then. So who reads without a wait finds what was there
// before, and who copies over what others still read spoils it.
#pragma once

#include "fibers.hpp"

namespace emulated {

// Marks 16 bytes of shared memory as written by a thread that has not made them seen by wgmma (fence.proxy.async).
inline void mark_unfenced(Thread& self, const uint8_t* to) {
    const Work& work = *self.block->work;
    uint32_t chunk = (uint32_t)(to - work.shared) / 16;
    work.unfenced[chunk] = (uint16_t)(self.number + 1);
    // Past the end of the list a fence looks through all of them.
    if (self.unfenced_count < UNFENCED_CHUNKS) self.unfenced[self.unfenced_count] = (uint16_t)chunk;
    self.unfenced_count++;
}

inline void fence_async() {
    Thread& self = thread();
    const Work& work = *self.block->work;
    const uint16_t own = (uint16_t)(self.number + 1);
    if (self.unfenced_count <= UNFENCED_CHUNKS) {
        for (uint32_t i = 0; i < self.unfenced_count; i++) {
            if (work.unfenced[self.unfenced[i]] == own) work.unfenced[self.unfenced[i]] = 0;
        }
    } else {
        for (uint32_t i = 0; i < work.shared_bytes / 16; i++) {
            if (work.unfenced[i] == own) work.unfenced[i] = 0;
        }
    }
    self.unfenced_count = 0;
}

inline void arrive(Thread& self, const PendingCopy& copy) {
    memcpy(copy.to, copy.from, copy.source);
    memset(copy.to + copy.source, 0, (size_t)(copy.bytes - copy.source));
    mark_unfenced(self, copy.to);
}

// 16 bytes, of which `source` are read, the others zeros.
__attribute__((noinline)) static void copy_async(void* to, const void* from, uint32_t source) {
    Thread& self = thread();
    uint8_t* place = shared_pointer(shared_address(to), 16, 16, "a copy");
    if ((uintptr_t)from % 16 != 0) fail("a copy from %p, which is no multiple of 16", from);
    PendingCopy copy = {place, from, self.copy_groups, 16, (uint8_t)source};
    if (early(*self.block)) {
        arrive(self, copy);
        return;
    }
    if (self.copies_count == PENDING_COPIES) fail("more than %u copies under way", PENDING_COPIES);
    self.copies[(self.copies_first + self.copies_count++) % PENDING_COPIES] = copy;
}

inline void copy_async_commit() { thread().copy_groups++; }

// All but the last `groups` groups arrive. What was not committed is not waited for.
inline void copy_async_wait(uint32_t groups) {
    Thread& self = thread();
    while (self.copies_count > 0) {
        const PendingCopy& copy = self.copies[self.copies_first];
        if (copy.group + groups >= self.copy_groups) break;
        arrive(self, copy);
        self.copies_first = (self.copies_first + 1) % PENDING_COPIES;
        self.copies_count--;
    }
}

}  // namespace emulated
