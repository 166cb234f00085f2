// See the file "COPYING" in the main distribution directory for copyright.

#include "Library.h"

#include <dlfcn.h>

#include <mutex>
#include <stdexcept>
#include <string>

// The functions that the plugin uses.
#define TRAFFICLLM_FUNCTIONS(ENTRY)                                                                                                        \
    ENTRY(abi_version)                                                                                                                     \
    ENTRY(config_free)                                                                                                                     \
    ENTRY(config_new)                                                                                                                      \
    ENTRY(config_set)                                                                                                                      \
    ENTRY(engine_activate_model)                                                                                                           \
    ENTRY(engine_free)                                                                                                                     \
    ENTRY(engine_model)                                                                                                                    \
    ENTRY(engine_new)                                                                                                                      \
    ENTRY(engine_start)                                                                                                                    \
    ENTRY(engine_stop)                                                                                                                     \
    ENTRY(flow_feed)                                                                                                                       \
    ENTRY(flow_free)                                                                                                                       \
    ENTRY(flow_info_init)                                                                                                                  \
    ENTRY(flow_new)                                                                                                                        \
    ENTRY(last_error)                                                                                                                      \
    ENTRY(model_describe)                                                                                                                  \
    ENTRY(model_free)                                                                                                                      \
    ENTRY(model_open)                                                                                                                      \
    ENTRY(model_open_default)                                                                                                              \
    ENTRY(packet_init)                                                                                                                     \
    ENTRY(session_fd)                                                                                                                      \
    ENTRY(session_free)                                                                                                                    \
    ENTRY(session_in_flight)                                                                                                               \
    ENTRY(session_new)                                                                                                                     \
    ENTRY(session_poll)                                                                                                                    \
    ENTRY(session_submit)                                                                                                                  \
    ENTRY(session_submit_last)                                                                                                             \
    ENTRY(session_wait)                                                                                                                    \
    ENTRY(status_string)

namespace {

struct Functions {
#define MEMBER(name) decltype(&::tllm_##name) name = nullptr;
    TRAFFICLLM_FUNCTIONS(MEMBER)
#undef MEMBER
};

// Written once, before the first call: load_library() comes first, on whichever thread, and other threads learn of what it made possible
// through a lock.
Functions functions;

constexpr const char* soname = "libtrafficllm.so." TRAFFICLLM_ABI;

template<class Function>
Function find(void* library, const char* name) {
    auto* found = dlsym(library, name);

    if ( ! found )
        throw std::runtime_error(std::string(soname) + " has no function " + name + ": it is older than this plugin");

    return reinterpret_cast<Function>(found);
}

// Before the library is loaded, and only then, there is no function.
template<class... Parameters, class... Arguments>
std::int32_t call(std::int32_t (*function)(Parameters...), Arguments... arguments) {
    return function ? function(arguments...) : TLLM_ERR_PLATFORM;
}

} // namespace

void trafficllm_feed::load_library() {
    static std::mutex mutex;
    static bool loaded = false;

    std::lock_guard<std::mutex> lock(mutex);

    if ( loaded )
        return;

    void* library = dlopen(soname, RTLD_NOW | RTLD_LOCAL);

    if ( ! library ) {
        const char* reason = dlerror();
        throw std::runtime_error(std::string("cannot load libtrafficllm: ") + (reason ? reason : soname));
    }

    try {
        Functions found;
        found.abi_version = find<decltype(found.abi_version)>(library, "tllm_abi_version");

        if ( found.abi_version() != TLLM_ABI_VERSION )
            throw std::runtime_error(std::string(soname) + " has ABI number " + std::to_string(found.abi_version()) +
                                     ", and this plugin was compiled for " + std::to_string(TLLM_ABI_VERSION));

#define FIND(name) found.name = find<decltype(found.name)>(library, "tllm_" #name);
        TRAFFICLLM_FUNCTIONS(FIND)
#undef FIND
        functions = found;
    } catch ( ... ) {
        dlclose(library);
        throw;
    }

    // It stays: its threads and what it gave away would not survive otherwise.
    loaded = true;
}

// Not to be seen from outside the plugin: the library's own calls could end up here.
#define FORWARD extern "C" __attribute__((visibility("hidden")))

FORWARD std::uint32_t tllm_abi_version(void) { return functions.abi_version ? functions.abi_version() : ~std::uint32_t(0); }

