/* libtrafficllm: verdicts of a language model on network flows, inline.
 *
 * Licence: MIT OR Apache-2.0. This file is made from ffi/src; change that instead.
 *
 * CONVENTIONS
 *
 * Results. A function that can fail returns an int32_t: 0 (TLLM_OK) is done, positive is a state that is no failure (nothing has come
 * yet, the queue is full), negative is an error. Numbers never change their meaning. tllm_status_string() has a text for each;
 * tllm_last_error() has this thread's last error in words: where, what was expected, what was found.
 *
 * Arguments. What goes in comes first, what comes out last. Results are written only if the status is not negative, unless a function
 * says otherwise. NULL is an error where it is not said to be allowed. A buffer is followed by its size; with size 0 the pointer is not
 * looked at. Texts that go in are UTF-8 with a NUL, at most 4,096 bytes. The lists of errors leave out what any call can meet:
 * TLLM_ERR_PANIC, and TLLM_ERR_ARGUMENT for a pointer that is not aligned. The library may change errno.
 *
 * Texts that come out are written with a NUL into `buffer` of `size` bytes. `needed` may be NULL; else it gets the bytes that the text
 * takes, in any case. If `size` is less, the buffer stays as it is and the status is TLLM_ERR_BUFFER: so ask with size 0, then again.
 *
 * Handles (tllm_model *, tllm_engine *, ...) are numbers that the library looks up, not addresses: never dereference or copy what is
 * behind them. A handle that was freed, one of another kind, and any other pointer are answered with TLLM_ERR_HANDLE, a second thread
 * in a config, flow or session with TLLM_ERR_BUSY: misuse is told, it does not crash. (Where pointers have 32 bits, a freed handle can
 * name a new thing of its kind after 4,096 others had its place.) What tllm_*_new or tllm_*_open gives is yours; free each once with the
 * tllm_*_free of its kind, in any order, on any thread. Freeing always succeeds: what a call of another thread, or the caller of this
 * callback, is using ends for everybody else at once, and goes when that call returns. Then the status is TLLM_RUNNING: that call ends
 * soon, and until it has, it can be in its callback.
 *
 * Structs that come out, or into a callback, have their size with them, sizeof as the program knows it; those that go in carry it, set
 * by their tllm_*_init. Fields called `reserved` are zero. So structs can grow without a new ABI number: programs of an older header see
 * the fields that they know, those of a newer one zero in the fields that the library does not know.
 *
 * Threads. Models and engines can be used by any number of threads at the same time; a config, a flow and a session by one at a time.
 * Opening a model and making an engine start no thread; tllm_engine_start does. Signals are blocked on the library's threads.
 * No function of the packet path (tllm_flow_*, tllm_session_submit*, tllm_session_poll) waits for another thread. Do not cancel a
 * thread that is in the library (pthread_cancel), nor jump out of it from a signal handler; no function may be called by one.
 *
 * Forks. A model, and an engine that was not started, can be used by a child. After tllm_engine_start the threads are in one process
 * only: in a child of it, calls on that engine, its sessions and tllm_flow_new answer TLLM_ERR_FORKED, freeing works, and nothing hangs.
 * Fork while no other thread of the host is in the library. A child made by vfork(), or by clone() with the memory shared, may call
 * nothing; one made by a bare clone() system call is not noticed.
 *
 * Lifetimes. An engine keeps its model, a session and a flow keep their engine. Verdicts hold their texts themselves. Texts that a
 * function returns as const char * are static. The library stays in memory after dlclose(); its threads end with
 * tllm_engine_stop or tllm_engine_free.
 *
 * Callbacks say on which thread they are called, how long their pointers are valid, and what they may call.
 *
 * Panics. A defect of the library is caught at the border: TLLM_ERR_PANIC. A config, flow or session that the call was using can then
 * only be freed; everything else goes on. A defect in a worker costs the flows of its batch (TLLM_ERR_WORKER), and the worker goes on.
 *
 * Silence. The library writes to neither standard output nor standard error; it logs to tllm_log_set's callback.
 *
 * Limits. Texts 4,096 bytes; 4,096 configs, models and sessions, 1,024 engines, 4,194,304 flows (65,536 where pointers have 32 bits) at a
 * time; of one engine 1,024 sessions and "engine.flows_max" flows. Further limits are those of the keys that tllm_config_option lists.
 * At a limit: TLLM_ERR_LIMIT. Models, buffers, queue, sessions and flows of an engine take at most "engine.memory_bytes_max" together,
 * where that is set: TLLM_ERR_BUDGET.
 *
 * Begin with: if (tllm_abi_version() != TLLM_ABI_VERSION) refuse the library.
 */

#ifndef TRAFFICLLM_H
#define TRAFFICLLM_H

#include <stddef.h>
#include <stdint.h>

/**
 * Done.
 */
#define TLLM_OK 0

/**
 * Nothing has come yet: ask again later.
 */
#define TLLM_PENDING 1

/**
 * The flow has fewer packets than `flow.min_packets` asks for. Nothing was submitted.
 */
#define TLLM_NEED_MORE 2

/**
 * The verdict's score is below its threshold: the model does not know. The best label is named all the same.
 */
#define TLLM_ABSTAINED 3

/**
 * The queue is full: the flow was shed, and is counted so.
 */
#define TLLM_QUEUE_FULL 4

/**
 * The flow's deadline passed before its turn came.
 */
#define TLLM_EXPIRED 5

/**
 * The engine was stopped before the turn of these flows came.
 */
#define TLLM_ABANDONED 6

/**
 * The flow keeps no more packets: later ones are counted only, and cannot change its verdict.
 */
#define TLLM_FLOW_FULL 7

/**
 * The time is over and workers of the engine still run their last batch; or what was freed is in use by a call, and goes when that
 * returns.
 */
#define TLLM_RUNNING 8

/**
 * The callback ended it.
 */
#define TLLM_CANCELLED 9

/**
 * There is no entry of this number: the end of a list.
 */
#define TLLM_END 10

/**
 * None of the chosen tasks can judge this flow or request.
 */
#define TLLM_NOT_APPLICABLE 11

/**
 * A pointer that must not be NULL is NULL.
 */
#define TLLM_ERR_NULL -1

/**
 * An argument or a field has a value that is not allowed.
 */
#define TLLM_ERR_ARGUMENT -2

/**
 * Not a live handle of this kind: freed before, of another kind, or never one.
 */
#define TLLM_ERR_HANDLE -3

/**
 * The session, flow or config is in use by another thread, or by the callback that this call comes from.
 */
#define TLLM_ERR_BUSY -4

/**
 * The buffer is too small; what is needed was written.
 */
#define TLLM_ERR_BUFFER -5

/**
 * No configuration key of this name.
 */
#define TLLM_ERR_KEY -6

/**
 * A configuration value that its key does not allow.
 */
#define TLLM_ERR_VALUE -7

/**
 * The system could not read or give something.
 */
#define TLLM_ERR_IO -8

/**
 * The bundle is broken, or does not fit to its use.
 */
#define TLLM_ERR_MODEL -9

/**
 * This processor or system cannot run the library.
 */
