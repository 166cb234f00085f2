/* libtrafficllm for C++17: classes over trafficllm.h that free what they hold, and exceptions instead of negative statuses.
 *
 * Licence: MIT OR Apache-2.0.
 *
 * Everything is inline and needs nothing but trafficllm.h and the standard library: there is no C++ in the ABI. The first page of
 * trafficllm.h (threads, forks, lifetimes, limits) holds here too. What is different:
 *
 * Errors. A negative status becomes a trafficllm::Error with the status and the library's text. States, which are no failures (the queue is
 * full, nothing has come yet), are returned.
 *
 * Ownership. Config, Model, Engine, Session and Flow own their handle: they can be moved, not copied, and free it in their destructor.
 * They can be destroyed in any order. Where a call of another thread is still in a session, flow or config, it goes when that call
 * returns. After a move, or free(), an object is empty, and using it is an Error with Status::error_null.
 *
 * Views. Verdict, Answer and Subject are pointers to what something else holds: the Answers, or the library until a callback returns.
 *
 * Callbacks may throw: the exception is caught before it would cross the library, ends the call, and is thrown again to the caller.
 * Only those of Log, which are called by other threads, cannot: what they throw is dropped.
 */

#ifndef TRAFFICLLM_HPP
#define TRAFFICLLM_HPP

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "trafficllm.h"

namespace trafficllm {

/** Every status of trafficllm.h, where their meaning stands. Functions return those that are not negative, and throw the others. */
enum class Status : std::int32_t {
    ok = TLLM_OK,
    pending = TLLM_PENDING,
    need_more = TLLM_NEED_MORE,
    abstained = TLLM_ABSTAINED,
    queue_full = TLLM_QUEUE_FULL,
    expired = TLLM_EXPIRED,
    abandoned = TLLM_ABANDONED,
    flow_full = TLLM_FLOW_FULL,
    running = TLLM_RUNNING,
    cancelled = TLLM_CANCELLED,
    end = TLLM_END,
    not_applicable = TLLM_NOT_APPLICABLE,
    error_null = TLLM_ERR_NULL,
    error_argument = TLLM_ERR_ARGUMENT,
    error_handle = TLLM_ERR_HANDLE,
    error_busy = TLLM_ERR_BUSY,
    error_buffer = TLLM_ERR_BUFFER,
    error_key = TLLM_ERR_KEY,
    error_value = TLLM_ERR_VALUE,
    error_io = TLLM_ERR_IO,
    error_model = TLLM_ERR_MODEL,
    error_platform = TLLM_ERR_PLATFORM,
    error_memory = TLLM_ERR_MEMORY,
    error_budget = TLLM_ERR_BUDGET,
    error_limit = TLLM_ERR_LIMIT,
    error_thread = TLLM_ERR_THREAD,
    error_stopped = TLLM_ERR_STOPPED,
    error_forked = TLLM_ERR_FORKED,
    error_panic = TLLM_ERR_PANIC,
    error_worker = TLLM_ERR_WORKER,
    error_request = TLLM_ERR_REQUEST,
    error_capture = TLLM_ERR_CAPTURE,
    error_struct = TLLM_ERR_STRUCT,
    error_text = TLLM_ERR_TEXT,
    error_task = TLLM_ERR_TASK,
    error_unsupported = TLLM_ERR_UNSUPPORTED,
    error_not_started = TLLM_ERR_NOT_STARTED,
    error_device = TLLM_ERR_DEVICE,
};

/** A short text for any status, static. */
inline const char *status_string(Status status) noexcept { return tllm_status_string(static_cast<std::int32_t>(status)); }

/** A call that failed: its status, and the library's text (where, what was expected, what was found) as what(). */
class Error : public std::runtime_error {
  public:
    Error(Status status, const std::string &text) : std::runtime_error(text), status_(status) {}

    /** Why the call failed; never one of the states. */
    Status status() const noexcept { return status_; }

