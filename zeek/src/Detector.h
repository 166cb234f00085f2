// See the file "COPYING" in the main distribution directory for copyright.

#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "Helper.h"
#include "Library.h"

namespace trafficllm_feed {

/** What an engine is made of. */
struct Settings {
    /** Path of the bundle; empty for the one that is compiled into the library. */
    std::string bundle;
    /** Keys and values for tllm_config_set. */
    std::map<std::string, std::string> values;
};

/** What became of new settings. */
struct Change {
    std::string bundle;
    /** Identity of the model that is active now; empty if there is none. */
    std::string model;
    /** Why the settings were refused, and all is as before; empty if they were taken. */
    std::string problem;
};

/**
 * The engine at work and the session to it, and their replacement while flows go through them.
 *
 * One thread, the host's, calls everything here. A model is opened, and an engine ended, on a thread beside it: only WaitForChange() and
 * Wait() wait, and for as long as they are told.
 *
 * Where only the bundle changes the engine changes its model. Other settings make a new engine; the old one takes no more flows, and stays
 * until it has answered those that it has.
 */
class Detector {
public:
    /** @throws std::system_error if the system gives no descriptor. */
    Detector();
    Detector(const Detector&) = delete;
    Detector& operator=(const Detector&) = delete;
    ~Detector();

    /** Asks for other settings. Returns at once; what came of it is told by TakeChange(). */
    void Configure(Settings settings);

    /** Puts settings to work that are ready, or says that they were refused. Nothing if none are. */
    std::optional<Change> TakeChange();

    /** Waits until TakeChange() has something to say, at most that long; whether it has. */
    bool WaitForChange(std::chrono::microseconds timeout);

    /** Changes that were asked for and not told of yet. */
    size_t ChangesUnderWay() const { return changes_asked - changes_told; }

    /** Whether flows can be made and submitted. */
    bool IsReady() const { return current != nullptr; }

    /** The engine that is at work; only if IsReady(). */
    const trafficllm::Engine& Engine() const { return current->engine; }

    /**
     * Submits a flow, which may be of an earlier engine; its answer comes also when the flow is gone. Never waits.
     *
     * @return Status::ok, need_more or queue_full; pending if there is no engine.
     */
    trafficllm::Status Submit(const trafficllm::Flow& flow, uint64_t id);

    /** Gives each answer that has come to `take(trafficllm::Answer)`, of earlier engines too; at most `limit` and some. Never waits. */
    template<class Function>
    size_t Poll(size_t limit, Function&& take) {
        size_t taken = 0;

        for ( const auto& retired : retirees )
            taken += Poll(*retired, limit, take);

        // Taking can bring a new engine: what is in use is held.
        if ( auto held = current )
            taken += Poll(*held, limit, take);

        return taken;
    }

    /**
     * As Poll(), but where nothing has come yet it waits, at most that long, or until nothing is under way.
     *
     * @return Whether there was an answer.
     */
    template<class Function>
    bool Wait(std::chrono::microseconds timeout, Function&& take) {
        auto held = current;

        if ( ! held || Poll(SIZE_MAX, take) > 0 )
            return held != nullptr;

        if ( ! held->session.wait(answers, timeout) )
            return false;

        for ( auto answer : answers )
            take(answer);

        return true;
    }

    /** Readable when TakeChange() has something to say. */
    int ChangeDescriptor() const { return shared->descriptor; }

    /** Readable when Poll() has something to give: those of the engine and of earlier ones. */
    std::vector<int> Descriptors() const;

    /** Ends the engines that have answered all that they had; `before(int)` gets the descriptor that each is about to close. */
    template<class Function>
    void DropRetired(Function&& before) {
        std::erase_if(retirees, [&](const GenerationPtr& retired) {
            bool is_spent = IsSpent(*retired);

            if ( is_spent )
                before(retired->descriptor);

            return is_spent;
        });
    }

    /** Ends everything. Flows under way get no answer. Takes at most about that long. */
    void Stop(std::chrono::microseconds timeout);

private:
    struct Generation {
        Generation(const trafficllm::Model& model, const trafficllm::Config& config)
            : engine(model, &config), session(engine), descriptor(session.descriptor()) {}

        trafficllm::Engine engine;
        trafficllm::Session session;
        int descriptor;
        std::map<std::string, std::string> values;
        std::string bundle;
        /** It will answer nothing more than what it has. */
        std::atomic<bool> is_stopped = false;
    };

    using GenerationPtr = std::shared_ptr<Generation>;

    /** What is between the host's thread and the helper. */
    struct Shared {
        Shared();
        ~Shared();

        /** An eventfd(2). */
        int descriptor = -1;
        std::mutex mutex;
        struct Result {
            Change change;
            /** The generation to be put to work; that which is at work where only its model changed. */
            GenerationPtr generation;
        };
        std::deque<Result> results;
        /** The helper's own: what it made last, which may not be at work yet. */
        GenerationPtr latest;
    };

    template<class Function>
    size_t Poll(Generation& generation, size_t limit, Function&& take) {
        size_t taken = 0;

        while ( taken < limit && generation.session.poll(answers) )
            for ( auto answer : answers ) {
                take(answer);
                ++taken;
            }

        return taken;
    }

    static void Apply(Shared& shared, const Settings& settings);
    static GenerationPtr Make(const Settings& settings, const GenerationPtr& before);
    void Retire(GenerationPtr generation);
    static bool IsSpent(const Generation& generation);

    std::shared_ptr<Shared> shared;
    GenerationPtr current;
    std::vector<GenerationPtr> retirees;
    trafficllm::Answers answers;
    Helper helper;
    size_t changes_asked = 0;
    size_t changes_told = 0;
};

} // namespace trafficllm_feed
