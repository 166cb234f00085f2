// See the file "COPYING" in the main distribution directory for copyright.

#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
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
 * One thread, the host's, calls everything here. A model is opened, and an engine ended, on threads beside it: only WaitForChange() and
 * Wait() wait, and for as long as they are told.
 *
 * Where only the bundle changes the engine changes its model. Other settings make a new engine; the old one takes no more flows, and stays
 * until it has answered those that it has. A session in which a defect of the library was caught is lost with the flows under way in it:
 * Mend() puts another in its place.
 */
class Detector {
public:
    /** Engines at a time, those included that were replaced and have not ended: a change that would need another one is refused. */
    static constexpr size_t engines_max = 16;

    /** Sessions that one engine may lose. With the next one it is given up: there is none until other settings are asked for. */
    static constexpr size_t losses_max = 8;

    /** Answers of an engine without a loss between them, after which those before count no more. */
    static constexpr size_t answers_healed = 1000;

    /** @throws std::system_error if the system gives no descriptor. */
    Detector();
    Detector(const Detector&) = delete;
    Detector& operator=(const Detector&) = delete;
    ~Detector();

    /**
     * Asks for other settings. Returns at once; what came of it is told by TakeChange().
     *
     * @throws std::system_error if the system gives no thread: nothing was asked for.
     */
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

    /** Number of the session that Submit() uses; 0 if there is none. No two sessions have the same. */
    uint64_t SessionNumber() const { return current ? current->number : 0; }

    /**
     * Submits a flow, which may be of an earlier engine; its answer comes also when the flow is gone. Never waits.
     *
     * @return Status::ok, need_more or queue_full; pending if there is no engine.
     * @throws trafficllm::Error if the engine does not take it. After a defect (Status::error_panic) the flow is of no more use.
     */
    trafficllm::Status Submit(const trafficllm::Flow& flow, uint64_t id);

    /** Gives each answer that has come to `take(trafficllm::Answer)`, of earlier engines too; at most `limit` and some. Never waits. */
    template<class Function>
    size_t Poll(size_t limit, Function&& take) {
        size_t taken = 0;

        for ( const auto& generation : Generations() )
            taken += Poll(*generation, limit, take);

        return taken;
    }

    /**
     * As Poll(), but where nothing has come yet it waits, at most that long, or until no engine has anything under way.
     *
     * @return Whether there was an answer.
     */
    template<class Function>
    bool Wait(std::chrono::microseconds timeout, Function&& take) {
        auto end = std::chrono::steady_clock::now() + timeout;

        while ( Poll(SIZE_MAX, take) == 0 ) {
            auto busy = Generations();
            std::erase_if(busy, [](const GenerationPtr& generation) { return InFlight(*generation) == 0; });

            auto left = std::chrono::duration_cast<std::chrono::microseconds>(end - std::chrono::steady_clock::now());

            if ( busy.empty() || left.count() <= 0 )
                return false;

            // Which of several answers next cannot be known: they are asked in turn.
            if ( busy.size() > 1 )
                left = std::min<std::chrono::microseconds>(left, turn);

            for ( const auto& generation : busy )
                if ( Receive(*generation, left) ) {
                    for ( auto answer : answers )
                        take(answer);

                    return true;
                }
        }

        return true;
    }

    /** Readable when TakeChange() has something to say, or DropRetired() may have something to do. */
    int ChangeDescriptor() const { return shared->descriptor; }

    /** Readable when Poll() has something to give: those of the engine and of earlier ones. */
    std::vector<int> Descriptors() const;

    /** Lets engines go that have answered all that they had; `before(int)` gets the descriptor that each is about to close. */
    template<class Function>
    void DropRetired(Function&& before) {
        for ( auto& retired : retirees )
            if ( retired->is_stopped && InFlight(*retired) == 0 && ! retired->is_broken ) {
                if ( retired->session )
                    before(retired->descriptor);

                LetGo(std::move(retired));
            }

        std::erase(retirees, nullptr);
    }

    /**
     * Replaces sessions that were lost in what was called before. `before(int)` gets the descriptor that is about to be closed;
     * `lost(uint64_t, const std::string&)` the session's number, whose flows under way get no answer, and what was wrong.
     */
    template<class Before, class Lost>
    void Mend(Before&& before, Lost&& lost) {
        for ( const auto& generation : Generations() )
            if ( generation->is_broken ) {
                before(generation->descriptor);
                lost(generation->number, generation->problem);
                Renew(*generation);
            }

        if ( current && ! current->session )
            Retire(std::move(current));
    }

    /** Ends everything. Flows under way get no answer. Takes at most about that long. */
    void Stop(std::chrono::microseconds timeout);

private:
    static constexpr std::chrono::milliseconds turn{5};

    using Count = std::shared_ptr<std::atomic<size_t>>;

    struct Generation {
        Generation(const trafficllm::Model& model, const trafficllm::Config& config, Count count);
        ~Generation() { --*count; }

        trafficllm::Engine engine;
        std::optional<trafficllm::Session> session;
        int descriptor;
        std::map<std::string, std::string> values;
        std::string bundle;
        /** It will answer nothing more than what it has. */
        std::atomic<bool> is_stopped = false;
        /** It has no session any more. */
        std::atomic<bool> is_lost = false;
        // The host's thread only:
        uint64_t number = 0;
        size_t losses = 0;
        /** Answers since the last loss. */
        size_t answers_since = 0;
        /** Its session is lost, and not replaced yet. */
        bool is_broken = false;
        std::string problem;
        /** Engines that there are. */
        Count count;
    };

    using GenerationPtr = std::shared_ptr<Generation>;

    /** What is between the host's thread and the others. */
    struct Shared {
        Shared();
        ~Shared();

        /** Makes the descriptor readable. */
        void Wake() const;

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
        Count engines = std::make_shared<std::atomic<size_t>>(0);
    };

    template<class Function>
    size_t Poll(Generation& generation, size_t limit, Function&& take) {
        size_t taken = 0;

        while ( taken < limit && Receive(generation, std::nullopt) )
            for ( auto answer : answers ) {
                take(answer);
                ++taken;
            }

        return taken;
    }

    static void Apply(Shared& shared, const Settings& settings);
    static GenerationPtr Make(const Settings& settings, const GenerationPtr& before, const Count& count);

    /** Those that can have answers, held: taking an answer can bring a new engine. */
    std::vector<GenerationPtr> Generations() const;

    /** Takes answers, waiting for them if it is told to. A session that fails in it is lost. */
    bool Receive(Generation& generation, std::optional<std::chrono::microseconds> timeout);

    static size_t InFlight(Generation& generation);
    static void Break(Generation& generation, const std::string& problem);
    void Renew(Generation& generation);
    void Retire(GenerationPtr generation);
    void LetGo(GenerationPtr generation);
    void Close(std::function<bool()> task);

    std::shared_ptr<Shared> shared;
    GenerationPtr current;
    std::vector<GenerationPtr> retirees;
    trafficllm::Answers answers;
    Helper opener;
    Helper closer;
    uint64_t sessions = 0;
    size_t changes_asked = 0;
    size_t changes_told = 0;
};

} // namespace trafficllm_feed
