/* What the test programs share: a check that ends the program, and short ways to the things that most of them need.
 *
 * Each program gets the folder "tests" of the repository as its argument, ends with 0 and says nothing if all is well. */
#ifndef CHECK_H
#define CHECK_H

/* sigaction, fork, dlopen's flags. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "trafficllm.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* sizeof(tllm_verdict) in the first header that had it. */
#define FIRST_VERDICT_BYTES 280

/* A condition that must hold. */
#define CHECK(condition)                                                                        \
    do {                                                                                        \
        if (!(condition)) {                                                                     \
            char text_[2100] = "";                                                              \
            (void)tllm_last_error(text_, sizeof text_, NULL);                                   \
            fprintf(stderr, "%s:%d: %s\n  last error: %s\n", __FILE__, __LINE__, #condition, text_); \
            exit(1);                                                                            \
        }                                                                                       \
    } while (0)

/* A call that must return a status. */
#define STATUS(expected, call)                                                                  \
    do {                                                                                        \
        int32_t expected_ = (expected);                                                         \
        int32_t found_ = (call);                                                                \
        if (found_ != expected_) {                                                              \
            char text_[2100] = "";                                                              \
            (void)tllm_last_error(text_, sizeof text_, NULL);                                   \
            fprintf(stderr, "%s:%d: %s\n  expected %" PRId32 " (%s), found %" PRId32 " (%s)\n  last error: %s\n", \
                    __FILE__, __LINE__, #call, expected_, tllm_status_string(expected_), found_, \
                    tllm_status_string(found_), text_);                                         \
            exit(1);                                                                            \
        }                                                                                       \
    } while (0)

#define OK(call) STATUS(TLLM_OK, call)

/* A call that must fail with a status, and whose text must name something. */
#define FAILS(expected, part, call)                                                             \
    do {                                                                                        \
        STATUS(expected, call);                                                                 \
        char said_[2100] = "";                                                                  \
        CHECK(tllm_last_error(said_, sizeof said_, NULL) == (expected));                        \
        if (strstr(said_, (part)) == NULL) {                                                    \
            fprintf(stderr, "%s:%d: %s\n  expected a text with: %s\n  found: %s\n", __FILE__, __LINE__, #call, \
                    (part), said_);                                                             \
            exit(1);                                                                            \
        }                                                                                       \
    } while (0)

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

#define UNUSED __attribute__((unused))

/* The sizes of what a callback of tllm_capture_detect gets. */
#define SIZES sizeof(tllm_subject), sizeof(tllm_verdict)

/* More entries than an answer of the small models has. */
#define ENTRIES 512

static const char *tests_folder = ".";

/* By how much a tool makes everything slower, if one does. */
UNUSED static unsigned slower(void)
{
    const char *factor = getenv("TLLM_TEST_SLOWER");
    return factor != NULL && atoi(factor) > 0 ? (unsigned)atoi(factor) : 1;
}

/* How often something is done: less often where everything is slower. */
UNUSED static unsigned rounds(unsigned full)
{
    return full / slower() > 2 ? full / slower() : 2;
}

/* Begins a program: it must not hang for longer than so many seconds. */
UNUSED static void begin(int argc, char **argv, unsigned seconds)
{
    alarm(seconds * slower());
    if (argc > 1) {
        tests_folder = argv[1];
    }
    CHECK(tllm_abi_version() == TLLM_ABI_VERSION);
}

/* The path of a file under "tests", in a buffer that the next call but seven uses again. */
UNUSED static const char *path_of(const char *name)
{
    static _Thread_local char paths[8][4096];
    static _Thread_local unsigned next = 0;
    char *path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", tests_folder, name);
    return path;
}

#define SMALL "c/bundles/small.tllm"
#define OTHER "c/bundles/other.tllm"

/* Not for a program that loads the library by hand. */
#ifndef CHECK_WITHOUT_LIBRARY

UNUSED static tllm_model *open_small(void)
{
    tllm_model *model = NULL;
    OK(tllm_model_open(path_of(SMALL), NULL, &model));
    CHECK(model != NULL);
    return model;
}

/* A config of "key=value" texts, NULL at the end. */
UNUSED static tllm_config *config_of(const char *const *settings)
{
    tllm_config *config = NULL;
    OK(tllm_config_new(&config));
    for (; settings != NULL && *settings != NULL; settings++) {
        char key[128];
        const char *equals = strchr(*settings, '=');
        CHECK(equals != NULL && (size_t)(equals - *settings) < sizeof key);
        memcpy(key, *settings, (size_t)(equals - *settings));
        key[equals - *settings] = '\0';
        OK(tllm_config_set(config, key, equals + 1));
    }
    return config;
}

/* An engine over the small model, not started. */
UNUSED static tllm_engine *engine_with(const char *const *settings)
{
    tllm_model *model = open_small();
    tllm_config *config = config_of(settings);
    tllm_engine *engine = NULL;
    OK(tllm_engine_new(model, config, &engine));
    OK(tllm_config_free(config));
    OK(tllm_model_free(model));
    return engine;
}

UNUSED static tllm_session *session_of(tllm_engine *engine)
{
    tllm_session *session = NULL;
    OK(tllm_session_new(engine, &session));
    return session;
}

UNUSED static tllm_flow *empty_flow(tllm_engine *engine)
{
    tllm_flow_info info;
    tllm_flow *flow = NULL;
    OK(tllm_flow_info_init(&info, sizeof info));
    info.protocol = 6;
    info.ip_version = 4;
    info.initiator_port = 40000;
    info.responder_port = 443;
    OK(tllm_flow_new(engine, &info, &flow));
    return flow;
}

/* Feeds packets whose sizes and payloads follow from a seed. */
UNUSED static void feed(tllm_flow *flow, unsigned packets, unsigned seed)
{
    tllm_packet packet;
    uint8_t payload[40];
    OK(tllm_packet_init(&packet, sizeof packet));
    for (unsigned number = 0; number < packets; number++) {
        unsigned mixed = (seed * 2654435761u) ^ (number * 40503u);
        packet.direction = (number + seed) % 3 == 0 && number > 0 ? TLLM_FROM_RESPONDER : TLLM_FROM_INITIATOR;
        packet.tcp_flags = number == 0 ? 0x02 : 0x18;
        packet.time_ns += 1000u * (mixed % 5000u);
        packet.payload_size = number == 0 ? 0 : mixed % (unsigned)sizeof payload;
        packet.payload_bytes = (uint32_t)packet.payload_size;
        packet.ip_bytes = packet.payload_bytes + 40;
        for (size_t at = 0; at < packet.payload_size; at++) {
            payload[at] = (uint8_t)(mixed >> (at % 13));
        }
        packet.payload = packet.payload_size > 0 ? payload : NULL;
        int32_t status = tllm_flow_feed(flow, &packet);
        CHECK(status == TLLM_OK || status == TLLM_FLOW_FULL);
    }
}

UNUSED static tllm_flow *flow_of(tllm_engine *engine, unsigned packets, unsigned seed)
{
    tllm_flow *flow = empty_flow(engine);
    feed(flow, packets, seed);
    return flow;
}

UNUSED static tllm_counters counters_of(const tllm_engine *engine)
{
    tllm_counters counters;
    OK(tllm_engine_counters(engine, &counters, sizeof counters));
    CHECK(counters.submitted == counters.done + counters.shed + counters.expired + counters.abandoned +
                                    counters.failed + counters.in_flight);
    return counters;
}

/* Takes answers until so many have come, and counts them by id (below `ids`; NULL is nothing to count). */
UNUSED static void take_answers(tllm_session *session, size_t answers, unsigned *seen, size_t ids)
{
    static _Thread_local tllm_verdict verdicts[ENTRIES];
    size_t found = 0;
    while (found < answers) {
        size_t count = 0;
        int32_t status = tllm_session_wait(session, 1000000, verdicts, sizeof verdicts[0], ENTRIES, &count);
        CHECK(status == TLLM_OK || status == TLLM_PENDING);
        for (size_t at = 0; at < count; at++) {
            CHECK(verdicts[at].position < verdicts[at].entries);
            if (verdicts[at].position == 0) {
                found++;
                if (seen != NULL) {
                    CHECK(verdicts[at].id < ids);
                    seen[verdicts[at].id]++;
                }
            }
        }
    }
    CHECK(found == answers);
}

#endif

/* Whether two entries say the same about a flow, whatever it was called and whenever it was judged. */
UNUSED static int same_verdict(const tllm_verdict *a, const tllm_verdict *b)
{
    return a->status == b->status && a->position == b->position && a->entries == b->entries && a->task == b->task &&
           a->label == b->label && memcmp(&a->score, &b->score, sizeof a->score) == 0 &&
           strcmp(a->task_name, b->task_name) == 0 && strcmp(a->label_name, b->label_name) == 0 &&
           strcmp(a->model_id, b->model_id) == 0;
}

UNUSED static uint64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
}