#define TLLM_ERR_PLATFORM -10

/**
 * The system gave no memory.
 */
#define TLLM_ERR_MEMORY -11

/**
 * More than `engine.memory_bytes_max` would be needed.
 */
#define TLLM_ERR_BUDGET -12

/**
 * A limit on the number of things is reached.
 */
#define TLLM_ERR_LIMIT -13

/**
 * The system gave no thread.
 */
#define TLLM_ERR_THREAD -14

/**
 * The engine was stopped.
 */
#define TLLM_ERR_STOPPED -15

/**
 * The process was forked after the engine was started: its threads are not in this process.
 */
#define TLLM_ERR_FORKED -16

/**
 * A defect of the library, caught at the border. The session, flow or config of the call cannot be used any more.
 */
#define TLLM_ERR_PANIC -17

/**
 * The flow was lost to a defect in the model or in a worker; the engine goes on.
 */
#define TLLM_ERR_WORKER -18

/**
 * The text does not start like an HTTP request.
 */
#define TLLM_ERR_REQUEST -19

/**
 * The capture could not be read to its end; what was read is reported.
 */
#define TLLM_ERR_CAPTURE -20

/**
 * `struct_size` is too small or too large, or a reserved byte is not zero: the struct was not initialised by its function.
 */
#define TLLM_ERR_STRUCT -21

/**
 * A text is longer than the border takes, or not UTF-8.
 */
#define TLLM_ERR_TEXT -22

/**
 * No task of this name or number in the model.
 */
#define TLLM_ERR_TASK -23

/**
 * The library was built without this part.
 */
#define TLLM_ERR_UNSUPPORTED -24

/**
 * The engine has workers and was not started: nobody would judge.
 */
#define TLLM_ERR_NOT_STARTED -25

/**
 * The device that "engine.device" names cannot be used; the text says what is missing.
 */
#define TLLM_ERR_DEVICE -26

/**
 * Number of the ABI, raised by hand when something that a program was compiled against changes. A host compares it with
 * tllm_abi_version() before anything else.
 */
#define TLLM_ABI_VERSION 0

/**
 * First number of the version that this header belongs to.
 */
#define TLLM_VERSION_MAJOR 0

/**
 * Second number of the version that this header belongs to.
 */
#define TLLM_VERSION_MINOR 1

/**
 * Third number of the version that this header belongs to.
 */
#define TLLM_VERSION_PATCH 0

/**
 * No messages.
 */
#define TLLM_LOG_OFF 0

/**
 * Something was lost or failed.
 */
#define TLLM_LOG_ERROR 1

/**
 * Something that should be looked at.
 */
#define TLLM_LOG_WARN 2

/**
 * What happens seldom: a model was activated, an engine stopped.
 */
#define TLLM_LOG_INFO 3

/**
 * For those who look for a fault.
 */
#define TLLM_LOG_DEBUG 4

/**
 * Everything.
 */
#define TLLM_LOG_TRACE 5

/**
 * Bytes of a task's name with its NUL: no bundle has a longer one.
 */
#define TLLM_TASK_BYTES 64

/**
 * Bytes of a label with its NUL: no bundle has a longer one.
 */
#define TLLM_LABEL_BYTES 128

/**
 * Bytes of a model's identity with its NUL: 16 hexadecimal digits.
 */
#define TLLM_MODEL_ID_BYTES 24

/**
 * A task of this kind judges flows.
 */
#define TLLM_TASK_FLOW 1

/**
 * A task of this kind judges HTTP requests, and flows that begin with one.
 */
#define TLLM_TASK_REQUEST 2

/**
 * The packet was sent by the side that sent the flow's first packet.
 */
#define TLLM_FROM_INITIATOR 0

/**
 * The packet was sent by the other side.
 */
#define TLLM_FROM_RESPONDER 1

/**
 * Room for the reason of a head that has no verdict, with its NUL.
 */
#define TLLM_REASON_BYTES 16

/**
 * Room for the evidence of a head's verdict, with its NUL.
 */
#define TLLM_EVIDENCE_BYTES 248

/**
 * Most entries of one answer: no bundle has more tasks. Room for so many is enough for any answer of any model.
 */
#define TLLM_ANSWER_ENTRIES_MAX 64

/**
 * The subject is a flow of a capture.
 */
#define TLLM_SUBJECT_FLOW 1

/**
 * The subject is a line of a requests file.
 */
#define TLLM_SUBJECT_REQUEST 2

/**
 * Settings for models and engines. One thread at a time; not used any more by what was made with it.
 */
typedef struct tllm_config tllm_config;

/**
 * An engine: a model at work. Any number of threads use it at the same time. Sessions, flows and calls under way keep what they use
 * of it alive after its handle is freed.
 */
typedef struct tllm_engine tllm_engine;

/**
 * One flow: a bounded record of its first packets. One thread at a time; any thread may free it. It needs no session.
 */
typedef struct tllm_flow tllm_flow;

/**
 * A model: opened, verified, self-tested, never changed. Any number of threads and engines use it at the same time; what was made
 * with it keeps it alive after its handle is freed.
 */
typedef struct tllm_model tllm_model;

/**
 * A thread's way into an engine: submits flows, takes answers. One thread at a time, which is checked; any number of sessions share an
 * engine.
 */
typedef struct tllm_session tllm_session;

/**
 * Takes a message. `level` is one of TLLM_LOG_*; `target` names the part of the library; both texts are UTF-8 and
 * belong to the library, which may use them again as soon as the callback returns.
 *
 * It is called by any thread that is in the library, workers included, by several at a time. It may call every function of
 * the library but tllm_log_set, which answers TLLM_ERR_BUSY. It must not throw or jump out, and should not wait: the thread that
 * logs waits for it.
 */
typedef void (*tllm_log_callback)(void *user, int32_t level, const char *target, const char *message);

/**
 * What a configuration key is. The texts are static.
 */
typedef struct tllm_option {
    /**
     * The key, as tllm_config_set takes it.
     */
    const char *key;
    /**
     * What its value is made of: "integer", "list" (names with commas between them) or "text".
     */
    const char *kind;
    /**
     * What is counted; empty for lists and texts.
     */
    const char *unit;
    /**
     * What it is for, in one sentence.
     */
    const char *help;
    /**
     * Its value unless set, as text.
     */
    const char *default_value;
    /**
     * Smallest integer.
     */
    uint64_t minimum;
    /**
     * Largest integer.
     */
    uint64_t maximum;
    /**
     * Zero.
     */
    uint64_t reserved[2];
} tllm_option;

/**
 * What a model is.
 */
typedef struct tllm_model_info {
    /**
     * Identity of the bundle: depends on every byte of it.
     */
    char id[TLLM_MODEL_ID_BYTES];
    /**
     * Profile that makes tokens of flows ("clean"), with the switches that are not at their default ("clean+ports").
     */
    char profile[64];
    /**
     * Level of the processor's instructions that runs it ("avx512vnni").
     */
    char level[16];
    /**
     * Bytes of weights and adapters in memory, shared by all engines.
     */
    uint64_t memory_bytes;
    /**
     * Tasks.
     */
    uint32_t tasks;
    /**
     * Most tokens of one flow.
     */
    uint32_t tokens_max;
    /**
     * Zero.
     */
    uint64_t reserved[4];
} tllm_model_info;

