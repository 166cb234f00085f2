// See the file "COPYING" in the main distribution directory for copyright.

#include "Detector.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <exception>
#include <system_error>
#include <utility>

using namespace trafficllm_feed;

namespace {

// What an engine that was replaced gets for the flows that wait in it.
constexpr std::chrono::seconds retirement_time{5};

trafficllm::Model open(const std::string& bundle, const trafficllm::Config& config) {
    return bundle.empty() ? trafficllm::Model::open_default(&config) : trafficllm::Model::open(bundle, &config);
}

trafficllm::Config make_config(const Settings& settings) {
    trafficllm::Config config;

    for ( const auto& [key, value] : settings.values )
        config.set(key, value);

    return config;
}

} // namespace

Detector::Shared::Shared() : descriptor(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if ( descriptor < 0 )
        throw std::system_error(errno, std::generic_category(), "eventfd");
}

Detector::Shared::~Shared() { close(descriptor); }

Detector::Detector() : shared(std::make_shared<Shared>()) {}

Detector::~Detector() { Stop(std::chrono::microseconds(0)); }

void Detector::Configure(Settings settings) {
    ++changes_asked;
    helper.Run([shared = shared, settings = std::move(settings)] { Apply(*shared, settings); });
}

void Detector::Apply(Shared& shared, const Settings& settings) {
    Shared::Result result;
    result.change.bundle = settings.bundle;

    try {
        load_library();

        if ( shared.latest && shared.latest->values == settings.values ) {
            result.generation = shared.latest;

            shared.latest->engine.activate(open(settings.bundle, make_config(settings)));
        }
        else {
            result.generation = Make(settings, shared.latest);
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

    uint64_t one = 1;
    // It cannot fail but for a counter that is full, which is as good.
    [[maybe_unused]] auto written = write(shared.descriptor, &one, sizeof one);
}

Detector::GenerationPtr Detector::Make(const Settings& settings, const GenerationPtr& before) {
    auto config = make_config(settings);
    auto model = before && before->bundle == settings.bundle ? before->engine.model() : open(settings.bundle, config);
    auto made = std::make_shared<Generation>(model, config);
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

    if ( result.generation != current ) {
        if ( current )
            Retire(std::move(current));

        current = std::move(result.generation);
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
    return current ? current->session.submit_last(flow, id) : trafficllm::Status::pending;
}

void Detector::Retire(GenerationPtr generation) {
    // Ending it waits for its workers. What it gives up is answered too.
    helper.Run([generation] {
        try {
            while ( generation->engine.stop(retirement_time) == trafficllm::Status::running ) {
            }
        } catch ( const std::exception& ) {
            // It has ended otherwise.
        }

        generation->is_stopped = true;
    });
    retirees.push_back(std::move(generation));
}

bool Detector::IsSpent(const Generation& generation) {
    try {
        return generation.is_stopped && generation.session.in_flight() == 0;
    } catch ( const std::exception& ) {
        return true;
    }
}

std::vector<int> Detector::Descriptors() const {
    std::vector<int> descriptors;

    if ( current )
        descriptors.push_back(current->descriptor);

    for ( const auto& retired : retirees )
        descriptors.push_back(retired->descriptor);

    return descriptors;
}

void Detector::Stop(std::chrono::microseconds timeout) {
    auto end = std::chrono::steady_clock::now() + timeout;

    {
        std::lock_guard<std::mutex> lock(shared->mutex);
        shared->results.clear();
    }

    // The helper ends it, too: a worker in a long batch is nothing to wait for.
    if ( auto last = std::exchange(current, nullptr) )
        helper.Run([last = std::move(last)]() mutable {
            try {
                last->engine.stop(std::chrono::microseconds(0));
            } catch ( const std::exception& ) {
            }
        });

    helper.Run([shared = shared] { shared->latest = nullptr; });
    retirees.clear();
    helper.Finish(std::chrono::duration_cast<std::chrono::microseconds>(end - std::chrono::steady_clock::now()));
}