UNUSED static void sleep_us(unsigned us)
{
    struct timespec time = {us / 1000000, (long)(us % 1000000) * 1000};
    nanosleep(&time, NULL);
}

/* Threads of this process. */
UNUSED static unsigned threads(void)
{
    FILE *status = fopen("/proc/self/status", "r");
    char line[256];
    unsigned count = 0;
    CHECK(status != NULL);
    while (fgets(line, sizeof line, status) != NULL) {
        if (sscanf(line, "Threads: %u", &count) == 1) {
            break;
        }
    }
    fclose(status);
    CHECK(count > 0);
    return count;
}

/* Whether threads that have ended leave so many: the system counts one for a moment after it was joined. */
UNUSED static int threads_become(unsigned expected)
{
    for (unsigned tries = 0; tries < 2000 && threads() != expected; tries++) {
        sleep_us(1000);
    }
    return threads() == expected;
}

/* Reads a file into memory that the caller frees. */
UNUSED static uint8_t *read_file(const char *path, size_t *size)
{
    FILE *file = fopen(path, "rb");
    CHECK(file != NULL);
    CHECK(fseek(file, 0, SEEK_END) == 0);
    long end = ftell(file);
    CHECK(end >= 0 && fseek(file, 0, SEEK_SET) == 0);
    uint8_t *bytes = malloc((size_t)end + 1);
    CHECK(bytes != NULL);
    CHECK(fread(bytes, 1, (size_t)end, file) == (size_t)end);
    fclose(file);
    *size = (size_t)end;
    return bytes;
}

#endif