  private:
    Status status_;
};

/** What the classes below share; not part of the interface. */
namespace detail {

/** The calling thread's last error, if it is this one; else the status in words. */
inline std::string error_text(std::int32_t status) {
    std::size_t needed = 0;
    std::string text;
    std::int32_t found = tllm_last_error(nullptr, 0, &needed);
    if (needed > 0) {
        text.resize(needed);
        found = tllm_last_error(text.data(), text.size(), nullptr);
        text.resize(needed - 1);
    }
    return found == status && !text.empty() ? text : std::string(tllm_status_string(status));
}

/** Throws the errors and hands the states on. */
inline Status check(std::int32_t status) {
    if (status < 0) {
        throw Error(static_cast<Status>(status), error_text(status));
    }
    return static_cast<Status>(status);
}

/** Refuses a library that this header does not belong to. Everything begins with a Config or a Model, and they with this. */
inline void require_library() {
    if (tllm_abi_version() != static_cast<std::uint32_t>(TLLM_ABI_VERSION)) {
        throw Error(Status::error_platform, "libtrafficllm has ABI number " + std::to_string(tllm_abi_version())
                                                + ", and this program was compiled for " + std::to_string(TLLM_ABI_VERSION));
    }
}

/** A text for C: one with a NUL in it would be cut in silence. */
inline const char *c_text(const std::string &text) {
    if (text.find('\0') != std::string::npos) {
        throw Error(Status::error_text, "a text has a NUL byte in it");
    }
    return text.c_str();
}

inline std::uint64_t microseconds(std::chrono::microseconds time) noexcept {
    return time.count() < 0 ? 0 : static_cast<std::uint64_t>(time.count());
}

/** Takes a text out of `write(buffer, size, needed)`; asks again where it has grown in between. `status` gets what it returned. */
template <class Write>
std::string read_text(Write &&write, Status *status = nullptr) {
    std::string text;
    for (;;) {
        std::size_t needed = 0;
        const std::int32_t found = write(text.data(), text.size(), &needed);
        if (found == TLLM_ERR_BUFFER && needed > text.size()) {
            text.resize(needed);
            continue;
        }
        const Status state = check(found);
        if (status != nullptr) {
            *status = state;
        }
        text.resize(needed > 0 ? needed - 1 : 0);
        return text;
    }
}

/** Owns a handle. */
template <class Raw, std::int32_t (*Free)(Raw *)>
class Handle {
  public:
    Handle(const Handle &) = delete;
    Handle &operator=(const Handle &) = delete;
    Handle(Handle &&other) noexcept : raw_(std::exchange(other.raw_, nullptr)) {}
    Handle &operator=(Handle &&other) noexcept {
        if (this != &other) {
            static_cast<void>(Free(std::exchange(raw_, std::exchange(other.raw_, nullptr))));
        }
        return *this;
    }
    ~Handle() { static_cast<void>(Free(raw_)); }

    /** The handle for functions of trafficllm.h; it stays with this object. NULL after a move or free(). */
    Raw *get() const noexcept { return raw_; }

    /** Gives the handle away: free it with the function of trafficllm.h. */
    [[nodiscard]] Raw *release() noexcept { return std::exchange(raw_, nullptr); }

    /** Frees the handle now, and says what the destructor would not: Status::running if a call is just using it, an Error if it was freed
     *  already, by a function of trafficllm.h. */
    Status free() {
        return check(Free(std::exchange(raw_, nullptr)));
    }

  protected:
    explicit Handle(Raw *raw) noexcept : raw_(raw) {}

  private:
    Raw *raw_;
};

/** Walks over entries and gives views of them by value. `Step` is how many entries one view has. */
template <class View>
class Iterator {
  public:
    using iterator_category = std::input_iterator_tag;
    using value_type = View;
    using difference_type = std::ptrdiff_t;
    using pointer = const View *;
    using reference = View;

    Iterator(const tllm_verdict *entry, const tllm_verdict *end) noexcept : entry_(entry), end_(end) {}
    View operator*() const noexcept { return View::at(entry_, end_); }
    Iterator &operator++() noexcept {
        entry_ += View::entries_at(entry_, end_);
        return *this;
    }
    Iterator operator++(int) noexcept {
        Iterator before = *this;
        ++*this;
        return before;
    }
    friend bool operator==(const Iterator &one, const Iterator &other) noexcept { return one.entry_ == other.entry_; }
    friend bool operator!=(const Iterator &one, const Iterator &other) noexcept { return one.entry_ != other.entry_; }