/**
 * What a task of a model is.
 */
typedef struct tllm_task_info {
    /**
     * Its name.
     */
    char name[TLLM_TASK_BYTES];
    /**
     * TLLM_TASK_FLOW or TLLM_TASK_REQUEST.
     */
    uint32_t kind;
    /**
     * Its labels.
     */
    uint32_t labels;
    /**
     * A verdict with a score below this abstains; 0 to 1.
     */
    float threshold;
    /**
     * Zero.
     */
    uint32_t reserved0;
    /**
     * Zero.
     */
    uint64_t reserved[2];
} tllm_task_info;

/**
 * What became of the flows and requests that were submitted or classified. Each number only grows, but for `in_flight` and
 * `waiting`: submitted = done + shed + expired + abandoned + failed + in_flight.
 */
typedef struct tllm_counters {
    /**
     * Offered, those included that were shed.
     */
    uint64_t submitted;
    /**
     * Judged, and the verdicts taken by the host.
     */
    uint64_t done;
    /**
     * Refused because the queue was full.
     */
    uint64_t shed;
    /**
     * Not judged because the deadline had passed.
     */
    uint64_t expired;
    /**
     * Never answered: the flow, the session or the engine was gone before.
     */
    uint64_t abandoned;
    /**
     * Lost to a defect in the model or in a worker.
     */
    uint64_t failed;
    /**
     * Under way, or with an answer that is not taken yet.
     */
    uint64_t in_flight;
    /**
     * Waiting in the queue for a worker.
     */
    uint64_t waiting;
    /**
     * Number of the active model: 1 for the first, one more with each activation.
     */
    uint64_t generation;
    /**
     * Models that were activated after the first.
     */
    uint64_t activations;
    /**
     * Activations that were refused; the model before went on.
     */
    uint64_t activations_failed;
    /**
     * Batches that were run.
     */
    uint64_t batches;
    /**
     * Batches that ended in a defect, which was caught.
     */
    uint64_t worker_panics;
    /**
     * Live flow handles of the engine.
     */
    uint64_t flows;
    /**
     * Packets of the flows that were freed; so are the three that follow.
     */
    uint64_t packets;
    /**
     * Packets that were counted only, because their flow kept no more.
     */
    uint64_t packets_beyond_limit;
    /**
     * Payload bytes of kept packets that found no room.
     */
    uint64_t payload_bytes_cut;
    /**
     * Packets whose time was before that of the packet before.
     */
    uint64_t time_backwards;
    /**
     * Batches that a device ran.
     */
    uint64_t device_batches;
    /**
     * Batches that a device could not run: the processor ran them.
     */
    uint64_t device_failures;
    /**
     * Zero.
     */
    uint64_t reserved[2];
} tllm_counters;

/**
 * How long flows and requests took from submission to their verdicts, since the engine was made.
 */
typedef struct tllm_latency {
    /**
     * Flows and requests judged.
     */
    uint64_t count;
    /**
     * Sum of their times in microseconds.
     */
    uint64_t sum_us;
    /**
     * Half of them took at most so many microseconds. This and what follows is read off the histogram that tllm_engine_metrics
     * writes: right to within its steps, and at most 10 seconds.
     */
    uint64_t median_us;
    /**
     * Nine of ten took at most so many microseconds.
     */
    uint64_t p90_us;
    /**
     * 99 of a hundred took at most so many microseconds.
     */
    uint64_t p99_us;
    /**
     * Zero.
     */
    uint64_t reserved[4];
} tllm_latency;

/**
 * What an engine holds in memory, in bytes. The sum of the fields but `device_bytes` is what "engine.memory_bytes_max" limits.
 */
typedef struct tllm_memory {
    /**
     * Weights and adapters of the active model; shared by all engines.
     */
    uint64_t model_bytes;
    /**
     * The same of models that were replaced and have flows to finish.
     */
    uint64_t retired_bytes;
    /**
     * Buffers of the workers.
     */
    uint64_t worker_bytes;
    /**
     * Buffers of the sessions that judge synchronously, and heads of detections.
     */
    uint64_t classifier_bytes;
    /**
     * The queue, and what the sessions have reserved.
     */
    uint64_t queue_bytes;
    /**
     * The most that the live flows of the engine can take.
     */
    uint64_t flow_bytes;
    /**
     * Code of WebAssembly heads, and all that their memory can grow to, without that on the sessions that judge synchronously.
     */
    uint64_t head_bytes;
    /**
     * Memory of the device: models and buffers. "engine.device_memory_bytes_max" limits it.
     */
    uint64_t device_bytes;
    /**
     * Zero.
     */
    uint64_t reserved[2];
} tllm_memory;

/**
 * A head at work, and what it did since it was loaded: where heads are replaced, all numbers begin at 0 again, and where the model is
 * replaced, those of its bundle's heads do.
 */
typedef struct tllm_head {
    /**
     * Its name: `task_name` of its verdicts.
     */
    char name[TLLM_TASK_BYTES];
    /**
     * Its own version.
     */
    char version[TLLM_TASK_BYTES];
    /**
     * The task whose hidden state it is given; empty where it asks for none.
     */
    char source_task[TLLM_TASK_BYTES];
    /**
     * 1 if it is asked; 0 if it was switched off.
     */
    uint32_t enabled;
    /**
     * 1 if it keeps what it knows from flow to flow.
     */
    uint32_t stateful;
    /**
     * Labels.
     */
    uint32_t labels;
    /**
     * Zero.
     */
    uint32_t reserved0;
    /**
     * Verdicts, those included in which it abstained.
     */
    uint64_t verdicts;
    /**
     * Verdicts in which it abstained itself.
     */
    uint64_t abstained;
    /**
     * Calls that ended in a fault.
     */
    uint64_t faults;
    /**
     * How often it was switched off because of them.
     */
    uint64_t switched_off;
    /**
     * Flows without a verdict of it, for whatever reason. tllm_engine_metrics has them by reason.
     */
    uint64_t without_verdict;
    /**
     * Lines that it logged and that were not kept.
     */
    uint64_t log_lines_lost;
    /**
     * 1 if it is of the bundle and could not be loaded: it has no verdicts then, for the reason "unavailable".
     */
    uint32_t missing;
    /**
     * Zero.
     */
    uint32_t reserved1;
    /**
     * Zero.
     */
    uint64_t reserved[2];
} tllm_head;

/**
 * What is known of a flow before its first packet. Prepare it with tllm_flow_info_init; only `protocol` has to be set.
 */
