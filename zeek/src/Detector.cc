// See the file "COPYING" in the main distribution directory for copyright.

#include "Detector.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <exception>
#include <functional>
#include <stdexcept>
#include <system_error>
#include <utility>

using namespace trafficllm_feed;

namespace {

// What an engine that was replaced gets for the flows that wait in it.
constexpr std::chrono::seconds retirement_time{5};

// What one gets, again and again, that did not end in that time; others come in between.
constexpr std::chrono::seconds again_time{1};

trafficllm::Model open(const std::string& bundle, const trafficllm::Config& config) {
    return bundle.empty() ? trafficllm::Model::open_default(&config) : trafficllm::Model::open(bundle, &config);
}

trafficllm::Config make_config(const Settings& settings) {
    trafficllm::Config config;

    for ( const auto& [key, value] : settings.values )
        config.set(key, value);

    return config;
}

std::string device_of(const std::map<std::string, std::string>& values) {
    auto found = values.find("engine.device");
    return found == values.end() ? std::string() : found->second;
}

} // namespace

Detector::Generation::Generation(const trafficllm::Model& model, const trafficllm::Config& config, Count arg_count)
    : engine(model, &config), session(engine), descriptor(session->descriptor()), count(std::move(arg_count)) {
    ++*count;
}

Detector::Shared::Shared() : descriptor(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if ( descriptor < 0 )
        throw std::system_error(errno, std::generic_category(), "eventfd");
}

Detector::Shared::~Shared() { close(descriptor); }

void Detector::Shared::Wake() const {
    uint64_t one = 1;
    // It cannot fail but for a counter that is full, which is as good.
    [[maybe_unused]] auto written = write(descriptor, &one, sizeof one);
}

Detector::Detector() : shared(std::make_shared<Shared>()) {}

Detector::~Detector() { Stop(std::chrono::microseconds(0)); }

void Detector::Configure(Settings settings) {
    opener.Run([shared = shared, settings = std::move(settings)] { Apply(*shared, settings); });
    ++changes_asked;
}

void Detector::Apply(Shared& shared, const Settings& settings) {
    Shared::Result result;
    result.change.bundle = settings.bundle;

    try {
        load_library();

        if ( shared.latest && ! shared.latest->is_lost && shared.latest->values == settings.values ) {
            result.generation = shared.latest;

            shared.latest->engine.activate(open(settings.bundle, make_config(settings)));
        }
        else {
            result.generation = Make(settings, shared.latest, shared.engines);
            shared.latest = result.generation;
        }

        shared.latest->bundle = settings.bundle;
    } catch ( const std::exception& e ) {
        result.change.problem = e.what();
        result.generation = shared.latest;
    }

    try {
        if ( shared.latest )
            result.change.model = shared.latest->engine.model().info().id;
    } catch ( const std::exception& ) {
        // It is at work all the same.
    }

    {
        std::lock_guard<std::mutex> lock(shared.mutex);
        shared.results.push_back(std::move(result));
    }

    shared.Wake();
}

Detector::GenerationPtr Detector::Make(const Settings& settings, const GenerationPtr& before, const Count& count) {
    if ( *count >= engines_max )
        throw std::runtime_error(std::to_string(*count) + " engines have not ended yet");

    auto config = make_config(settings);
    // A model is opened for the device that is to run it.
    auto is_open = before && before->bundle == settings.bundle && device_of(before->values) == device_of(settings.values);
    auto model = is_open ? before->engine.model() : open(settings.bundle, config);
    auto made = std::make_shared<Generation>(model, config, count);
    made->values = settings.values;
    made->engine.start();
    return made;
}

std::optional<Change> Detector::TakeChange() {
    uint64_t count = 0;
    [[maybe_unused]] auto cleared = read(shared->descriptor, &count, sizeof count);

    Shared::Result result;

    {
        std::lock_guard<std::mutex> lock(shared->mutex);

        if ( shared->results.empty() )
            return std::nullopt;

        result = std::move(shared->results.front());
        shared->results.pop_front();
    }

    ++changes_told;

    if ( result.generation && result.generation->is_lost ) {
        // It was given up while its model was changed, or before.
        if ( result.change.problem.empty() )
            result.change.problem = "the engine was given up meanwhile";

        result.change.model.clear();
        result.generation = nullptr;
    }

    if ( result.generation != current ) {
        if ( current )
            Retire(std::move(current));

        current = std::move(result.generation);

        if ( current )
            current->number = ++sessions;
    }

    return std::move(result.change);
}