  private:
    const tllm_verdict *entry_;
    const tllm_verdict *end_;
};

/** A callback on its way through C, and what it threw. */
template <class Function>
struct Call {
    Function *function;
    std::exception_ptr thrown;

    /** Calls it; 0 to go on. A callback that returns nothing always goes on; else its `false` ends the call. */
    template <class... Arguments>
    std::int32_t operator()(Arguments... arguments) noexcept {
        try {
            if constexpr (std::is_void_v<std::invoke_result_t<Function &, Arguments...>>) {
                std::invoke(*function, arguments...);
                return 0;
            } else {
                return std::invoke(*function, arguments...) ? 0 : 1;
            }
        } catch (...) {
            thrown = std::current_exception();
            return 1;
        }
    }

    void rethrow() const {
        if (thrown) {
            std::rethrow_exception(thrown);
        }
    }
};

}  // namespace detail

/** The version of the library that is loaded ("0.1.0"), static. */
inline const char *version() noexcept { return tllm_version(); }

/** Throws an Error where this processor or system cannot run the library, or the library has another ABI number than this header. */
inline void check_platform() {
    detail::require_library();
    detail::check(tllm_check_platform());
}

/** One task's verdict: a view. */
class Verdict {
  public:
    explicit Verdict(const tllm_verdict *entry) noexcept : entry_(entry) {}

    /** Status::ok or Status::abstained; else why there is no verdict (also error_worker), with empty names. */
    Status status() const noexcept { return static_cast<Status>(entry_->status); }
    /** Whether the score is below the task's threshold: the model does not know. */
    bool abstained() const noexcept { return entry_->status == TLLM_ABSTAINED; }
    /** Name of the task. */
    std::string_view task() const noexcept { return entry_->task_name; }
    /** The best label, also of a verdict that abstains. */
    std::string_view label() const noexcept { return entry_->label_name; }
    /** The calibrated probability of the label, 0 to 1. */
    float score() const noexcept { return entry_->score; }
    /** Why, in words of the head whose verdict it is; empty for the model's tasks. */
    std::string_view evidence() const noexcept { return entry_->evidence; }
    /** Why a head has no verdict; empty else. */
    std::string_view reason() const noexcept { return entry_->reason; }
    /** All of it. */
    const tllm_verdict &raw() const noexcept { return *entry_; }

  private:
    friend class detail::Iterator<Verdict>;
    static Verdict at(const tllm_verdict *entry, const tllm_verdict *) noexcept { return Verdict(entry); }
    static std::ptrdiff_t entries_at(const tllm_verdict *, const tllm_verdict *) noexcept { return 1; }

    const tllm_verdict *entry_;
};

/** The verdicts on one flow or request, one for each task that applies, in the model's order: a view. It is never empty. */
class Answer {
  public:
    Answer(const tllm_verdict *entries, std::size_t size) noexcept : entries_(entries), size_(size) {}

    /** What the host called the flow when it submitted it; of classify() its index. */
    std::uint64_t id() const noexcept { return entries_->id; }
    /** Status::ok, or Status::abstained, if there are verdicts (this is the first one's); else why there are none. */
    Status status() const noexcept { return static_cast<Status>(entries_->status); }
    /** Number of the model that judged, as tllm_counters.generation counts them. */
    std::uint64_t generation() const noexcept { return entries_->generation; }
    /** Identity of the model that judged. */
    std::string_view model_id() const noexcept { return entries_->model_id; }
    /** Time from submission to the end of the batch. */
    std::chrono::microseconds latency() const noexcept {
        return std::chrono::microseconds(static_cast<std::chrono::microseconds::rep>(entries_->latency_us));
    }
    /** Entries. */
    std::size_t size() const noexcept { return size_; }
    /** The entry of that number, which is less than size(). */
    Verdict operator[](std::size_t index) const noexcept { return Verdict(entries_ + index); }
    /** The verdict of the task of that name, if it is there. */
    std::optional<Verdict> find(std::string_view task) const noexcept {
        for (const Verdict verdict : *this) {
            if (verdict.task() == task) {
                return verdict;
            }
        }
        return std::nullopt;
    }
    /** A JSON array of the verdicts, as tllm_verdicts_json writes it. */
    std::string json() const {
        return detail::read_text([this](char *buffer, std::size_t size, std::size_t *needed) {
            return tllm_verdicts_json(entries_, sizeof(tllm_verdict), size_, buffer, size, needed);
        });
    }
    /** The entries, size() of them. */
    const tllm_verdict *data() const noexcept { return entries_; }
    detail::Iterator<Verdict> begin() const noexcept { return {entries_, entries_ + size_}; }
    detail::Iterator<Verdict> end() const noexcept { return {entries_ + size_, entries_ + size_}; }

