// See the file "COPYING" in the main distribution directory for copyright.

#include "Helper.h"

#include <csignal>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

using namespace trafficllm_feed;

struct Helper::Shared {
    std::mutex mutex;
    /** A task came, or the end. */
    std::condition_variable work;
    /** The thread has ended. */
    std::condition_variable end;
    std::deque<std::function<bool()>> tasks;
    bool is_closing = false;
    bool has_ended = false;
};

void Helper::Run(std::function<void()> task) {
    Repeat([task = std::move(task)] {
        task();
        return true;
    });
}

void Helper::Repeat(std::function<bool()> task) {
    if ( is_finished )
        return;

    if ( ! shared ) {
        auto fresh = std::make_shared<Shared>();

        // A thread begins with the mask of the one that makes it.
        sigset_t all;
        sigset_t before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);

        try {
            std::thread([fresh] { Work(fresh); }).detach();
        } catch ( ... ) {
            pthread_sigmask(SIG_SETMASK, &before, nullptr);
            throw;
        }

        pthread_sigmask(SIG_SETMASK, &before, nullptr);
        shared = std::move(fresh);
    }

    {
        std::lock_guard<std::mutex> lock(shared->mutex);
        shared->tasks.push_back(std::move(task));
    }

    shared->work.notify_one();
}

bool Helper::Finish(std::chrono::microseconds timeout) {
    is_finished = true;

    if ( ! shared )
        return true;

    std::unique_lock<std::mutex> lock(shared->mutex);
    shared->is_closing = true;
    shared->work.notify_one();
    return shared->end.wait_for(lock, timeout, [this] { return shared->has_ended; });
}

void Helper::Work(const std::shared_ptr<Shared>& shared) {
    std::unique_lock<std::mutex> lock(shared->mutex);

    while ( true ) {
        shared->work.wait(lock, [&shared] { return shared->is_closing || ! shared->tasks.empty(); });

        if ( shared->tasks.empty() )
            break;

        auto task = std::move(shared->tasks.front());
        shared->tasks.pop_front();
        lock.unlock();
        bool is_done = task();

        // What it holds goes on this thread, and without the lock.
        if ( is_done )
            task = nullptr;

        lock.lock();

        if ( is_done )
            continue;

        if ( ! shared->is_closing ) {
            shared->tasks.push_back(std::move(task));
            continue;
        }

        lock.unlock();
        task = nullptr;
        lock.lock();
    }

    shared->has_ended = true;
    shared->end.notify_all();
}