FORWARD const char* tllm_status_string(std::int32_t status) {
    return functions.status_string ? functions.status_string(status) : "libtrafficllm is not loaded";
}

FORWARD std::int32_t tllm_last_error(char* buffer, std::size_t size, std::size_t* needed) {
    return call(functions.last_error, buffer, size, needed);
}

FORWARD std::int32_t tllm_config_new(tllm_config** config) { return call(functions.config_new, config); }

FORWARD std::int32_t tllm_config_set(tllm_config* config, const char* key, const char* value) {
    return call(functions.config_set, config, key, value);
}

FORWARD std::int32_t tllm_config_free(tllm_config* config) { return call(functions.config_free, config); }

FORWARD std::int32_t tllm_model_open(const char* path, const tllm_config* config, tllm_model** model) {
    return call(functions.model_open, path, config, model);
}

FORWARD std::int32_t tllm_model_open_default(const tllm_config* config, tllm_model** model) {
    return call(functions.model_open_default, config, model);
}

FORWARD std::int32_t tllm_model_describe(const tllm_model* model, tllm_model_info* info, std::size_t size) {
    return call(functions.model_describe, model, info, size);
}

FORWARD std::int32_t tllm_model_free(tllm_model* model) { return call(functions.model_free, model); }

FORWARD std::int32_t tllm_engine_new(const tllm_model* model, const tllm_config* config, tllm_engine** engine) {
    return call(functions.engine_new, model, config, engine);
}

FORWARD std::int32_t tllm_engine_start(tllm_engine* engine) { return call(functions.engine_start, engine); }

FORWARD std::int32_t tllm_engine_stop(tllm_engine* engine, std::uint64_t timeout_us) { return call(functions.engine_stop, engine, timeout_us); }

FORWARD std::int32_t tllm_engine_activate_model(tllm_engine* engine, const tllm_model* model) {
    return call(functions.engine_activate_model, engine, model);
}

FORWARD std::int32_t tllm_engine_model(const tllm_engine* engine, tllm_model** model) { return call(functions.engine_model, engine, model); }

FORWARD std::int32_t tllm_engine_free(tllm_engine* engine) { return call(functions.engine_free, engine); }

FORWARD std::int32_t tllm_flow_info_init(tllm_flow_info* info, std::size_t size) { return call(functions.flow_info_init, info, size); }

FORWARD std::int32_t tllm_packet_init(tllm_packet* packet, std::size_t size) { return call(functions.packet_init, packet, size); }

FORWARD std::int32_t tllm_flow_new(const tllm_engine* engine, const tllm_flow_info* info, tllm_flow** flow) {
    return call(functions.flow_new, engine, info, flow);
}

FORWARD std::int32_t tllm_flow_feed(tllm_flow* flow, const tllm_packet* packet) { return call(functions.flow_feed, flow, packet); }

FORWARD std::int32_t tllm_flow_free(tllm_flow* flow) { return call(functions.flow_free, flow); }

FORWARD std::int32_t tllm_session_new(const tllm_engine* engine, tllm_session** session) { return call(functions.session_new, engine, session); }

FORWARD std::int32_t tllm_session_submit(tllm_session* session, const tllm_flow* flow, std::uint64_t id) {
    return call(functions.session_submit, session, flow, id);
}

FORWARD std::int32_t tllm_session_submit_last(tllm_session* session, const tllm_flow* flow, std::uint64_t id) {
    return call(functions.session_submit_last, session, flow, id);
}

FORWARD std::int32_t tllm_session_poll(tllm_session* session, tllm_verdict* verdicts, std::size_t verdict_size, std::size_t capacity,
                               std::size_t* count) {
    return call(functions.session_poll, session, verdicts, verdict_size, capacity, count);
}

FORWARD std::int32_t tllm_session_wait(tllm_session* session, std::uint64_t timeout_us, tllm_verdict* verdicts, std::size_t verdict_size,
                               std::size_t capacity, std::size_t* count) {
    return call(functions.session_wait, session, timeout_us, verdicts, verdict_size, capacity, count);
}

FORWARD std::int32_t tllm_session_fd(tllm_session* session, std::int32_t* descriptor) { return call(functions.session_fd, session, descriptor); }

FORWARD std::int32_t tllm_session_in_flight(const tllm_session* session, std::size_t* flows) {
    return call(functions.session_in_flight, session, flows);
}

FORWARD std::int32_t tllm_session_free(tllm_session* session) { return call(functions.session_free, session); }