  private:
    friend class detail::Iterator<Answer>;
    static std::ptrdiff_t entries_at(const tllm_verdict *entry, const tllm_verdict *end) noexcept {
        const std::ptrdiff_t left = end - entry;
        return entry->entries == 0 ? 1 : static_cast<std::ptrdiff_t>(entry->entries) < left ? entry->entries : left;
    }
    static Answer at(const tllm_verdict *entry, const tllm_verdict *end) noexcept {
        return {entry, static_cast<std::size_t>(entries_at(entry, end))};
    }

    const tllm_verdict *entries_;
    std::size_t size_;
};

/** Room for answers, to be used again and again; a range of Answer. Filling it again ends the views of what was in it. */
class Answers {
  public:
    /** Room for `entries` verdicts; it grows where one answer needs more. */
    explicit Answers(std::size_t entries = 256) : entries_(entries > 0 ? entries : 1), count_(0) {}

    /** Whether there is no answer. */
    bool empty() const noexcept { return count_ == 0; }
    detail::Iterator<Answer> begin() const noexcept { return {entries_.data(), entries_.data() + count_}; }
    detail::Iterator<Answer> end() const noexcept { return {entries_.data() + count_, entries_.data() + count_}; }

  private:
    friend class Session;

    /** Fills it by `take(verdicts, capacity, count)`, with more room as long as the library asks for it. */
    template <class Take>
    Status fill(Take &&take) {
        for (;;) {
            count_ = 0;
            std::size_t count = 0;
            const std::int32_t status = take(entries_.data(), entries_.size(), &count);
            if (status == TLLM_ERR_BUFFER && entries_.size() < entries_max) {
                entries_.resize(entries_.size() * 2);
                continue;
            }
            const Status state = detail::check(status);
            count_ = count;
            return state;
        }
    }

    static constexpr std::size_t entries_max = std::size_t(1) << 24;

    std::vector<tllm_verdict> entries_;
    std::size_t count_;
};

/** What verdicts of a file are about: a view. */
class Subject {
  public:
    explicit Subject(const tllm_subject *subject) noexcept : subject_(subject) {}

    /** Whether it is a line of a requests file; else it is a flow. */
    bool is_request() const noexcept { return subject_->kind == TLLM_SUBJECT_REQUEST; }
    /** All of it. */
    const tllm_subject &raw() const noexcept { return *subject_; }
    /** The JSON object that `trafficllm detect --format json` writes; `capture` is the name that stands in it, if there is one. */
    std::string json(const Answer &answer, const std::optional<std::string> &capture = std::nullopt) const {
        const char *name = capture ? detail::c_text(*capture) : nullptr;
        return detail::read_text([&](char *buffer, std::size_t size, std::size_t *needed) {
            return tllm_subject_json(name, subject_, sizeof(tllm_subject), answer.data(), sizeof(tllm_verdict), answer.size(), buffer,
                                     size, needed);
        });
    }

  private:
    const tllm_subject *subject_;
};

/** Settings by key. One thread at a time; not used any more by what was made with it. */
class Config : public detail::Handle<tllm_config, tllm_config_free> {
  public:
    /** Every key at its default. */
    Config() : Handle(make()) {}