typedef struct tllm_flow_info {
    /**
     * sizeof(tllm_flow_info), set by tllm_flow_info_init.
     */
    uint32_t struct_size;
    /**
     * IP protocol number: 6 TCP, 17 UDP, 1 ICMP, 58 ICMPv6; any number is taken, 0 as well.
     */
    uint8_t protocol;
    /**
     * 4 or 6: what the addresses are; 0 if they are not told.
     */
    uint8_t ip_version;
    /**
     * Port of the side that sent the first packet, in host byte order; 0 where there is none. No model sees ports unless its
     * profile says so.
     */
    uint16_t initiator_port;
    /**
     * Port of the other side.
     */
    uint16_t responder_port;
    /**
     * Zero.
     */
    uint16_t reserved0;
    /**
     * Zero.
     */
    uint32_t reserved1;
    /**
     * Address of the side that sent the first packet, in network byte order; an IPv4 address in the first 4 bytes. No model sees it.
     */
    uint8_t initiator[16];
    /**
     * Address of the other side.
     */
    uint8_t responder[16];
    /**
     * Zero.
     */
    uint64_t reserved[2];
} tllm_flow_info;

/**
 * One packet. Prepare it once with tllm_packet_init and use it again and again.
 */
typedef struct tllm_packet {
    /**
     * sizeof(tllm_packet), set by tllm_packet_init.
     */
    uint32_t struct_size;
    /**
     * TLLM_FROM_INITIATOR or TLLM_FROM_RESPONDER.
     */
    uint8_t direction;
    /**
     * Byte 13 of the TCP header (RFC 9293 3.1); of no meaning for other protocols.
     */
    uint8_t tcp_flags;
    /**
     * Zero.
     */
    uint16_t reserved0;
    /**
     * Time in nanoseconds; from when on it is counted does not matter, only the gaps do.
     */
    uint64_t time_ns;
    /**
     * Length of the IP packet in bytes, as its header says.
     */
    uint32_t ip_bytes;
    /**
     * Length of the transport payload in bytes, as the headers say.
     */
    uint32_t payload_bytes;
    /**
     * The captured part of the payload; may be NULL if `payload_size` is 0. It is copied as far as it is kept.
     */
    const uint8_t *payload;
    /**
     * Bytes at `payload`, at most `payload_bytes`.
     */
    size_t payload_size;
    /**
     * Zero.
     */
    uint64_t reserved[2];
} tllm_packet;

/**
 * What a flow has seen and what was lost of it.
 */
typedef struct tllm_flow_stats {
    /**
     * Packets fed.
     */
    uint64_t packets;
    /**
     * Sum of their `ip_bytes`.
     */
    uint64_t bytes;
    /**
     * Packets that are kept: the model sees only these.
     */
    uint64_t packets_kept;
    /**
     * Payload bytes of kept packets that found no room.
     */
    uint64_t payload_bytes_cut;
    /**
     * Packets whose time was before that of the packet before.
     */
    uint64_t time_backwards;
    /**
     * Memory of the flow in bytes.
     */
    uint64_t memory_bytes;
    /**
     * Zero.
     */
    uint64_t reserved[2];
} tllm_flow_stats;

/**
 * One task's verdict on one flow or request. It holds its texts itself: it stays valid whatever is freed or activated.
 *
 * An answer is one such entry per task that applies, in the model's order, then one per head, one after the other. Where there is no verdict, an answer
 * is a single entry whose `status` says why, with empty names.
 */
typedef struct tllm_verdict {
    /**
     * TLLM_OK, TLLM_ABSTAINED, TLLM_NOT_APPLICABLE, TLLM_EXPIRED, TLLM_ABANDONED, TLLM_NEED_MORE or TLLM_ERR_WORKER.
     */
    int32_t status;
    /**
     * Number of the entry in its answer, from 0.
     */
    uint32_t position;
    /**
     * Entries of the answer, this one included.
     */
    uint32_t entries;
    /**
     * Index of the task in the model; heads count on behind its tasks.
     */
    uint32_t task;
    /**
     * Index of the label in the task.
     */
    uint32_t label;
    /**
     * The calibrated probability of the label, 0 to 1. Without a verdict 0.
     */
    float score;
    /**
     * What the host called the flow when it submitted it.
     */
    uint64_t id;
    /**
     * Number of the model that judged, as tllm_counters.generation counts them.
     */
    uint64_t generation;
    /**
     * Time from submission to the end of the batch, in microseconds.
     */
    uint64_t latency_us;
    /**
     * Name of the task.
     */
    char task_name[TLLM_TASK_BYTES];
    /**
     * The best label, also of a verdict that abstains.
     */
    char label_name[TLLM_LABEL_BYTES];
    /**
     * Identity of the model that judged.
     */
    char model_id[TLLM_MODEL_ID_BYTES];
    /**
     * Zero.
     */
    uint64_t reserved[2];
    /**
     * Why a head has no verdict, with the status TLLM_ABSTAINED: "fuel", "stack", "trap", "panic", "refused", "rubbish", "not_a_number",
     * "model", "unavailable", "too_large", "late", or "switched_off". Empty else.
     */
    char reason[TLLM_REASON_BYTES];
    /**
     * Why, in words of the head whose verdict it is; empty for the model's tasks.
     */
    char evidence[TLLM_EVIDENCE_BYTES];
} tllm_verdict;

/**
 * Takes one answer: `count` entries at `verdicts`, which are the library's and valid until the callback returns. They lie as far apart
 * as the `verdict_size` that was given. Another value than 0 ends the taking; this answer counts as taken.
 *
 * It is called on the thread that called the function it was given to. It may call every function of the library; those on the same
 * session answer TLLM_ERR_BUSY, but for tllm_session_free. It must not throw or jump out.
 */
typedef int32_t (*tllm_verdict_callback)(void *user, const struct tllm_verdict *verdicts, size_t count);

/**
 * What verdicts of a file are about.
 */
typedef struct tllm_subject {
    /**
     * TLLM_SUBJECT_FLOW or TLLM_SUBJECT_REQUEST.
     */
    uint32_t kind;
    /**
     * IP protocol number; of a request 0, as all that follows but `index`.
     */
    uint8_t protocol;
    /**
     * 4 or 6.
     */
    uint8_t ip_version;
    /**
     * Port of the side that sent the first packet.
     */
    uint16_t initiator_port;
    /**
     * Port of the other side.
     */
    uint16_t responder_port;
    /**
     * Zero.
     */
    uint16_t reserved0;
    /**
     * Zero.
     */
    uint32_t reserved1;
    /**
     * Number of the flow in its capture, in the order of first packets, or of the line in its file, from 0.
     */
    uint64_t index;
    /**
     * Time of the first packet in nanoseconds since the Unix epoch.
     */
    uint64_t start_ns;
    /**
     * Packets of the flow.
     */
    uint64_t packets;
    /**
     * Sum of their IP lengths in bytes.
     */
    uint64_t bytes;
    /**
     * Address of the side that sent the first packet, in network byte order; an IPv4 address in the first 4 bytes.
     */
    uint8_t initiator[16];
    /**
     * Address of the other side.
     */
    uint8_t responder[16];
    /**
     * Profile that made tokens of it.
     */
    char profile[64];
    /**
     * Identity of the model that judged.
     */
    char model_id[TLLM_MODEL_ID_BYTES];
    /**
     * Zero.
     */
    uint64_t reserved[2];
} tllm_subject;