bool Detector::WaitForChange(std::chrono::microseconds timeout) {
    auto end = std::chrono::steady_clock::now() + timeout;

    while ( true ) {
        {
            std::lock_guard<std::mutex> lock(shared->mutex);

            if ( ! shared->results.empty() )
                return true;
        }

        auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - std::chrono::steady_clock::now());

        if ( left.count() <= 0 )
            return false;

        // poll(2) counts in an int, and a signal may end it early.
        pollfd waiting{shared->descriptor, POLLIN, 0};
        ::poll(&waiting, 1, static_cast<int>(std::min<long long>(left.count(), 60'000)));
    }
}

trafficllm::Status Detector::Submit(const trafficllm::Flow& flow, uint64_t id) {
    if ( ! current || current->is_broken )
        return trafficllm::Status::pending;

    try {
        return current->session->submit_last(flow, id);
    } catch ( const trafficllm::Error& e ) {
        // It may be the flow's defect, an earlier one: the session itself says whether it is of use.
        try {
            static_cast<void>(current->session->in_flight());
        } catch ( const trafficllm::Error& ) {
            Break(*current, e.what());
        }

        throw;
    }
}

std::vector<Detector::GenerationPtr> Detector::Generations() const {
    auto generations = retirees;

    if ( current )
        generations.push_back(current);

    return generations;
}

bool Detector::Receive(Generation& generation, std::optional<std::chrono::microseconds> timeout) {
    if ( ! generation.session || generation.is_broken )
        return false;

    try {
        bool has_come = timeout ? generation.session->wait(answers, *timeout) : generation.session->poll(answers);

        if ( has_come )
            for ( [[maybe_unused]] auto answer : answers )
                if ( generation.losses > 0 && ++generation.answers_since >= answers_healed )
                    generation.losses = generation.answers_since = 0;

        return has_come;
    } catch ( const trafficllm::Error& e ) {
        // Whatever it is, the next call would find the same.
        Break(generation, e.what());
        return false;
    }
}

size_t Detector::InFlight(Generation& generation) {
    if ( ! generation.session || generation.is_broken )
        return 0;

    try {
        return generation.session->in_flight();
    } catch ( const trafficllm::Error& e ) {
        Break(generation, e.what());
        return 0;
    }
}

void Detector::Break(Generation& generation, const std::string& problem) {
    generation.is_broken = true;
    generation.problem = problem;
}

void Detector::Renew(Generation& generation) {
    generation.is_broken = false;
    generation.session.reset();

    if ( &generation == current.get() && generation.losses < losses_max )
        try {
            ++generation.losses;
            generation.answers_since = 0;
            generation.session.emplace(generation.engine);
            generation.descriptor = generation.session->descriptor();
            generation.number = ++sessions;
            return;
        } catch ( const trafficllm::Error& ) {
            generation.session.reset();
        }

    generation.is_lost = true;
}

void Detector::Retire(GenerationPtr generation) {
    // Ending it waits for its workers. What it gives up is answered too.
    auto stop = [generation, shared = shared, time = retirement_time]() mutable {
        bool has_ended = true;

        try {
            has_ended = generation->engine.stop(time) != trafficllm::Status::running;
        } catch ( const std::exception& ) {
            // It has ended otherwise.
        }

        time = again_time;

        if ( has_ended ) {
            generation->is_stopped = true;
            shared->Wake();
        }

        return has_ended;
    };
    retirees.push_back(std::move(generation));
    Close(std::move(stop));
}

void Detector::LetGo(GenerationPtr generation) {
    // Its memory goes there.
    Close([generation = std::move(generation)] { return true; });
}

void Detector::Close(std::function<bool()> task) {
    try {
        closer.Repeat(task);
    } catch ( const std::system_error& ) {
        // The system gives no second thread; the first is there, since it made the engine.
        opener.Repeat(std::move(task));
    }
}

std::vector<int> Detector::Descriptors() const {
    std::vector<int> descriptors;

    for ( const auto& generation : Generations() )
        if ( generation->session )
            descriptors.push_back(generation->descriptor);

    return descriptors;
}

void Detector::Stop(std::chrono::microseconds timeout) {
    auto end = std::chrono::steady_clock::now() + timeout;
    auto left = [end] { return std::chrono::duration_cast<std::chrono::microseconds>(end - std::chrono::steady_clock::now()); };
    auto generations = Generations();
    retirees.clear();
    current = nullptr;

    {
        std::lock_guard<std::mutex> lock(shared->mutex);

        for ( auto& result : shared->results )
            generations.push_back(std::move(result.generation));

        shared->results.clear();
    }

    // Not on this thread: a worker in a long batch is nothing to wait for.
    for ( auto& generation : generations )
        if ( generation )
            Close([generation = std::move(generation)] {
                try {
                    generation->engine.stop(std::chrono::microseconds(0));
                } catch ( const std::exception& ) {
                }

                return true;
            });

    // What it makes just now goes there, too.
    if ( changes_asked > 0 )
        opener.Run([shared = shared] {
            std::deque<Shared::Result> results;
            shared->latest = nullptr;
            std::lock_guard<std::mutex> lock(shared->mutex);
            results.swap(shared->results);
        });

    closer.Finish(left());
    opener.Finish(left());
}