    /** Sets a key; gives this back, so that calls can be chained. */
    Config &set(const std::string &key, const std::string &value) {
        detail::check(tllm_config_set(get(), detail::c_text(key), detail::c_text(value)));
        return *this;
    }
    /** Sets a key of kind "integer". */
    Config &set(const std::string &key, std::uint64_t value) { return set(key, std::to_string(value)); }
    /** The value of a key. */
    std::string value(const std::string &key) const {
        return detail::read_text([&](char *buffer, std::size_t size, std::size_t *needed) {
            return tllm_config_get(get(), detail::c_text(key), buffer, size, needed);
        });
    }
    /** What keys there are. */
    static std::vector<tllm_option> options() {
        detail::require_library();
        std::vector<tllm_option> options;
        tllm_option option{};
        while (detail::check(tllm_config_option(options.size(), &option, sizeof option)) != Status::end) {
            options.push_back(option);
        }
        return options;
    }

  private:
    static tllm_config *make() {
        detail::require_library();
        tllm_config *config = nullptr;
        detail::check(tllm_config_new(&config));
        return config;
    }
};

/** A model: opened, verified, self-tested, never changed. Any number of threads and engines use it at the same time. */
class Model : public detail::Handle<tllm_model, tllm_model_free> {
  public:
    /** Takes a handle over from the functions of trafficllm.h. */
    explicit Model(tllm_model *model) noexcept : Handle(model) {}

    /** Opens the bundle at `path`, a directory or a packed file. Of `config` only "model.cpu" is used. */
    static Model open(const std::string &path, const Config *config = nullptr) {
        detail::require_library();
        tllm_model *model = nullptr;
        detail::check(tllm_model_open(detail::c_text(path), raw(config), &model));
        return Model(model);
    }
    /** Opens the bundle that is compiled in. */
    static Model open_default(const Config *config = nullptr) {
        detail::require_library();
        tllm_model *model = nullptr;
        detail::check(tllm_model_open_default(raw(config), &model));
        return Model(model);
    }
    /** Opens a packed bundle from `size` bytes at `data`, which are copied. */
    static Model open_memory(const std::uint8_t *data, std::size_t size, const Config *config = nullptr) {
        detail::require_library();
        tllm_model *model = nullptr;
        detail::check(tllm_model_open_memory(data, size, raw(config), &model));
        return Model(model);
    }
    /** Checks a bundle as open() does, and keeps nothing of it. */
    static void verify(const std::string &path, const Config *config = nullptr) {
        detail::require_library();
        detail::check(tllm_model_verify(detail::c_text(path), raw(config)));
    }

    /** What it is. */
    tllm_model_info info() const {
        tllm_model_info info{};
        detail::check(tllm_model_describe(get(), &info, sizeof info));
        return info;
    }
    /** Its manifest, a JSON object. */
    std::string manifest() const {
        return detail::read_text([this](char *buffer, std::size_t size, std::size_t *needed) {
            return tllm_model_manifest(get(), buffer, size, needed);
        });
    }
    /** Its tasks, in the order in which verdicts come. */
    std::vector<tllm_task_info> tasks() const {
        std::vector<tllm_task_info> tasks;
        tllm_task_info task{};
        while (detail::check(tllm_model_task(get(), tasks.size(), &task, sizeof task)) != Status::end) {
            tasks.push_back(task);
        }
        return tasks;
    }
    /** The labels of the task with that number. */
    std::vector<std::string> labels(std::size_t task) const {
        std::vector<std::string> labels;
        for (;;) {
            Status status = Status::ok;
            std::string label = detail::read_text(
                [&](char *buffer, std::size_t size, std::size_t *needed) {
                    return tllm_model_label(get(), task, labels.size(), buffer, size, needed);
                },
                &status);
            if (status == Status::end) {
                return labels;
            }
            labels.push_back(std::move(label));
        }
    }

  private:
    static const tllm_config *raw(const Config *config) noexcept { return config != nullptr ? config->get() : nullptr; }
};

/** An engine: a model at work. Any number of threads use it at the same time. */
class Engine : public detail::Handle<tllm_engine, tllm_engine_free> {
  public:
    /** Checks the settings and takes the memory; starts no thread. The destructor stops it, with "engine.stop_timeout_us" for what waits. */
    explicit Engine(const Model &model, const Config *config = nullptr) : Handle(make(model, config)) {}