/**
 * Takes the verdicts on one flow or request: `count` entries at `verdicts`, as far apart as the `verdict_size` that was given. Both
 * pointers are valid until the callback returns. Another value than 0 ends the reading.
 *
 * It is called on the thread that called tllm_capture_detect, in the order in which flows end. It may call every function of the
 * library. It must not throw or jump out.
 */
typedef int32_t (*tllm_subject_callback)(void *user,
                                         const struct tllm_subject *subject,
                                         const struct tllm_verdict *verdicts,
                                         size_t count);

/**
 * What was read of a file.
 */
typedef struct tllm_capture_report {
    /**
     * Packets read.
     */
    uint64_t packets;
    /**
     * Their captured bytes.
     */
    uint64_t packet_bytes;
    /**
     * Packets that became no part of a flow: not IP, broken, later fragments.
     */
    uint64_t packets_skipped;
    /**
     * Flows.
     */
    uint64_t flows;
    /**
     * Flows that were judged early because the table was full.
     */
    uint64_t flows_evicted;
    /**
     * Lines of a requests file.
     */
    uint64_t lines;
    /**
     * Lines that could not be used.
     */
    uint64_t bad_lines;
    /**
     * Verdicts, those that abstained included.
     */
    uint64_t verdicts;
    /**
     * Verdicts that abstained.
     */
    uint64_t abstained;
    /**
     * Zero.
     */
    uint64_t reserved[4];
} tllm_capture_report;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * A short text for any status, static and never NULL; "unknown status" for a number that is none.
 */
const char *tllm_status_string(int32_t status);

/**
 * The ABI number of the library that is loaded. Where it is not TLLM_ABI_VERSION, use nothing else of it.
 */
uint32_t tllm_abi_version(void);

/**
 * The version of the library that is loaded, as text ("0.1.0"); static.
 */
const char *tllm_version(void);

/**
 * The version of the library that is loaded as a number: major << 16 | minor << 8 | patch.
 */
uint32_t tllm_version_number(void);

/**
 * Whether this processor and system can run the library. It opens nothing and starts nothing.
 *
 * Errors: TLLM_ERR_PLATFORM (also where the environment variable TLLM_CPU names no level of this processor).
 */
int32_t tllm_check_platform(void);

/**
 * Status and text of the last error of the calling thread: where, what was expected, what was found. A call that succeeds
 * leaves it as it is.
 *
 * Returns the status of that error, TLLM_OK if there was none, TLLM_ERR_BUFFER if `size` is too small, TLLM_ERR_NULL for a NULL
 * `buffer` with a size; this function itself never changes what is kept. `needed` may be NULL; else it gets the bytes that
 * the text takes, with its NUL.
 */
int32_t tllm_last_error(char *buffer,
                        size_t size,
                        size_t *needed);

/**
 * Sends messages up to `level` (TLLM_LOG_*) to `callback`, with `user` handed on; NULL or TLLM_LOG_OFF ends it. When this returns, the
 * callback before is not running any more and will not be called again. Until the first call the library is silent.
 *
 * Errors: TLLM_ERR_ARGUMENT (no such level), TLLM_ERR_BUSY (called from a log callback, or one has not returned for
 * a second: the callback before stays).
 */
int32_t tllm_log_set(tllm_log_callback callback,
                     void *user,
                     int32_t level);

/**
 * Makes a config with every key at its default. Free it with tllm_config_free.
 *
 * Errors: TLLM_ERR_NULL, TLLM_ERR_LIMIT, TLLM_ERR_MEMORY.
 */
int32_t tllm_config_new(struct tllm_config **config);

/**
 * Sets a key, for example "engine.workers" to "2". tllm_config_option lists the keys.
 *
 * Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_BUSY, TLLM_ERR_TEXT, TLLM_ERR_KEY, TLLM_ERR_VALUE; the config is then as before.
 */
int32_t tllm_config_set(struct tllm_config *config,
                        const char *key,
                        const char *value);

/**
 * Writes the value of a key as text. For `buffer`, `size` and `needed` see "Texts that come out" above.
 *
 * Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_BUSY, TLLM_ERR_TEXT, TLLM_ERR_KEY, TLLM_ERR_BUFFER.
 */
int32_t tllm_config_get(const struct tllm_config *config, const char *key, char *buffer, size_t size, size_t *needed);

/**
 * Describes the key with the number `index`, from 0; returns TLLM_END after the last. `size` is sizeof(tllm_option).
 *
 * Errors: TLLM_ERR_NULL, TLLM_ERR_STRUCT.
 */
int32_t tllm_config_option(size_t index, struct tllm_option *option, size_t size);

/**
 * Frees a config; NULL is nothing to do.
 *
 * Returns TLLM_OK; TLLM_RUNNING if a call is just using it.
 * Errors: TLLM_ERR_HANDLE.
 */
int32_t tllm_config_free(struct tllm_config *config);

/**
 * Opens the bundle at `path`, a directory or a packed file: checks every hash, loads the weights, runs the self-test. It starts no
 * thread. `config` (its keys "model.cpu" and "engine.device") may be NULL. Free the model with tllm_model_free.
 *
 * Errors: TLLM_ERR_NULL, TLLM_ERR_TEXT, TLLM_ERR_HANDLE, TLLM_ERR_BUSY, TLLM_ERR_IO, TLLM_ERR_MODEL, TLLM_ERR_PLATFORM, TLLM_ERR_MEMORY,
 * TLLM_ERR_LIMIT.
 */
int32_t tllm_model_open(const char *path,
                        const struct tllm_config *config,
                        struct tllm_model **model);

/**
 * Opens the bundle that is compiled in, like tllm_model_open.
 *
 * Errors: as tllm_model_open; TLLM_ERR_UNSUPPORTED where none is compiled in.
 */
int32_t tllm_model_open_default(const struct tllm_config *config, struct tllm_model **model);

/**
 * Opens a packed bundle from memory, like tllm_model_open. The bytes are copied: they can be freed when this returns.
 *
 * Errors: as tllm_model_open.
 */
int32_t tllm_model_open_memory(const uint8_t *data,
                               size_t size,
                               const struct tllm_config *config,
                               struct tllm_model **model);

/**
 * Checks a bundle as tllm_model_open does, and keeps nothing of it.
 *
 * Errors: as tllm_model_open.
 */
int32_t tllm_model_verify(const char *path, const struct tllm_config *config);

/**
 * Says what a model is. `size` is sizeof(tllm_model_info).
 *
 * Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_STRUCT.
 */
int32_t tllm_model_describe(const struct tllm_model *model, struct tllm_model_info *info, size_t size);

/**
 * Writes the bundle's manifest, one JSON object: model card, tasks with their labels, metrics with their protocol, data statement,
 * licence. For `buffer`, `size` and `needed` see "Texts that come out" above.
 *
 * Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_BUFFER.
 */
int32_t tllm_model_manifest(const struct tllm_model *model,
                            char *buffer,
                            size_t size,
                            size_t *needed);

/**
 * Describes the task with the number `index`, from 0 in the order in which verdicts come; returns TLLM_END after the last. `size` is
 * sizeof(tllm_task_info).
 *
 * Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_STRUCT.
 */
