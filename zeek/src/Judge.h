// See the file "COPYING" in the main distribution directory for copyright.

#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "zeek/Trigger.h"
#include "zeek/Val.h"
#include "zeek/iosource/IOSource.h"

#include "Detector.h"
#include "Feed.h"
#include "Ledger.h"

namespace zeek {
class Connection;
namespace telemetry {
class Counter;
class Histogram;
} // namespace telemetry
} // namespace zeek

namespace plugin::TrafficLLM_Detector {

class Tap;

/**
 * Takes flows from the taps to the engine and answers from the engine to the scripts. All of it runs on Zeek's thread; answers wake Zeek's
 * loop through file descriptors.
 */
class Judge final : public zeek::iosource::IOSource {
public:
    /** What became of connections, and of questions about them in between; each number only grows. */
    struct Counters {
        uint64_t connections = 0;
        uint64_t submitted = 0;
        uint64_t judged = 0;
        uint64_t not_applicable = 0;
        uint64_t too_short = 0;
        uint64_t shed = 0;
        uint64_t expired = 0;
        uint64_t abandoned = 0;
        uint64_t failed = 0;
        uint64_t refused = 0;
        uint64_t questions = 0;
        uint64_t questions_unanswered = 0;
        uint64_t sessions_lost = 0;
        uint64_t changes = 0;
        uint64_t changes_refused = 0;
    };

    ~Judge() override = default;

    /** Finds the types of the scripts, and registers metrics. */
    void InitPostScript();

    /** Asks for other settings, and begins with the first. `wait`: until they have come into effect. */
    void Configure(std::string bundle, const zeek::VectorVal* settings, bool wait);

    /** Sets what needs no other engine. */
    void Tune(bool enabled, double trace_wait, double shutdown_wait);

    /** Whether connections that begin now are looked at. */
    bool IsLooking() const { return is_enabled && HasEngine(); }

    /** Whether packets of connections that were begun can be taken. */
    bool HasEngine() const { return detector && detector->IsReady(); }

    /** The engine, only if HasEngine(). */
    const trafficllm::Engine& Engine() const { return detector->Engine(); }

    void Add(zeek::Connection* conn, Tap* tap);

    /** Takes note that a connection has ended: what its tap had to submit is submitted. */
    void End() { --open; }

    void Remove(zeek::Connection* conn);

    /** Takes note that there can be no flow for a connection. */
    void Refuse(const trafficllm::Error& error);

    /** Why a flow is submitted. */
    enum class Occasion : uint8_t {
        /** A script asks; it will be submitted again. */
        Asked,
        /** It is full. If there is no room for it in the queue, it will be submitted again. */
        Full,
        /** Its connection ends. If it is not taken, the scripts are told. */
        End,
    };

    /**
     * Submits the flow of a connection. Reading a capture file it waits for the verdict, and gives it to the scripts.
     *
     * @return Its number; 0 if it was not taken. Where a defect of the library was the reason, the flow is lost: it is counted and told of,
     *         whatever the occasion, and the feed is discarded.
     */
    uint64_t Submit(trafficllm_feed::Feed& feed, zeek::Connection* conn, Occasion occasion);

    /** Does what the function trafficllm_classify() of the scripts promises. */
    zeek::ValPtr Classify(zeek::Connection* conn, zeek::detail::Frame* frame);

    /**
     * Zeek ends: gives what has come. Once all connections have ended it also waits, until the time for that is over, and gives up what
     * has not come by then.
     */
    void Finish();

    /** Ends the engine. */
    void Stop();

    double GetNextTimeout() override { return -1; }
    void Process() override;
    const char* Tag() override { return "TrafficLLM"; }

private:
    /** A ``when`` that waits for verdicts. */
    struct Waiter {
        zeek::IntrusivePtr<zeek::detail::trigger::Trigger> trigger;
        const void* assoc;
    };

    /** A flow under way. */
    struct Pending {
        zeek::RecordValPtr conn;
        uint64_t packets = 0;
        /** The session that it is under way in. */
        uint64_t session = 0;
        /** Whether only a script wanted to know: the connection will be submitted again. */
        bool is_question = false;
        std::vector<Waiter> waiters;
    };

    /** Where a task's verdicts are counted. */
    struct TaskMetrics {
        std::shared_ptr<zeek::telemetry::Counter> decided;
        std::shared_ptr<zeek::telemetry::Counter> abstained;
    };

    bool MayWait() const;
    std::chrono::microseconds WaitTime();
    std::chrono::steady_clock::time_point ShutdownEnd();
    void TakeChanges();
    void Listen();
    void Wait(uint64_t number, std::chrono::microseconds timeout);
    void Mend();
    void Deliver(const trafficllm::Answer& answer);
    void Settle(Pending& pending);
    void Fail(Pending& pending, uint64_t& counter, const std::string& reason);
    void DeliverVerdicts(const Pending& pending, const trafficllm::Answer& answer);
    void Tell(const Pending& pending, const std::string& reason);
    void Release(Pending& pending);
    void CountVerdict(const trafficllm::Verdict& verdict);
    zeek::RecordValPtr FlowRecord(const zeek::RecordValPtr& conn) const;
    zeek::VectorValPtr Verdicts(const zeek::RecordValPtr& conn) const;
    void AddWaiting(const zeek::RecordValPtr& conn, int change) const;

    std::optional<trafficllm_feed::Detector> detector;
    trafficllm_feed::Ledger<Pending> ledger;
    std::unordered_map<const zeek::Connection*, Tap*> taps;
    std::vector<int> descriptors;
    Counters counters;
    /** Connections that have a tap and have not ended. */
    size_t open = 0;
    /** Whether the last wait for a verdict was in vain, and none has come since. */
    bool is_stalled = false;
    bool has_told_of_stall = false;
    bool has_told_of_end = false;
    bool is_enabled = true;
    bool is_registered = false;
    std::chrono::microseconds trace_wait{0};
    std::chrono::microseconds shutdown_wait{0};
    std::optional<std::chrono::steady_clock::time_point> shutdown_end;

    zeek::RecordTypePtr verdict_type;
    zeek::RecordTypePtr flow_type;
    zeek::VectorTypePtr verdicts_type;
    int flow_offset = -1;
    std::shared_ptr<zeek::telemetry::Histogram> latency;
    std::unordered_map<std::string, TaskMetrics> tasks;
};

} // namespace plugin::TrafficLLM_Detector