    /** Starts the workers, in this process: after the host has forked. */
    void start() { detail::check(tllm_engine_start(get())); }
    /** Takes no more flows, gives the workers that time for those that wait, and ends them. Status::ok, abandoned or running. */
    Status stop(std::chrono::microseconds timeout) { return detail::check(tllm_engine_stop(get(), detail::microseconds(timeout))); }
    /** Changes the model while the engine works; on an Error the model before goes on. Call it beside the packet path. */
    void activate(const std::string &path) { detail::check(tllm_engine_activate(get(), detail::c_text(path))); }
    /** The same with a model that is open already. */
    void activate(const Model &model) { detail::check(tllm_engine_activate_model(get(), model.get())); }
    /** Replaces the heads by those that the "heads." keys name and those of the bundle; on an Error those before go on. */
    void activate_heads(const Config &config) { detail::check(tllm_engine_activate_heads(get(), config.get())); }
    /** Switches a head on, with no fault held against it, or off. */
    void enable_head(const std::string &name, bool enabled = true) {
        detail::check(tllm_engine_head_enable(get(), detail::c_text(name), enabled ? 1 : 0));
    }
    /** The head with this number, if there are so many. */
    std::optional<tllm_head> head(std::size_t index) const {
        tllm_head head{};
        const Status status = detail::check(tllm_engine_head(get(), index, &head, sizeof head));
        return status == Status::ok ? std::optional<tllm_head>(head) : std::nullopt;
    }
    /** The active model. */
    Model model() const {
        tllm_model *model = nullptr;
        detail::check(tllm_engine_model(get(), &model));
        return Model(model);
    }
    /** What became of the flows. */
    tllm_counters counters() const {
        tllm_counters counters{};
        detail::check(tllm_engine_counters(get(), &counters, sizeof counters));
        return counters;
    }
    /** How long verdicts took. */
    tllm_latency latency() const {
        tllm_latency latency{};
        detail::check(tllm_engine_latency(get(), &latency, sizeof latency));
        return latency;
    }
    /** What it holds in memory, in bytes. */
    tllm_memory memory() const {
        tllm_memory memory{};
        detail::check(tllm_engine_memory(get(), &memory, sizeof memory));
        return memory;
    }
    /** Counters, memory and latencies in Prometheus' text format. */
    std::string metrics() const {
        return detail::read_text([this](char *buffer, std::size_t size, std::size_t *needed) {
            return tllm_engine_metrics(get(), buffer, size, needed);
        });
    }
    /** What runs the model: the device's number and name, or "cpu" with the reason why it is no device, where one was asked for. */
    std::string device() const {
        return detail::read_text([this](char *buffer, std::size_t size, std::size_t *needed) {
            return tllm_engine_device(get(), buffer, size, needed);
        });
    }
    /** Judges all that waits on this thread, in an engine with "engine.workers" 0; gives the number of flows. */
    std::size_t run_pending() {
        std::size_t judged = 0;
        detail::check(tllm_engine_run_pending(get(), &judged));
        return judged;
    }
    /**
     * Reads a capture or requests file to its end and gives every flow or line to `take(Subject, Answer)`, on this thread. `take` returns
     * nothing, or false to end it: then Status::cancelled is returned. `report` may be null; it is filled also where the file could not be
     * read to its end, which is an Error with Status::error_capture.
     */
    template <class Function>
    Status detect(const std::string &path, Function &&take, tllm_capture_report *report = nullptr) const {
        using Call = detail::Call<std::remove_reference_t<Function>>;
        Call call{std::addressof(take), nullptr};
        const tllm_subject_callback callback = [](void *user, const tllm_subject *subject, const tllm_verdict *verdicts,
                                                  std::size_t count) -> std::int32_t {
            return (*static_cast<Call *>(user))(Subject(subject), Answer(verdicts, count));
        };
        const std::int32_t status =
            tllm_capture_detect(get(), detail::c_text(path), sizeof(tllm_subject), sizeof(tllm_verdict), callback, &call, report,
                                report != nullptr ? sizeof *report : 0);
        call.rethrow();
        return detail::check(status);
    }