int32_t tllm_model_task(const struct tllm_model *model,
                        size_t index,
                        struct tllm_task_info *info,
                        size_t size);

/**
 * Writes the label with the number `label`, from 0, of the task with the number `task`; returns TLLM_END after the last. For
 * `buffer`, `size` and `needed` see "Texts that come out" above.
 *
 * Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_TASK, TLLM_ERR_BUFFER.
 */
int32_t tllm_model_label(const struct tllm_model *model,
                         size_t task,
                         size_t label,
                         char *buffer,
                         size_t size,
                         size_t *needed);

/**
 * Frees the handle of a model; engines keep what they use of it. NULL is nothing to do.
 *
 * Errors: TLLM_ERR_HANDLE.
 */
int32_t tllm_model_free(struct tllm_model *model);

/**
 * Makes an engine: checks the settings and takes the memory for queue and workers. It starts no thread and opens no device: that is
 * tllm_engine_start. Sessions and flows can be made, and flows submitted, before that. `config` may be NULL. Free it with
 * tllm_engine_free.
 *
 * Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_BUSY, TLLM_ERR_VALUE, TLLM_ERR_TASK, TLLM_ERR_MEMORY, TLLM_ERR_BUDGET, TLLM_ERR_LIMIT,
 * TLLM_ERR_UNSUPPORTED ("engine.device" names a device, and the library was built without them).
 */
int32_t tllm_engine_new(const struct tllm_model *model,
                        const struct tllm_config *config,
                        struct tllm_engine **engine);

/**
 * Starts the workers, in this process: after the host has forked, before or after it has dropped privileges. Their signals are
 * blocked: the host's handlers never run on them. Where "engine.device" asks for a device, it is opened and given the model here, also
 * without workers; that can take seconds the first time, since kernels are compiled, and the driver starts threads of its own, whose
 * signals are blocked too. A second call does nothing.
 *
 * Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_THREAD, TLLM_ERR_DEVICE (never with "engine.device" at "auto"), TLLM_ERR_BUDGET,
 * TLLM_ERR_STOPPED, TLLM_ERR_FORKED.
 */
int32_t tllm_engine_start(struct tllm_engine *engine);

/**
 * Takes no more flows from now on, gives the workers `timeout_us` to judge those that wait, abandons the rest and ends the workers.
 * Answers that have come can still be polled, and sessions that wait are woken. Calls of other threads go on meanwhile.
 *
 * Returns TLLM_OK; TLLM_ABANDONED if flows were abandoned; TLLM_RUNNING if workers were still in a batch when the time was over: they
 * end after it, and calling again waits for them.
 * Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_FORKED.
 */
int32_t tllm_engine_stop(struct tllm_engine *engine,
                         uint64_t timeout_us);

/**
 * Changes the model while the engine works: opens and verifies the bundle at `path`, runs its self-test, and swaps. Flows under way
 * finish on the model before; every verdict says which model gave it. A device keeps that model until synchronous sessions that used it
 * judge again or are freed. On an error the model before goes on, and the text says what
 * was wrong. It takes as long as tllm_model_open: call it beside the packet path.
 *
 * Errors: as tllm_model_open; TLLM_ERR_TASK (a chosen task is not in the new model), TLLM_ERR_DEVICE (the device that was chosen
 * by number has no room for it or cannot run it), TLLM_ERR_BUDGET, TLLM_ERR_STOPPED, TLLM_ERR_FORKED.
 */
int32_t tllm_engine_activate(struct tllm_engine *engine,
                             const char *path);

/**
 * As tllm_engine_activate, with a model that is open already. Activating the model before again is the way back.
 *
 * Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_TASK, TLLM_ERR_DEVICE, TLLM_ERR_BUDGET, TLLM_ERR_MEMORY, TLLM_ERR_STOPPED,
 * TLLM_ERR_FORKED.
 */
int32_t tllm_engine_activate_model(struct tllm_engine *engine,
                                   const struct tllm_model *model);

/**
 * Gives a new handle of the active model. Free it with tllm_model_free.
 *
 * Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_LIMIT, TLLM_ERR_MEMORY, TLLM_ERR_FORKED.
 */
int32_t tllm_engine_model(const struct tllm_engine *engine, struct tllm_model **model);

/**
 * Reads the counters. `size` is sizeof(tllm_counters).
 *
 * Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_STRUCT, TLLM_ERR_FORKED.
 */
int32_t tllm_engine_counters(const struct tllm_engine *engine, struct tllm_counters *counters, size_t size);

/**
 * Says how long verdicts took. `size` is sizeof(tllm_latency).
 *
 * Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_STRUCT, TLLM_ERR_FORKED.
 */
int32_t tllm_engine_latency(const struct tllm_engine *engine, struct tllm_latency *latency, size_t size);

/**
 * Says what the engine holds in memory. `size` is sizeof(tllm_memory).
 *
 * Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_STRUCT, TLLM_ERR_FORKED.
 */
int32_t tllm_engine_memory(const struct tllm_engine *engine, struct tllm_memory *memory, size_t size);

/**
 * Writes counters, memory and latencies in Prometheus' text format 0.0.4; packets are counted when their flow is freed. For `buffer`,
 * `size` and `needed` see "Texts that come out" above; the text grows by some bytes with its numbers, so leave room.
 *
 * Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_BUFFER, TLLM_ERR_FORKED.
 */
int32_t tllm_engine_metrics(const struct tllm_engine *engine,
                            char *buffer,
                            size_t size,
                            size_t *needed);

/**
 * Says what runs the model: the device's number and name, as "cuda:0 NVIDIA H200", or a text that begins with "cpu" where no device
 * runs it, and says why where "engine.device" asks for one. For `buffer`, `size` and `needed` see "Texts that come out" above.
 *
 * Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_BUFFER, TLLM_ERR_FORKED.
 */
int32_t tllm_engine_device(const struct tllm_engine *engine,
                           char *buffer,
                           size_t size,
                           size_t *needed);

/**
 * Describes the head with the number `index`, from 0, in the order of their verdicts; returns TLLM_END after the last. `size` is
 * sizeof(tllm_head).
 *
 * Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_STRUCT, TLLM_ERR_FORKED.
 */
int32_t tllm_engine_head(const struct tllm_engine *engine,
                         size_t index,
                         struct tllm_head *head,
                         size_t size);

/**
 * Switches the head of that name on, where `enabled` is not 0, with no fault held against it, or off: its verdicts then abstain. A head
 * that was switched off because of its faults stays so until this is called, or heads or model are replaced.
 *
 * Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_TEXT, TLLM_ERR_TASK (no head of this name), TLLM_ERR_FORKED.
 */
int32_t tllm_engine_head_enable(struct tllm_engine *engine,
                                const char *name,
                                int32_t enabled);

/**
 * Replaces the heads while the engine works by those that the "heads." keys of `config` name, and those of the model's bundle: files of
 * modules are read again, heads begin anew. A native library stays loaded as long as the process: a new version needs a path of its
 * own, and one that has changed under its path is refused. Flows under way end with the heads before. NULL stands for the keys' defaults. Call it beside
 * the packet path: modules are compiled. On an error the heads before go on.
 *
 * Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_BUSY, TLLM_ERR_VALUE (a head cannot be used: the text says which and why),
 * TLLM_ERR_MEMORY, TLLM_ERR_BUDGET, TLLM_ERR_DEVICE (as the start that failed), TLLM_ERR_STOPPED, TLLM_ERR_FORKED.
 */
