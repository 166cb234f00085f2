// See the file "COPYING" in the main distribution directory for copyright.

#include "Judge.h"

#include <algorithm>
#include <utility>

#include "zeek/Conn.h"
#include "zeek/Event.h"
#include "zeek/Frame.h"
#include "zeek/ID.h"
#include "zeek/Reporter.h"
#include "zeek/RunState.h"
#include "zeek/iosource/Manager.h"
#include "zeek/iosource/PktSrc.h"
#include "zeek/telemetry/Manager.h"

#include "Tap.h"
#include "trafficllm.bif.h"

using namespace trafficllm_feed;

namespace plugin::TrafficLLM_Detector {

namespace {

// Answers that are given to the scripts at one go; the loop comes back for the rest, and packets come in between.
constexpr size_t answers_max = 256;

// A model that takes longer to open holds Zeek's start up no longer: its verdicts begin later.
constexpr std::chrono::seconds start_wait{60};

// What the engine gets at the very end, and is left to itself then.
constexpr std::chrono::seconds stop_wait{2};

std::chrono::microseconds microseconds(double seconds) {
    // More than a day is as good as a day, and fits.
    return std::chrono::microseconds(static_cast<int64_t>(std::clamp(seconds, 0.0, 86400.0) * 1e6));
}

zeek::StringValPtr text(std::string_view view) {
    return zeek::make_intrusive<zeek::StringVal>(static_cast<int>(view.size()), view.data());
}

} // namespace

void Judge::InitPostScript() {
    verdict_type = zeek::id::find_type<zeek::RecordType>("TrafficLLM::Verdict");
    flow_type = zeek::id::find_type<zeek::RecordType>("TrafficLLM::Flow");
    verdicts_type = zeek::id::find_type<zeek::VectorType>("TrafficLLM::Verdicts");
    flow_offset = zeek::id::connection->FieldOffset("trafficllm");

    auto count = [](std::string_view name, std::string_view help, const uint64_t& value) {
        zeek::telemetry_mgr->CounterInstance("zeek_trafficllm", name, {}, help, "", [&value]() { return static_cast<double>(value); });
    };

    count("connections", "Connections that were looked at", counters.connections);
    count("submitted", "Connections whose packets were given to the model", counters.submitted);
    count("judged", "Connections with verdicts", counters.judged);
    count("not_applicable", "Connections without a verdict because no task applies to them", counters.not_applicable);
    count("too_short", "Connections that ended with too few packets for a verdict", counters.too_short);
    count("shed", "Connections without a verdict because the queue was full", counters.shed);
    count("expired", "Connections without a verdict because their deadline had passed", counters.expired);
    count("abandoned", "Connections without a verdict because the engine or Zeek ended before", counters.abandoned);
    count("failed", "Connections without a verdict because of a defect in the model or the library", counters.failed);
    count("refused", "Connections that there was no room for", counters.refused);
    count("questions", "Questions of trafficllm_classify that were given to the model", counters.questions);
    count("questions_unanswered", "Questions of trafficllm_classify that got no verdict", counters.questions_unanswered);
    count("sessions_lost", "Times that a defect in the library cost what was under way", counters.sessions_lost);
    count("changes", "Changes of model or settings that came into effect", counters.changes);
    count("changes_refused", "Changes of model or settings that were refused", counters.changes_refused);
    zeek::telemetry_mgr->GaugeInstance("zeek_trafficllm", "under_way", {}, "Connections and questions that wait for their verdicts", "",
                                       [this]() { return static_cast<double>(ledger.Size()); });
    latency = zeek::telemetry_mgr->HistogramInstance("zeek_trafficllm", "latency", {}, {0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1},
                                                     "Time from submission to the verdicts", "seconds");
}

void Judge::Configure(std::string bundle, const zeek::VectorVal* settings, bool wait) {
    try {
        if ( ! detector )
            detector.emplace();

        if ( ! is_registered ) {
            // Zeek does not run on for the sake of verdicts.
            zeek::iosource_mgr->Register(this, true, false);
            is_registered = true;
            Listen();
        }

        Settings wanted;
        wanted.bundle = std::move(bundle);

        for ( unsigned int i = 0; i + 1 < settings->Size(); i += 2 )
            wanted.values[settings->ValAt(i)->AsStringVal()->ToStdString()] = settings->ValAt(i + 1)->AsStringVal()->ToStdString();

        detector->Configure(std::move(wanted));
    } catch ( const std::exception& e ) {
        zeek::reporter->Warning("TrafficLLM: %s", e.what());
        return;
    }

    auto end = std::chrono::steady_clock::now() + start_wait;

    // Reading a capture file, it comes into effect with the same packet each time.
    wait = wait || (MayWait() && trace_wait.count() > 0);

    while ( wait && detector->ChangesUnderWay() > 0 ) {
        auto left = std::chrono::duration_cast<std::chrono::microseconds>(end - std::chrono::steady_clock::now());

        if ( ! detector->WaitForChange(left) ) {
            zeek::reporter->Warning("TrafficLLM: the model is not open yet; connections are looked at when it is");
            break;
        }

        TakeChanges();
    }
}

void Judge::Tune(bool enabled, double arg_trace_wait, double arg_shutdown_wait) {
    is_enabled = enabled;
    trace_wait = microseconds(arg_trace_wait);
    shutdown_wait = microseconds(arg_shutdown_wait);
}

void Judge::Add(zeek::Connection* conn, plugin::TrafficLLM_Detector::Tap* tap) {
    ++counters.connections;
    ++open;
    taps[conn] = tap;
}

void Judge::Remove(zeek::Connection* conn) { taps.erase(conn); }

void Judge::Refuse(const trafficllm::Error& error) {
    if ( counters.refused++ == 0 )
        zeek::reporter->Warning("TrafficLLM: a connection cannot be looked at, and further ones will not be reported: %s", error.what());
}

bool Judge::MayWait() const { return zeek::run_state::reading_traces && zeek::run_state::pseudo_realtime == 0.0; }

uint64_t Judge::Submit(trafficllm_feed::Feed& feed, zeek::Connection* conn, Occasion occasion) {
    if ( ! detector )
        return 0;

    Pending pending;
    pending.conn = conn->GetVal();
    pending.packets = feed.Packets();
    pending.session = detector->SessionNumber();
    pending.is_question = occasion == Occasion::Asked;

    auto number = ledger.Put(std::move(pending));
    auto status = trafficllm::Status::pending;
    std::string problem = "there is no engine";
    auto* counter = &counters.abandoned;
    bool is_flow_lost = false;

    try {
        // Its answer is wanted also when the connection ends before it: a script may wait for it.
        status = detector->Submit(*feed.Flow(), number);
    } catch ( const trafficllm::Error& e ) {
        problem = e.what();

        if ( e.status() != trafficllm::Status::error_stopped )
            counter = &counters.failed;

        // What a defect was met with can only be freed.
        if ( e.status() == trafficllm::Status::error_panic ) {
            is_flow_lost = true;
            feed.Discard();
        }
    }

    if ( status == trafficllm::Status::ok ) {
        ++(occasion == Occasion::Asked ? counters.questions : counters.submitted);
        AddWaiting(ledger.Find(number)->conn, 1);
        Wait(number, WaitTime());
        return number;
    }

    auto refused = ledger.Take(number);
    Mend();

    if ( occasion != Occasion::End && ! is_flow_lost )
        return 0;

    if ( status == trafficllm::Status::need_more )
        ++counters.too_short;
    else if ( status == trafficllm::Status::queue_full ) {
        ++counters.shed;
        Tell(*refused, "the queue is full");
    }
    else {
        ++*counter;
        Tell(*refused, problem);
    }

    return 0;
}

std::chrono::microseconds Judge::WaitTime() {
    // A model that does not answer costs this time once, not with each connection.
    if ( ! MayWait() || is_stalled )
        return std::chrono::microseconds(0);

    // At the end of a capture file all is as before; one that Zeek is told to leave is another matter.
    auto* source = zeek::iosource_mgr->GetPktSrc();

    if ( zeek::run_state::terminating && source && source->IsOpen() )
        return std::min(trace_wait, std::chrono::duration_cast<std::chrono::microseconds>(ShutdownEnd() - std::chrono::steady_clock::now()));

    return trace_wait;
}

void Judge::Wait(uint64_t number, std::chrono::microseconds timeout) {
    if ( timeout.count() <= 0 )
        return;

    auto end = std::chrono::steady_clock::now() + timeout;

    while ( ledger.Find(number) ) {
        auto left = std::chrono::duration_cast<std::chrono::microseconds>(end - std::chrono::steady_clock::now());
        bool has_come = left.count() > 0 && detector->Wait(left, [this](const trafficllm::Answer& answer) { Deliver(answer); });
        Mend();

        if ( has_come || ! ledger.Find(number) )
            continue;

        is_stalled = true;

        if ( timeout == trace_wait && ! std::exchange(has_told_of_stall, true) )
            zeek::reporter->Warning("TrafficLLM: no verdict within %.3f s; connections are not waited for until one comes",
                                    std::chrono::duration<double>(timeout).count());

        return;
    }
}

zeek::ValPtr Judge::Classify(zeek::Connection* conn, zeek::detail::Frame* frame) {
    if ( ! conn )
        // It is over; what is known of it is in the record that the caller has.
        return zeek::make_intrusive<zeek::VectorVal>(verdicts_type);

    zeek::RecordValPtr record = conn->GetVal();
    auto tap = taps.find(conn);

    if ( tap == taps.end() )
        return Verdicts(record);

    auto number = tap->second->Submitted();

    if ( ! number && tap->second->Feed().Flow() )
        number = Submit(tap->second->Feed(), conn, Occasion::Asked);

    auto* pending = number ? ledger.Find(number) : nullptr;
    auto* trigger = frame->GetTrigger();

    if ( ! pending || ! trigger )
        return Verdicts(record);

    pending->waiters.push_back({{zeek::NewRef{}, trigger}, frame->GetTriggerAssoc()});
    frame->SetDelayed();
    trigger->Hold();
    return nullptr;
}

void Judge::Process() {
    TakeChanges();
    detector->Poll(answers_max, [this](const trafficllm::Answer& answer) { Deliver(answer); });
    Mend();
    Listen();
}

void Judge::TakeChanges() {
    while ( auto change = detector->TakeChange() ) {
        const char* what = change->bundle.empty() ? "the compiled-in bundle" : change->bundle.c_str();

        if ( change->problem.empty() ) {
            ++counters.changes;
            zeek::reporter->Info("TrafficLLM: model %s of %s is active", change->model.c_str(), what);
        }
        else {
            ++counters.changes_refused;
            // A warning: with an error while Zeek starts it would not start.
            zeek::reporter->Warning("TrafficLLM: %s was refused, and %s: %s", what,
                                    change->model.empty() ? "there are no verdicts" : "all goes on as before", change->problem.c_str());
        }

        if ( trafficllm_changed )
            zeek::event_mgr.Enqueue(trafficllm_changed, text(change->bundle), text(change->model), text(change->problem));
    }

    Listen();
}

void Judge::Listen() {
    detector->DropRetired([this](int descriptor) {
        std::erase(descriptors, descriptor);
        zeek::iosource_mgr->UnregisterFd(descriptor, this);
    });

    auto wanted = detector->Descriptors();
    wanted.push_back(detector->ChangeDescriptor());

    for ( auto descriptor : wanted )
        if ( std::ranges::find(descriptors, descriptor) == descriptors.end() && zeek::iosource_mgr->RegisterFd(descriptor, this) )
            descriptors.push_back(descriptor);
}

void Judge::Mend() {
    auto before = [this](int descriptor) {
        std::erase(descriptors, descriptor);
        zeek::iosource_mgr->UnregisterFd(descriptor, this);
    };
    auto lost = [this](uint64_t session, const std::string& problem) {
        size_t connections = 0;
        ++counters.sessions_lost;
        ledger.TakeIf([session](const Pending& pending) { return pending.session == session; },
                      [this, &connections, &problem](Pending pending) {
                          ++connections;
                          Settle(pending);
                          Fail(pending, counters.failed, problem);
                      });
        zeek::reporter->Warning("TrafficLLM: a defect in the library cost the verdicts of %zu connections and questions: %s", connections,
                                problem.c_str());
    };

    auto losses = counters.sessions_lost;
    bool was_ready = detector->IsReady();
    detector->Mend(before, lost);

    if ( was_ready && ! detector->IsReady() )
        zeek::reporter->Warning("TrafficLLM: there are no verdicts any more, until the bundle or the settings are set again");

    if ( losses != counters.sessions_lost )
        Listen();
}

void Judge::Settle(Pending& pending) {
    // The record as the connection is now, if it still is.
    if ( auto* origin = pending.conn->GetOrigin() )
        static_cast<zeek::Connection*>(origin)->GetVal();

    AddWaiting(pending.conn, -1);
}

void Judge::Fail(Pending& pending, uint64_t& counter, const std::string& reason) {
    if ( pending.is_question ) {
        // The connection itself will be judged.
        ++counters.questions_unanswered;

        if ( ::TrafficLLM::settled )
            zeek::event_mgr.Enqueue(::TrafficLLM::settled, pending.conn);
    }
    else {
        ++counter;
        Tell(pending, reason);
    }

    Release(pending);
}

void Judge::Deliver(const trafficllm::Answer& answer) {
    auto pending = ledger.Take(answer.id());

    if ( ! pending )
        return;

    is_stalled = false;
    Settle(*pending);

    switch ( answer.status() ) {
        case trafficllm::Status::ok:
        case trafficllm::Status::abstained:
            if ( ! pending->is_question )
                ++counters.judged;

            DeliverVerdicts(*pending, answer);
            Release(*pending);
            break;
        case trafficllm::Status::not_applicable: Fail(*pending, counters.not_applicable, "no task applies"); break;
        case trafficllm::Status::expired: Fail(*pending, counters.expired, "the deadline has passed"); break;
        case trafficllm::Status::abandoned: Fail(*pending, counters.abandoned, "the engine was stopped"); break;
        default: Fail(*pending, counters.failed, trafficllm::status_string(answer.status())); break;
    }
}

void Judge::DeliverVerdicts(const Pending& pending, const trafficllm::Answer& answer) {
    double seconds = std::chrono::duration<double>(answer.latency()).count();
    latency->Observe(seconds);

    auto model = text(answer.model_id());
    auto verdicts = zeek::make_intrusive<zeek::VectorVal>(verdicts_type);

    for ( auto verdict : answer ) {
        // In the order of the type.
        auto record = zeek::make_intrusive<zeek::RecordVal>(verdict_type);
        record->Assign(0, text(verdict.task()));
        record->Assign(1, text(verdict.label()));
        record->Assign(2, static_cast<double>(verdict.score()));
        record->Assign(3, zeek::val_mgr->Bool(verdict.abstained()));
        record->Assign(4, zeek::val_mgr->Count(pending.packets));
        record->AssignInterval(5, seconds);
        record->Assign(6, model);

        if ( ! verdict.evidence().empty() )
            record->Assign(7, text(verdict.evidence()));

        if ( ! verdict.reason().empty() )
            record->Assign(8, text(verdict.reason()));

        verdicts->Append(std::move(record));
        CountVerdict(verdict);
    }

    FlowRecord(pending.conn)->Assign(1, verdicts);

    if ( trafficllm_verdict )
        for ( unsigned int i = 0; i < verdicts->Size(); i++ )
            zeek::event_mgr.Enqueue(trafficllm_verdict, pending.conn, verdicts->ValAt(i));
}

void Judge::Tell(const Pending& pending, const std::string& reason) {
    if ( trafficllm_unjudged )
        zeek::event_mgr.Enqueue(trafficllm_unjudged, pending.conn, text(reason));
}

void Judge::Release(Pending& pending) {
    for ( auto& waiter : pending.waiters ) {
        auto verdicts = Verdicts(pending.conn);
        waiter.trigger->Cache(waiter.assoc, verdicts.get());
        waiter.trigger->Release();
    }
}

void Judge::CountVerdict(const trafficllm::Verdict& verdict) {
    std::string task(verdict.task());
    auto found = tasks.find(task);

    if ( found == tasks.end() ) {
        auto counter = [&task](std::string_view abstained) {
            return zeek::telemetry_mgr->CounterInstance("zeek_trafficllm", "verdicts", {{"task", task}, {"abstained", abstained}},
                                                        "Verdicts by task");
        };
        found = tasks.emplace(task, TaskMetrics{counter("F"), counter("T")}).first;
    }

    (verdict.abstained() ? found->second.abstained : found->second.decided)->Inc();
}

zeek::RecordValPtr Judge::FlowRecord(const zeek::RecordValPtr& conn) const {
    if ( auto found = conn->GetField<zeek::RecordVal>(flow_offset) )
        return found;

    auto made = zeek::make_intrusive<zeek::RecordVal>(flow_type);
    conn->Assign(flow_offset, made);
    return made;
}

zeek::VectorValPtr Judge::Verdicts(const zeek::RecordValPtr& conn) const { return FlowRecord(conn)->GetField<zeek::VectorVal>(1); }

void Judge::AddWaiting(const zeek::RecordValPtr& conn, int change) const {
    auto flow = FlowRecord(conn);
    flow->Assign(0, zeek::val_mgr->Count(flow->GetFieldAs<zeek::CountVal>(0) + change));
}

std::chrono::steady_clock::time_point Judge::ShutdownEnd() {
    if ( ! shutdown_end )
        shutdown_end = std::chrono::steady_clock::now() + (MayWait() && ! is_stalled ? std::max(shutdown_wait, trace_wait) : shutdown_wait);

    return *shutdown_end;
}

void Judge::Finish() {
    if ( ! detector || ! zeek::run_state::terminating || ledger.Size() == 0 )
        return;

    auto deliver = [this](const trafficllm::Answer& answer) { Deliver(answer); };
    detector->Poll(SIZE_MAX, deliver);
    Mend();

    // Connections that end now are still to come.
    if ( open > 0 )
        return;

    auto left = [this] {
        return std::chrono::duration_cast<std::chrono::microseconds>(ShutdownEnd() - std::chrono::steady_clock::now());
    };

    while ( ledger.Size() > 0 && left().count() > 0 && detector->Wait(left(), deliver) )
        Mend();

    Mend();

    if ( ledger.Size() > 0 && ! std::exchange(has_told_of_end, true) )
        zeek::reporter->Warning("TrafficLLM: Zeek ends before %zu verdicts have come; TrafficLLM::shutdown_wait is how long it waits for them",
                                ledger.Size());

    ledger.Clear([this](Pending pending) {
        Settle(pending);
        Fail(pending, counters.abandoned, "Zeek ends");
    });
}

void Judge::Stop() {
    if ( ! detector )
        return;

    for ( auto descriptor : descriptors )
        zeek::iosource_mgr->UnregisterFd(descriptor, this);

    descriptors.clear();
    SetClosed(true);

    try {
        detector->Stop(stop_wait);
    } catch ( const std::exception& ) {
        // There is nobody left to tell, and the process ends.
    }

    detector.reset();
    ledger.Clear([](Pending&&) {});
    latency.reset();
    tasks.clear();
    verdict_type.reset();
    flow_type.reset();
    verdicts_type.reset();
}

} // namespace plugin::TrafficLLM_Detector