  private:
    static tllm_engine *make(const Model &model, const Config *config) {
        tllm_engine *engine = nullptr;
        detail::check(tllm_engine_new(model.get(), config != nullptr ? config->get() : nullptr, &engine));
        return engine;
    }
};

/** What is known of a flow before its first packet: tllm_flow_info, prepared. Set what you know. */
struct FlowInfo : tllm_flow_info {
    /** `ip_protocol` is the IP protocol number: 6 TCP, 17 UDP. */
    explicit FlowInfo(std::uint8_t ip_protocol) : tllm_flow_info{} {
        detail::check(tllm_flow_info_init(this, sizeof(tllm_flow_info)));
        protocol = ip_protocol;
    }
};

/** One packet: tllm_packet, prepared. Use it again and again. */
struct Packet : tllm_packet {
    Packet() : tllm_packet{} { detail::check(tllm_packet_init(this, sizeof(tllm_packet))); }
};

static_assert(sizeof(FlowInfo) == sizeof(tllm_flow_info) && sizeof(Packet) == sizeof(tllm_packet), "they are the structs of the ABI");

/** One flow: a bounded record of its first packets. One thread at a time; any thread may destroy it. */
class Flow : public detail::Handle<tllm_flow, tllm_flow_free> {
  public:
    /** A flow without packets, that keeps as much as the engine's settings say. */
    Flow(const Engine &engine, const tllm_flow_info &info) : Handle(make(engine, info)) {}

    /** Adds a packet. Status::flow_full once it keeps no more: it need not be fed any more. */
    Status feed(const tllm_packet &packet) { return detail::check(tllm_flow_feed(get(), &packet)); }
    /** Empties it for another connection; verdicts on the old one that are under way are dropped. */
    void reset(const tllm_flow_info &info) { detail::check(tllm_flow_reset(get(), &info)); }
    /** What it has seen, and what was lost of it. */
    tllm_flow_stats stats() const {
        tllm_flow_stats stats{};
        detail::check(tllm_flow_describe(get(), &stats, sizeof stats));
        return stats;
    }

  private:
    static tllm_flow *make(const Engine &engine, const tllm_flow_info &info) {
        tllm_flow *flow = nullptr;
        detail::check(tllm_flow_new(engine.get(), &info, &flow));
        return flow;
    }
};

/** A thread's way into an engine. One thread at a time; any number of sessions share an engine. */
class Session : public detail::Handle<tllm_session, tllm_session_free> {
  public:
    explicit Session(const Engine &engine) : Handle(make(engine)) {}