int32_t tllm_engine_activate_heads(struct tllm_engine *engine,
                                   const struct tllm_config *config);

/**
 * Judges all that waits, on the calling thread, in an engine with "engine.workers" 0; with workers it does nothing. `judged` may be
 * NULL; else it gets the number of flows.
 *
 * Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_FORKED.
 */
int32_t tllm_engine_run_pending(struct tllm_engine *engine,
                                size_t *judged);

/**
 * Stops an engine, with "engine.stop_timeout_us" for what waits, and frees its handle; calls of other threads that are under way
 * finish, sessions that are left find it stopped. In a process that was forked after the start only the handle is freed. NULL
 * is nothing to do. Returns what tllm_engine_stop does.
 *
 * Errors: TLLM_ERR_HANDLE.
 */
int32_t tllm_engine_free(struct tllm_engine *engine);

/**
 * Prepares a tllm_flow_info: everything unknown. `size` is sizeof(tllm_flow_info).
 *
 * Errors: TLLM_ERR_NULL, TLLM_ERR_STRUCT.
 */
int32_t tllm_flow_info_init(struct tllm_flow_info *info, size_t size);

/**
 * Prepares a tllm_packet: everything zero. `size` is sizeof(tllm_packet).
 *
 * Errors: TLLM_ERR_NULL, TLLM_ERR_STRUCT.
 */
int32_t tllm_packet_init(struct tllm_packet *packet, size_t size);

/**
 * Makes a flow without packets, that keeps as much as the engine's settings say. It may be made before the engine is started.
 * Free it with tllm_flow_free.
 *
 * Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_STRUCT, TLLM_ERR_ARGUMENT (`ip_version`), TLLM_ERR_LIMIT ("engine.flows_max"),
 * TLLM_ERR_MEMORY, TLLM_ERR_BUDGET, TLLM_ERR_FORKED.
 */
int32_t tllm_flow_new(const struct tllm_engine *engine,
                      const struct tllm_flow_info *info,
                      struct tllm_flow **flow);

/**
 * Adds a packet, in the order in which they came. Returns TLLM_FLOW_FULL instead of TLLM_OK once the flow keeps no more packets: it is
 * counted all the same, and need not be fed any more. A call that fails adds nothing.
 *
 * Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_BUSY, TLLM_ERR_STRUCT, TLLM_ERR_ARGUMENT (`direction`, `payload_size`).
 */
int32_t tllm_flow_feed(struct tllm_flow *flow,
                       const struct tllm_packet *packet);

/**
 * Empties a flow for another connection, in the same memory. Verdicts of the old one that are still under way are dropped.
 *
 * Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_BUSY, TLLM_ERR_STRUCT, TLLM_ERR_ARGUMENT (`ip_version`).
 */
int32_t tllm_flow_reset(struct tllm_flow *flow,
                        const struct tllm_flow_info *info);

/**
 * Says what a flow has seen. `size` is sizeof(tllm_flow_stats).
 *
 * Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_BUSY, TLLM_ERR_STRUCT.
 */
int32_t tllm_flow_describe(const struct tllm_flow *flow, struct tllm_flow_stats *stats, size_t size);

/**
 * Frees a flow, on any thread. Its verdicts that are still under way are dropped, and counted as abandoned, unless it was submitted
 * with tllm_session_submit_last. NULL is nothing to do.
 *
 * The last flow or session of an engine whose handle was freed gives back the engine's memory, which takes a while: free the engine
 * after them where that matters.
 *
 * Returns TLLM_OK; TLLM_RUNNING if a call is just using it.
 * Errors: TLLM_ERR_HANDLE.
 */
int32_t tllm_flow_free(struct tllm_flow *flow);

/**
 * Writes the verdicts of one answer as a JSON array of objects with the keys "task", "label", "score" and "abstained", and those of
 * heads with "evidence" and "reason" where there are such, as the command `trafficllm detect --format json` writes them. Entries without a verdict are left out. `verdict_size` is sizeof(tllm_verdict). For
 * `buffer`, `size` and `needed` see "Texts that come out" above.
 *
 * Errors: TLLM_ERR_NULL, TLLM_ERR_STRUCT, TLLM_ERR_ARGUMENT (more entries than one answer can have), TLLM_ERR_TEXT, TLLM_ERR_BUFFER.
 */
int32_t tllm_verdicts_json(const struct tllm_verdict *verdicts,
                           size_t verdict_size,
                           size_t count,
                           char *buffer,
                           size_t size,
                           size_t *needed);

/**
 * Makes a session, with memory for "engine.queue_flows" flows under way. Free it with tllm_session_free.
 *
 * Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_MEMORY, TLLM_ERR_BUDGET, TLLM_ERR_LIMIT, TLLM_ERR_STOPPED, TLLM_ERR_FORKED.
 */
int32_t tllm_session_new(const struct tllm_engine *engine,
                         struct tllm_session **session);

/**
 * Puts a flow, as far as it has come, into the queue. It never waits: neither for a worker nor for a lock. What is judged is copied, so
 * the flow can be fed on, submitted again or freed at once; if it is freed, its verdicts are dropped. `id` comes back with them. A flow
 * of another engine is taken too: the engine of the session judges it.
 *
 * Returns TLLM_OK; TLLM_NEED_MORE, nothing was submitted; TLLM_QUEUE_FULL, the flow was shed, and is counted so. After tllm_engine_stop
 * it is TLLM_ERR_STOPPED, and the flow is counted as submitted and abandoned; while it is stopped, TLLM_OK, and the answer is TLLM_ABANDONED.
 * Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_BUSY, TLLM_ERR_MEMORY (a model was activated that needs more), TLLM_ERR_STOPPED,
 * TLLM_ERR_FORKED.
 */
int32_t tllm_session_submit(struct tllm_session *session,
                            const struct tllm_flow *flow,
                            uint64_t id);

/**
 * As tllm_session_submit, but for a flow that has come to its end: its verdicts come also when the flow is freed before them.
 *
 * Returns and errors: as tllm_session_submit.
 */
int32_t tllm_session_submit_last(struct tllm_session *session,
                                 const struct tllm_flow *flow,
                                 uint64_t id);

/**
 * Puts an HTTP request into the queue for the tasks of kind TLLM_TASK_REQUEST: its text from the request line on, not longer than
 * needed: what is beyond the model's tokens is not read. It is copied.
 *
 * Returns as tllm_session_submit. Errors: also TLLM_ERR_REQUEST, where the text does not start like a request; it is not counted.
 */
int32_t tllm_session_submit_request(struct tllm_session *session,
                                    const uint8_t *request,
                                    size_t size,
                                    uint64_t id);

