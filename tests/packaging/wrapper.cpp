// Every class of trafficllm.hpp at work, for tests/packaging.sh: ownership, errors, callbacks that throw.
//
//     wrapper CAPTURE REQUESTS BUNDLE
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <thread>
#include <trafficllm.hpp>

namespace t = trafficllm;
using namespace std::chrono_literals;

namespace {

int checks = 0;

void check_at(bool holds, const char *what, int line) {
    ++checks;
    if (!holds) {
        std::fprintf(stderr, "wrapper.cpp:%d: %s\n", line, what);
        std::exit(1);
    }
}

#define CHECK(condition) check_at(condition, #condition, __LINE__)

template <class Function>
t::Status status_of(Function &&function) {
    try {
        function();
    } catch (const t::Error &error) {
        CHECK(std::strlen(error.what()) > 0);
        return error.status();
    }
    return t::Status::ok;
}

static_assert(!std::is_copy_constructible_v<t::Engine> && std::is_nothrow_move_constructible_v<t::Engine>);
static_assert(!std::is_copy_assignable_v<t::Flow> && std::is_nothrow_move_assignable_v<t::Flow>);
static_assert(!std::is_copy_constructible_v<t::Log> && !std::is_move_constructible_v<t::Log>);

t::Flow dns_flow(const t::Engine &engine) {
    static const std::uint8_t question[] = "\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07" "example\x03" "org\x00\x00\x01\x00\x01";
    t::FlowInfo info(17);
    t::Flow flow(engine, info);
    t::Packet packet;
    packet.payload = question;
    packet.payload_size = sizeof question - 1;
    packet.payload_bytes = sizeof question - 1;
    packet.ip_bytes = packet.payload_bytes + 28;
    CHECK(flow.feed(packet) == t::Status::ok);
    return flow;
}

void config() {
    CHECK(t::Config::options().size() > 10);
    t::Config config;
    config.set("engine.workers", 2).set("engine.tasks", "botnet_detection");
    CHECK(config.value("engine.workers") == "2");
    CHECK(config.value("engine.tasks") == "botnet_detection");
    CHECK(status_of([&] { config.set("engine.wrokers", "2"); }) == t::Status::error_key);
    CHECK(status_of([&] { config.set("engine.workers", "two"); }) == t::Status::error_value);
    CHECK(status_of([&] { config.set(std::string("engine.workers\0", 15), "2"); }) == t::Status::error_text);
    try {
        config.set("engine.wrokers", "2");
    } catch (const std::exception &error) {
        CHECK(std::string(error.what()).find("engine.workers") != std::string::npos);
    }
    t::Config moved = std::move(config);
    CHECK(moved.value("engine.workers") == "2");
    CHECK(status_of([&] { config.value("engine.workers"); }) == t::Status::error_null);
    config = std::move(moved);
    CHECK(config.value("engine.workers") == "2" && moved.get() == nullptr);
    CHECK(config.free() == t::Status::ok && config.get() == nullptr);
}

void models(const char *bundle) {
    const t::Model model = t::Model::open_default();
    const std::vector<tllm_task_info> tasks = model.tasks();
    CHECK(!tasks.empty() && tasks.size() == model.info().tasks);
    CHECK(model.labels(0).size() == tasks[0].labels && !model.labels(0)[0].empty());
    CHECK(status_of([&] { model.labels(tasks.size()); }) == t::Status::error_task);
    CHECK(model.manifest().front() == '{' && model.manifest().find(model.labels(0)[0]) != std::string::npos);
    t::Model::verify(bundle);
    CHECK(status_of([] { t::Model::verify("/nonexistent.tllm"); }) == t::Status::error_io);
    CHECK(status_of([] { t::Model::open("/dev/null"); }) == t::Status::error_model);
    std::ifstream file(bundle, std::ios::binary);
    const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    const t::Model copied = t::Model::open_memory(reinterpret_cast<const std::uint8_t *>(bytes.data()), bytes.size());
    CHECK(std::string(copied.info().id) == model.info().id);
}

void flows(const char *bundle) {
    const std::size_t tasks = t::Model::open_default().tasks().size();
    t::Engine engine(t::Model::open_default());
    CHECK(std::string(engine.model().info().id) == t::Model::open(bundle).info().id);
    t::Session session(engine);
    t::Flow flow = dns_flow(engine);
    CHECK(flow.stats().packets == 1);

    // The smallest Answers grows to what an answer needs.
    t::Answers answers(1), queued(1);
    session.classify(flow, answers);
    const t::Answer direct = *answers.begin();
    CHECK(direct.size() > 1 && direct.size() <= tasks && direct.generation() == 1);
    CHECK(direct.find("botnet_detection").has_value() && !direct.find("no_such_task"));
    CHECK(direct.find("botnet_detection")->score() > 0 && !direct[0].label().empty());

    engine.start();
    CHECK(!session.poll(queued) && queued.empty());
    CHECK(session.submit(flow, 42) == t::Status::ok && session.in_flight() == 1);
    CHECK(session.descriptor() >= 0);
    CHECK(session.wait(queued, 10s));
    const t::Answer answer = *queued.begin();
    CHECK(answer.id() == 42 && answer.json() == direct.json() && std::next(queued.begin()) == queued.end());
    CHECK(session.in_flight() == 0 && !session.wait(queued, 0s));

    // What a callback throws arrives at the caller, and nothing is lost but this answer.
    for (std::uint64_t id = 0; id < 3; id++) {
        CHECK(session.submit(flow, id) == t::Status::ok);
    }
    std::size_t seen = 0;
    bool thrown = false;
    try {
        while (seen == 0) {
            session.each(10s, [&](t::Answer) {
                seen++;
                throw std::runtime_error("mine");
            });
        }
    } catch (const std::runtime_error &error) {
        thrown = std::string(error.what()) == "mine";
    }
    CHECK(thrown && seen == 1);
    while (seen < 3) {
        CHECK(session.each(10s, [&](t::Answer) { return ++seen < 3; }) > 0);
    }
    CHECK(session.in_flight() == 0);

    CHECK(session.submit_request("GET /index.html HTTP/1.1\r\nHost: example.org\r\n\r\n", 7) == t::Status::ok);
    CHECK(session.wait(queued, 10s) && (*queued.begin()).id() == 7);
    session.classify_request("GET /index.html HTTP/1.1\r\n\r\n", answers);
    CHECK((*answers.begin()).json() == (*queued.begin()).json());
    CHECK(status_of([&] { session.classify_request("no request", answers); }) == t::Status::error_request && answers.empty());

    // A verdict for a flow that is gone never comes.
    {
        const t::Flow passing = dns_flow(engine);
        CHECK(session.submit(passing, 1) == t::Status::ok);
    }
    while (session.wait(queued, 10s)) {
        CHECK(false && "a verdict for a freed flow");
    }

    engine.activate(bundle);
    CHECK(status_of([&] { engine.activate("/nonexistent.tllm"); }) == t::Status::error_io);
    engine.activate(engine.model());
    CHECK(engine.counters().generation == 3 && engine.counters().activations_failed == 1);
    CHECK(engine.memory().model_bytes > 0);
    CHECK(engine.metrics().find("# TYPE trafficllm_") != std::string::npos);

    // Engine and session go where they are moved to, in any order of destruction.
    t::Session other = std::move(session);
    CHECK(status_of([&] { static_cast<void>(session.submit(flow, 1)); }) == t::Status::error_null);
    CHECK(engine.stop(1s) == t::Status::ok);
    CHECK(status_of([&] { static_cast<void>(other.submit(flow, 1)); }) == t::Status::error_stopped);
    // Two were never answered: that of the passing flow, and the one after the stop.
    const tllm_counters counters = engine.counters();
    CHECK(counters.submitted == counters.done + counters.abandoned && counters.abandoned == 2);
    engine = t::Engine(t::Model::open_default());
    CHECK(flow.stats().packets == 1);
}

void files(const char *capture, const char *requests) {
    t::Config config;
    config.set("engine.workers", 0);
    t::Engine engine(t::Model::open_default(), &config);
    tllm_capture_report report{};
    std::size_t flows = 0, lines = 0;
    CHECK(engine.detect(capture, [&](t::Subject subject, t::Answer answer) {
        flows += subject.is_request() ? 0 : 1;
        CHECK(subject.json(answer, "x").find("{\"capture\":\"x\",") == 0 && subject.json(answer).find("capture") == std::string::npos);
    }, &report) == t::Status::ok);
    CHECK(flows > 0 && report.flows == flows);
    CHECK(engine.detect(requests, [&](t::Subject subject, t::Answer) { return ++lines < 2 && subject.is_request(); }) == t::Status::cancelled);
    CHECK(lines == 2);
    const auto throws = [](t::Subject, t::Answer) { throw 42; };
    int thrown = 0;
    try {
        engine.detect(capture, throws);
    } catch (int number) {
        thrown = number;
    }
    CHECK(thrown == 42);
    CHECK(status_of([&] { engine.detect("/nonexistent.pcap", throws); }) == t::Status::error_io);

    // Another thread's error is not this one's.
    std::thread([] { CHECK(status_of([] { t::Model::verify("/dev/null"); }) == t::Status::error_model); }).join();
    CHECK(tllm_last_error(nullptr, 0, nullptr) != TLLM_ERR_MODEL);
}

void log(const char *bundle) {
    std::atomic<int> messages{0};
    t::Engine engine(t::Model::open_default());
    {
        const t::Log log(t::LogLevel::trace, [&](t::LogLevel, std::string_view target, std::string_view message) {
            CHECK(!target.empty() && !message.empty());
            messages++;
            throw std::runtime_error("dropped");
        });
        engine.activate(bundle);
        CHECK(messages > 0);
    }
    const int before = messages;
    engine.activate(bundle);
    CHECK(messages == before);
    CHECK(status_of([] { t::Log log(t::LogLevel::info, nullptr); }) == t::Status::error_null);
}

}  // namespace

int main(int argc, char **argv) {
    if (argc != 4) {
        return 2;
    }
    t::check_platform();
    CHECK(std::string(t::status_string(t::Status::queue_full)) != t::status_string(static_cast<t::Status>(12345)));
    config();
    models(argv[3]);
    flows(argv[3]);
    files(argv[1], argv[2]);
    log(argv[3]);
    std::printf("wrapper: %d checks, library %s\n", checks, t::version());
}