    /** Puts a flow, as far as it has come, into the queue. Never waits. Status::ok, need_more or queue_full. */
    [[nodiscard]] Status submit(const Flow &flow, std::uint64_t id) { return detail::check(tllm_session_submit(get(), flow.get(), id)); }
    /** As submit(), for a flow at its end: the verdicts come also when the flow is gone. */
    [[nodiscard]] Status submit_last(const Flow &flow, std::uint64_t id) {
        return detail::check(tllm_session_submit_last(get(), flow.get(), id));
    }
    /** Puts an HTTP request of `size` bytes into the queue. */
    [[nodiscard]] Status submit_request(const std::uint8_t *request, std::size_t size, std::uint64_t id) {
        return detail::check(tllm_session_submit_request(get(), request, size, id));
    }
    /** The same with a text. */
    [[nodiscard]] Status submit_request(std::string_view request, std::uint64_t id) {
        return submit_request(bytes(request), request.size(), id);
    }
    /** Takes the answers that have come, as many as fit. Never waits. Whether there was one. */
    bool poll(Answers &answers) {
        return answers.fill([this](tllm_verdict *verdicts, std::size_t capacity, std::size_t *count) {
            return tllm_session_poll(get(), verdicts, sizeof(tllm_verdict), capacity, count);
        }) == Status::ok;
    }
    /** As poll(), but sleeps until there is an answer, the time is over, or nothing is under way. */
    bool wait(Answers &answers, std::chrono::microseconds timeout) {
        return answers.fill([this, timeout](tllm_verdict *verdicts, std::size_t capacity, std::size_t *count) {
            return tllm_session_wait(get(), detail::microseconds(timeout), verdicts, sizeof(tllm_verdict), capacity, count);
        }) == Status::ok;
    }
    /**
     * As wait(), but gives each answer to `take(Answer)`, on this thread; it returns nothing, or false to end it. Gives the number of
     * answers. In `take`, calls of this session are an Error with Status::error_busy.
     */
    template <class Function>
    std::size_t each(std::chrono::microseconds timeout, Function &&take) {
        using Call = detail::Call<std::remove_reference_t<Function>>;
        Call call{std::addressof(take), nullptr};
        std::size_t answers = 0;
        const tllm_verdict_callback callback = [](void *user, const tllm_verdict *verdicts, std::size_t count) -> std::int32_t {
            return (*static_cast<Call *>(user))(Answer(verdicts, count));
        };
        const std::int32_t status = tllm_session_each(get(), detail::microseconds(timeout), sizeof(tllm_verdict), callback, &call, &answers);
        call.rethrow();
        detail::check(status);
        return answers;
    }
    /** A file descriptor that is readable when answers have come, for poll(2) and epoll(7). It belongs to the session. */
    int descriptor() {
        std::int32_t descriptor = -1;
        detail::check(tllm_session_fd(get(), &descriptor));
        return descriptor;
    }
    /** Flows that are submitted, and their answers not taken. */
    std::size_t in_flight() const {
        std::size_t flows = 0;
        detail::check(tllm_session_in_flight(get(), &flows));
        return flows;
    }
    /** Judges one flow on this thread, started or not, without the queue. */
    void classify(const Flow &flow, Answers &answers) {
        const tllm_flow *raw = flow.get();
        classify(&raw, 1, answers);
    }
    /** Judges `count` flows on this thread; the answers come in their order, with their index as id. */
    void classify(const tllm_flow *const *flows, std::size_t count, Answers &answers) {
        answers.fill([&](tllm_verdict *verdicts, std::size_t capacity, std::size_t *entries) {
            return tllm_session_classify(get(), flows, count, verdicts, sizeof(tllm_verdict), capacity, entries);
        });
    }
    /** Judges one HTTP request on this thread. */
    void classify_request(std::string_view request, Answers &answers) {
        answers.fill([&](tllm_verdict *verdicts, std::size_t capacity, std::size_t *entries) {
            return tllm_session_classify_request(get(), bytes(request), request.size(), verdicts, sizeof(tllm_verdict), capacity, entries);
        });
    }

  private:
    static const std::uint8_t *bytes(std::string_view text) noexcept { return reinterpret_cast<const std::uint8_t *>(text.data()); }
    static tllm_session *make(const Engine &engine) {
        tllm_session *session = nullptr;
        detail::check(tllm_session_new(engine.get(), &session));
        return session;
    }
};

/** How much is logged. */
enum class LogLevel : std::int32_t {
    error = TLLM_LOG_ERROR,
    warn = TLLM_LOG_WARN,
    info = TLLM_LOG_INFO,
    debug = TLLM_LOG_DEBUG,
    trace = TLLM_LOG_TRACE,
};

/**
 * The library's messages as long as this object lives. There is one log in a process: have one Log at a time, and do not destroy it in its
 * own callback. The callback is called by any thread, by several at a time; the texts are valid until it returns. What it throws is dropped.
 */
class Log {
  public:
    using Callback = std::function<void(LogLevel level, std::string_view target, std::string_view message)>;

    Log(LogLevel level, Callback callback) : callback_(std::move(callback)) {
        detail::require_library();
        if (!callback_) {
            throw Error(Status::error_null, "a log needs a callback");
        }
        detail::check(tllm_log_set(take, &callback_, static_cast<std::int32_t>(level)));
    }
    Log(const Log &) = delete;
    Log &operator=(const Log &) = delete;
    ~Log() { static_cast<void>(tllm_log_set(nullptr, nullptr, TLLM_LOG_OFF)); }

  private:
    static void take(void *user, std::int32_t level, const char *target, const char *message) noexcept {
        try {
            (*static_cast<const Callback *>(user))(static_cast<LogLevel>(level), target, message);
        } catch (...) {
        }
    }

    Callback callback_;
};

}  // namespace trafficllm

#endif  /* TRAFFICLLM_HPP */