/**
 * Takes the answers that have come, as many as fit whole: `count` gets the number of entries. It never waits. `verdict_size` is
 * sizeof(tllm_verdict), `capacity` the entries that there is room for: at least as many as the model has tasks;
 * TLLM_ANSWER_ENTRIES_MAX is enough for every model. On TLLM_ERR_BUFFER `count` gets the entries that are needed.
 *
 * Returns TLLM_OK if there was an answer, TLLM_PENDING if not. Answers come in any order.
 * Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_BUSY, TLLM_ERR_STRUCT, TLLM_ERR_BUFFER, TLLM_ERR_FORKED.
 */
int32_t tllm_session_poll(struct tllm_session *session,
                          struct tllm_verdict *verdicts,
                          size_t verdict_size,
                          size_t capacity,
                          size_t *count);

/**
 * As tllm_session_poll, but where nothing has come yet it sleeps until something does, until `timeout_us` is over, or until nothing
 * is under way. In an engine without workers it does the work itself, and a batch under way is finished also after the time is over.
 * An engine that was not started yet gives nothing: the time passes.
 *
 * Returns and errors: as tllm_session_poll.
 */
int32_t tllm_session_wait(struct tllm_session *session,
                          uint64_t timeout_us,
                          struct tllm_verdict *verdicts,
                          size_t verdict_size,
                          size_t capacity,
                          size_t *count);

/**
 * As tllm_session_wait, but gives each answer to `callback`, with `user` handed on. `verdict_size` is sizeof(tllm_verdict). `answers` may
 * be NULL; else it gets their number.
 *
 * Returns TLLM_OK if there was an answer, TLLM_PENDING if not, TLLM_CANCELLED if the callback ended it.
 * Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_BUSY, TLLM_ERR_STRUCT, TLLM_ERR_ARGUMENT, TLLM_ERR_MEMORY, TLLM_ERR_FORKED.
 */
int32_t tllm_session_each(struct tllm_session *session,
                          uint64_t timeout_us,
                          size_t verdict_size,
                          tllm_verdict_callback callback,
                          void *user,
                          size_t *answers);

/**
 * Gives a file descriptor that is readable when answers have come, for poll(2), epoll(7) and their like. It belongs to the session and
 * ends with it: do not read or close it. Taking the answers makes it quiet again; it may now and then be readable without an answer. In
 * a child of a fork ask again: it has one of its own. It is readable once more when the engine is stopped.
 *
 * Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_BUSY, TLLM_ERR_IO, TLLM_ERR_UNSUPPORTED (not on Linux), TLLM_ERR_FORKED.
 */
int32_t tllm_session_fd(struct tllm_session *session,
                        int32_t *descriptor);

/**
 * Says how many flows of the session are under way: submitted, and their answers not taken.
 *
 * Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_BUSY, TLLM_ERR_FORKED.
 */
int32_t tllm_session_in_flight(const struct tllm_session *session, size_t *flows);

/**
 * Judges `count` flows on the calling thread, without the queue and whether the engine is started or not. The answers come in the order
 * of the flows, each with the flow's index as `id`; the number of all entries goes to `entries`. `capacity` must be at least `count`
 * times the number of the model's tasks; on TLLM_ERR_BUFFER `entries` gets what is needed. Another error may leave some entries written.
 * It waits for the model: not for the packet path.
 *
 * Errors: TLLM_ERR_NULL, TLLM_ERR_HANDLE, TLLM_ERR_BUSY (also for a flow that is named twice), TLLM_ERR_STRUCT, TLLM_ERR_BUFFER, TLLM_ERR_MEMORY,
 * TLLM_ERR_BUDGET, TLLM_ERR_LIMIT (more than 65,536 flows), TLLM_ERR_STOPPED, TLLM_ERR_FORKED.
 */
int32_t tllm_session_classify(struct tllm_session *session,
                              const struct tllm_flow *const *flows,
                              size_t count,
                              struct tllm_verdict *verdicts,
                              size_t verdict_size,
                              size_t capacity,
                              size_t *entries);

/**
 * Judges one HTTP request on the calling thread, as tllm_session_classify does with flows.
 *
 * Errors: as tllm_session_classify; TLLM_ERR_REQUEST, where the text does not start like a request.
 */
int32_t tllm_session_classify_request(struct tllm_session *session,
                                      const uint8_t *request,
                                      size_t size,
                                      struct tllm_verdict *verdicts,
                                      size_t verdict_size,
                                      size_t capacity,
                                      size_t *entries);

/**
 * Frees a session. Its flows under way are abandoned, and counted so. NULL is nothing to do.
 *
 * Returns TLLM_OK; TLLM_RUNNING if a call is just using it.
 * Errors: TLLM_ERR_HANDLE.
 */
int32_t tllm_session_free(struct tllm_session *session);

/**
 * Reads a file to its end and gives the verdicts on every flow to `callback`, with `user` handed on, as the command
 * `trafficllm detect` does: pcap or pcapng, plain or gzip; of a file that ends in ".jsonl" the HTTP requests in the key "request" of its
 * lines. The model that is active when it begins judges all of it. `subject_size` is sizeof(tllm_subject), `verdict_size`
 * sizeof(tllm_verdict), `report_size` sizeof(tllm_capture_report); `report` may be NULL.
 * It waits for the engine, which must have been started unless "engine.workers" is 0.
 *
 * Returns TLLM_OK, or TLLM_CANCELLED if the callback ended it.
 * Errors: TLLM_ERR_NULL, TLLM_ERR_TEXT, TLLM_ERR_HANDLE, TLLM_ERR_BUSY (called from a callback of the engine's own work), TLLM_ERR_STRUCT,
 * TLLM_ERR_ARGUMENT, TLLM_ERR_IO (it cannot be opened), TLLM_ERR_CAPTURE (it cannot be read to its end: what was read was judged, and is in
 * the report all the same), TLLM_ERR_WORKER, TLLM_ERR_MEMORY, TLLM_ERR_BUDGET, TLLM_ERR_LIMIT (sessions), TLLM_ERR_NOT_STARTED,
 * TLLM_ERR_STOPPED, TLLM_ERR_FORKED.
 */
int32_t tllm_capture_detect(struct tllm_engine *engine,
                            const char *path,
                            size_t subject_size,
                            size_t verdict_size,
                            tllm_subject_callback callback,
                            void *user,
                            struct tllm_capture_report *report,
                            size_t report_size);

/**
 * Writes a subject with its verdicts as the JSON object that the command `trafficllm detect --format json` writes on a line, without
 * the line's end. `capture` is the name that stands in it; NULL leaves it out. `verdict_size` is sizeof(tllm_verdict), `subject_size`
 * sizeof(tllm_subject). For `buffer`, `size` and `needed` see "Texts that come out" above.
 *
 * Errors: TLLM_ERR_NULL, TLLM_ERR_STRUCT, TLLM_ERR_ARGUMENT, TLLM_ERR_TEXT, TLLM_ERR_BUFFER.
 */
int32_t tllm_subject_json(const char *capture,
                          const struct tllm_subject *subject,
                          size_t subject_size,
                          const struct tllm_verdict *verdicts,
                          size_t verdict_size,
                          size_t count,
                          char *buffer,
                          size_t size,
                          size_t *needed);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* TRAFFICLLM_H */
