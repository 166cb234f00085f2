// See the file "COPYING" in the main distribution directory for copyright.

#pragma once

#include <chrono>
#include <functional>
#include <memory>

namespace trafficllm_feed {

/**
 * A thread for what takes its time: opening a model, ending an engine. It runs one task after the other, in their order, with all signals
 * blocked, so that the host's handlers stay on the host's thread. It is started with the first task.
 */
class Helper {
public:
    Helper() = default;
    Helper(const Helper&) = delete;
    Helper& operator=(const Helper&) = delete;
    ~Helper() { Finish(std::chrono::microseconds(0)); }

    /**
     * Hands a task over. It must not throw, and must keep alive what it uses: it may outlive this object.
     *
     * @throws std::system_error if the system gives no thread. The task was not taken; a later one may be.
     */
    void Run(std::function<void()> task);

    /** As Run(), but a task that gives false runs again, after those that wait by then; not any more once Finish() was called. */
    void Repeat(std::function<bool()> task);

    /**
     * Takes no more tasks, and waits until those that were handed over have run, or the time is over: then the thread is left to itself.
     *
     * @return Whether all was done.
     */
    bool Finish(std::chrono::microseconds timeout);

private:
    struct Shared;

    static void Work(const std::shared_ptr<Shared>& shared);

    std::shared_ptr<Shared> shared;
    bool is_finished = false;
};

} // namespace trafficllm_feed
