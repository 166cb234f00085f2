/* Submitting and taking answers. */
#include "check.h"

#include <fcntl.h>
#include <poll.h>

static const char *const inline_settings[] = {"engine.workers=0", NULL};
static const char *const worker_settings[] = {"engine.workers=2", NULL};

static size_t in_flight(tllm_session *session)
{
    size_t flows = 999;
    OK(tllm_session_in_flight(session, &flows));
    return flows;
}

static int is_readable(int descriptor, int timeout_ms)
{
    struct pollfd waited = {descriptor, POLLIN, 0};
    int ready = poll(&waited, 1, timeout_ms);
    CHECK(ready >= 0);
    return ready > 0;
}

/* A verdict as the small model gives it for a flow. */
static void check_entry(const tllm_verdict *entry, uint64_t id)
{
    CHECK(entry->status == TLLM_OK || entry->status == TLLM_ABSTAINED);
    CHECK(entry->id == id && entry->entries >= 2 && entry->position < entry->entries);
    CHECK(entry->score > 0 && entry->score <= 1);
    CHECK(entry->generation == 1 && strlen(entry->model_id) == 16);
    CHECK(strcmp(entry->task_name, entry->task == 0   ? "first_task"
                                   : entry->task == 1 ? "second_task"
                                                      : "request_task") == 0);
    CHECK(entry->label_name[0] != '\0' && entry->reserved[0] == 0 && entry->reserved[1] == 0);
}

static void without_workers(void)
{
    tllm_engine *engine = engine_with(inline_settings);
    tllm_session *session = session_of(engine);
    tllm_flow *flow = flow_of(engine, 5, 1);
    tllm_verdict verdicts[8];
    size_t count = 99, judged = 99;
    /* Nothing under way: at once, also with the longest time. */
    STATUS(TLLM_PENDING, tllm_session_poll(session, verdicts, sizeof verdicts[0], 8, &count));
    CHECK(count == 0);
    STATUS(TLLM_PENDING, tllm_session_wait(session, UINT64_MAX, verdicts, sizeof verdicts[0], 8, &count));
    OK(tllm_session_submit(session, flow, 42));
    CHECK(in_flight(session) == 1 && counters_of(engine).waiting == 1);
    STATUS(TLLM_PENDING, tllm_session_poll(session, verdicts, sizeof verdicts[0], 8, &count));
    OK(tllm_engine_run_pending(engine, &judged));
    CHECK(judged == 1);
    OK(tllm_session_poll(session, verdicts, sizeof verdicts[0], 8, &count));
    CHECK(count == 2);
    check_entry(&verdicts[0], 42);
    check_entry(&verdicts[1], 42);
    CHECK(verdicts[1].position == 1 && verdicts[1].task == 1);
    CHECK(in_flight(session) == 0);
    OK(tllm_engine_run_pending(engine, NULL));
    /* Waiting does the work itself. */
    OK(tllm_session_submit(session, flow, 43));
    OK(tllm_session_wait(session, UINT64_MAX, verdicts, sizeof verdicts[0], 8, &count));
    CHECK(count == 2 && verdicts[0].id == 43);
    tllm_counters counters = counters_of(engine);
    CHECK(counters.submitted == 2 && counters.done == 2 && counters.in_flight == 0 && counters.batches == 2);
    OK(tllm_flow_free(flow));
    OK(tllm_session_free(session));
    OK(tllm_engine_free(engine));
}

static void with_workers(void)
{
    enum { FLOWS = 600 };
    static unsigned seen[FLOWS];
    tllm_flow *flows[100];
    const unsigned all = slower() == 1 ? FLOWS : 100;
    tllm_engine *engine = engine_with(worker_settings);
    tllm_session *session = session_of(engine);
    memset(seen, 0, sizeof seen);
    OK(tllm_engine_start(engine));
    for (unsigned number = 0; number < all; number++) {
        flows[number % 100] = flow_of(engine, 1 + number % 7, number);
        OK(tllm_session_submit(session, flows[number % 100], number));
        if (number % 100 == 99) {
            take_answers(session, 100, seen, FLOWS);
            for (size_t at = 0; at < 100; at++) {
                OK(tllm_flow_free(flows[at]));
            }
        }
    }
    for (unsigned number = 0; number < all; number++) {
        CHECK(seen[number] == 1);
    }
    CHECK(in_flight(session) == 0);
    tllm_counters counters = counters_of(engine);
    CHECK(counters.done == all && counters.flows == 0);
    OK(tllm_session_free(session));
    OK(tllm_engine_free(engine));
}

static void descriptor(void)
{
    tllm_engine *engine = engine_with(worker_settings);
    tllm_session *session = session_of(engine), *late = session_of(engine);
    tllm_flow *flow = flow_of(engine, 4, 3);
    tllm_verdict verdicts[8];
    size_t count = 0;
    int32_t descriptor = -1, again = -1;
    OK(tllm_session_fd(session, &descriptor));
    OK(tllm_session_fd(session, &again));
    CHECK(descriptor >= 0 && descriptor == again);
    OK(tllm_engine_start(engine));
    /* It may be readable without an answer at first; taking makes it quiet. */
    STATUS(TLLM_PENDING, tllm_session_poll(session, verdicts, sizeof verdicts[0], 8, &count));
    CHECK(!is_readable(descriptor, 0));
    for (uint64_t round = 0; round < rounds(20); round++) {
        OK(tllm_session_submit(session, flow, round));
        CHECK(is_readable(descriptor, 10000));
        OK(tllm_session_poll(session, verdicts, sizeof verdicts[0], 8, &count));
        CHECK(verdicts[0].id == round);
        CHECK(!is_readable(descriptor, 0));
    }
    /* Room for one answer only: it stays readable until all are taken. */
    for (uint64_t round = 0; round < 10; round++) {
        OK(tllm_session_submit(session, flow, round));
    }
    for (unsigned taken = 0; taken < 10;) {
        CHECK(is_readable(descriptor, 10000));
        int32_t status = tllm_session_poll(session, verdicts, sizeof verdicts[0], 3, &count);
        CHECK(status == TLLM_OK ? count == 2 : status == TLLM_PENDING);
        taken += status == TLLM_OK;
    }
    /* The descriptor is asked for after the answer has come. */
    OK(tllm_session_submit(late, flow, 7));
    while (counters_of(engine).waiting > 0) {
        sleep_us(1000);
    }
    sleep_us(50000);
    OK(tllm_session_fd(late, &descriptor));
    CHECK(is_readable(descriptor, 10000));
    OK(tllm_session_poll(late, verdicts, sizeof verdicts[0], 8, &count));
    OK(tllm_flow_free(flow));
    OK(tllm_session_free(session));
    OK(tllm_session_free(late));
    CHECK(fcntl(again, F_GETFD) == -1 && errno == EBADF);
    CHECK(fcntl(descriptor, F_GETFD) == -1 && errno == EBADF);
    OK(tllm_engine_free(engine));
}

/* The queue's limit is exact, shedding is counted, and the caller is never kept waiting. */
static void full_queue(void)
{
    static const char *const settings[] = {"engine.workers=0", "engine.queue_flows=5", NULL};
    tllm_engine *engine = engine_with(settings);
    tllm_session *one = session_of(engine), *two = session_of(engine);
    tllm_flow *flow = flow_of(engine, 3, 9);
    for (uint64_t id = 0; id < 5; id++) {
        OK(tllm_session_submit(id % 2 ? one : two, flow, id));
    }
    for (unsigned tries = 0; tries < 100; tries++) {
        STATUS(TLLM_QUEUE_FULL, tllm_session_submit(one, flow, 99));
        STATUS(TLLM_QUEUE_FULL, tllm_session_submit_request(two, (const uint8_t *)"GET / HTTP/1.1\r\n", 16, 99));
    }
    tllm_counters counters = counters_of(engine);
    CHECK(counters.submitted == 205 && counters.shed == 200 && counters.in_flight == 5 && counters.waiting == 5);
    unsigned seen[5] = {0};
    OK(tllm_engine_run_pending(engine, NULL));
    take_answers(one, 2, seen, 5);
    take_answers(two, 3, seen, 5);
    for (unsigned id = 0; id < 5; id++) {
        CHECK(seen[id] == 1);
    }
    /* A session has memory for the queue's flows: untaken answers fill it. */
    for (uint64_t id = 0; id < 5; id++) {
        OK(tllm_session_submit(one, flow, id));
        OK(tllm_engine_run_pending(engine, NULL));
    }
    STATUS(TLLM_QUEUE_FULL, tllm_session_submit(one, flow, 5));
    OK(tllm_session_submit(two, flow, 0));
    take_answers(one, 5, seen, 5);
    OK(tllm_session_submit(one, flow, 0));
    take_answers(one, 1, NULL, 0);
    take_answers(two, 1, NULL, 0);
    OK(tllm_flow_free(flow));
    OK(tllm_session_free(one));
    OK(tllm_session_free(two));
    CHECK(counters_of(engine).in_flight == 0);
    OK(tllm_engine_free(engine));
}

static void capacities(void)
{
    tllm_engine *engine = engine_with(inline_settings);
    tllm_session *session = session_of(engine);
    tllm_flow *flow = flow_of(engine, 3, 9);
    tllm_verdict verdicts[8];
    size_t count = 77;
    OK(tllm_session_submit(session, flow, 1));
    OK(tllm_session_submit(session, flow, 2));
    OK(tllm_engine_run_pending(engine, NULL));
    memset(verdicts, 0xee, sizeof verdicts);
    FAILS(TLLM_ERR_BUFFER, "3", tllm_session_poll(session, verdicts, sizeof verdicts[0], 2, &count));
    CHECK(count == 3);
    STATUS(TLLM_ERR_BUFFER, tllm_session_poll(session, verdicts, sizeof verdicts[0], 0, &count));
    count = 77;
    STATUS(TLLM_ERR_STRUCT, tllm_session_poll(session, verdicts, FIRST_VERDICT_BYTES - 1, 8, &count));
    STATUS(TLLM_ERR_STRUCT, tllm_session_poll(session, verdicts, 0, 8, &count));
    STATUS(TLLM_ERR_STRUCT, tllm_session_poll(session, verdicts, SIZE_MAX, 8, &count));
    STATUS(TLLM_ERR_NULL, tllm_session_poll(session, NULL, sizeof verdicts[0], 8, &count));
    STATUS(TLLM_ERR_NULL, tllm_session_poll(session, verdicts, sizeof verdicts[0], 8, NULL));
    CHECK(count == 77 && verdicts[0].status == (int32_t)0xeeeeeeee);
    CHECK(in_flight(session) == 2);
    /* An answer comes whole or not at all: the second one waits for a call with room for it. */
    OK(tllm_session_poll(session, verdicts, sizeof verdicts[0], 3, &count));
    CHECK(count == 2 && verdicts[0].id == 1 && verdicts[2].status == (int32_t)0xeeeeeeee);
    CHECK(in_flight(session) == 1 && counters_of(engine).done == 1 && counters_of(engine).in_flight == 1);
    OK(tllm_session_submit(session, flow, 3));
    OK(tllm_engine_run_pending(engine, NULL));
    CHECK(in_flight(session) == 2);
    OK(tllm_session_wait(session, UINT64_MAX, verdicts, sizeof verdicts[0], 4, &count));
    CHECK(count == 4 && verdicts[0].id == 2 && verdicts[2].id == 3 && in_flight(session) == 0);
    /* Entries of a newer header: what this library does not know is zero. */
    struct grown {
        tllm_verdict verdict;
        uint64_t more[2];
    } grown[8];
    memset(grown, 0xee, sizeof grown);
    OK(tllm_session_submit(session, flow, 3));
    OK(tllm_engine_run_pending(engine, NULL));
    OK(tllm_session_poll(session, &grown[0].verdict, sizeof grown[0], 8, &count));
    CHECK(count == 2 && grown[0].verdict.id == 3 && grown[1].verdict.position == 1);
    CHECK(grown[0].more[0] == 0 && grown[0].more[1] == 0 && grown[1].more[1] == 0);
    CHECK(grown[2].more[0] == 0xeeeeeeeeeeeeeeeeu);
    OK(tllm_flow_free(flow));
    OK(tllm_session_free(session));
    OK(tllm_engine_free(engine));
}

/* An answer that found no room is dropped like any other one: with its flow, or with its session. */
static void dropped_without_room(void)
{
    tllm_engine *engine = engine_with(inline_settings);
    tllm_session *session = session_of(engine);
    tllm_flow *flows[3] = {flow_of(engine, 3, 1), flow_of(engine, 3, 2), flow_of(engine, 3, 3)};
    tllm_verdict verdicts[16];
    size_t count = 0;
    for (uint64_t id = 0; id < 3; id++) {
        OK(tllm_session_submit(session, flows[id], id));
    }
    OK(tllm_engine_run_pending(engine, NULL));
    OK(tllm_session_poll(session, verdicts, sizeof verdicts[0], 3, &count));
    CHECK(count == 2 && verdicts[0].id == 0 && in_flight(session) == 2);
    OK(tllm_flow_free(flows[1]));
    OK(tllm_session_poll(session, verdicts, sizeof verdicts[0], 3, &count));
    CHECK(count == 2 && verdicts[0].id == 2 && in_flight(session) == 0);
    tllm_counters counters = counters_of(engine);
    CHECK(counters.done == 2 && counters.abandoned == 1);
    OK(tllm_session_submit(session, flows[0], 3));
    OK(tllm_session_submit(session, flows[2], 4));
    OK(tllm_engine_run_pending(engine, NULL));
    OK(tllm_session_poll(session, verdicts, sizeof verdicts[0], 3, &count));
    CHECK(count == 2 && verdicts[0].id == 3);
    OK(tllm_session_free(session));
    counters = counters_of(engine);
    CHECK(counters.done == 3 && counters.abandoned == 2 && counters.in_flight == 0);
    OK(tllm_flow_free(flows[0]));
    OK(tllm_flow_free(flows[2]));
    OK(tllm_engine_free(engine));
}

/* A session that is freed while a thread waits in it wakes that thread. */
static void *wait_long(void *session)
{
    tllm_verdict verdicts[8];
    size_t count = 0;
    int32_t status = TLLM_ERR_BUSY;
    while (status == TLLM_ERR_BUSY) {
        status = tllm_session_wait(session, UINT64_MAX, verdicts, sizeof verdicts[0], 8, &count);
    }
    CHECK(status == TLLM_PENDING && count == 0);
    return NULL;
}

static void freed_while_waiting(void)
{
    static const char *const settings[] = {"engine.workers=1", NULL};
    tllm_engine *engine = engine_with(settings);
    tllm_session *session = session_of(engine);
    tllm_flow *flow = flow_of(engine, 3, 1);
    pthread_t waiting;
    tllm_verdict verdicts[8];
    size_t count = 0;
    /* Not started: the answer does not come. */
    OK(tllm_session_submit(session, flow, 1));
    CHECK(pthread_create(&waiting, NULL, wait_long, session) == 0);
    while (tllm_session_poll(session, verdicts, sizeof verdicts[0], 8, &count) != TLLM_ERR_BUSY) {
        sleep_us(100);
    }
    STATUS(TLLM_RUNNING, tllm_session_free(session));
    CHECK(pthread_join(waiting, NULL) == 0);
    STATUS(TLLM_ERR_HANDLE, tllm_session_free(session));
    tllm_counters counters = counters_of(engine);
    CHECK(counters.abandoned == 1 && counters.in_flight == 0);
    OK(tllm_flow_free(flow));
    OK(tllm_engine_free(engine));
}

/* Verdicts of flows that were freed or emptied meanwhile do not come. */
static void dropped(void)
{
    tllm_engine *engine = engine_with(inline_settings);
    tllm_session *session = session_of(engine);
    tllm_flow *kept = flow_of(engine, 3, 1), *freed = flow_of(engine, 3, 2), *emptied = flow_of(engine, 3, 3);
    tllm_flow_info info;
    tllm_verdict verdicts[16];
    size_t count = 0;
    OK(tllm_flow_info_init(&info, sizeof info));
    /* Before they are judged. */
    OK(tllm_session_submit(session, kept, 1));
    OK(tllm_session_submit(session, freed, 2));
    OK(tllm_session_submit(session, emptied, 3));
    OK(tllm_flow_free(freed));
    OK(tllm_flow_reset(emptied, &info));
    feed(emptied, 2, 4);
    OK(tllm_session_submit(session, emptied, 4));
    OK(tllm_engine_run_pending(engine, NULL));
    OK(tllm_session_poll(session, verdicts, sizeof verdicts[0], 16, &count));
    CHECK(count == 4 && in_flight(session) == 0);
    for (size_t at = 0; at < count; at++) {
        CHECK(verdicts[at].id == 1 || verdicts[at].id == 4);
    }
    tllm_counters counters = counters_of(engine);
    CHECK(counters.submitted == 4 && counters.done == 2 && counters.abandoned == 2 && counters.in_flight == 0);
    /* After they were judged, before the answers are taken. */
    OK(tllm_session_submit(session, kept, 5));
    OK(tllm_session_submit(session, emptied, 6));
    OK(tllm_engine_run_pending(engine, NULL));
    OK(tllm_flow_free(emptied));
    OK(tllm_session_poll(session, verdicts, sizeof verdicts[0], 16, &count));
    CHECK(count == 2 && verdicts[0].id == 5 && in_flight(session) == 0);
    OK(tllm_session_submit(session, kept, 7));
    OK(tllm_engine_run_pending(engine, NULL));
    OK(tllm_flow_free(kept));
    STATUS(TLLM_PENDING, tllm_session_poll(session, verdicts, sizeof verdicts[0], 16, &count));
    CHECK(count == 0 && in_flight(session) == 0);
    counters = counters_of(engine);
    CHECK(counters.submitted == 7 && counters.done == 3 && counters.abandoned == 4);
    /* A session that goes takes its flows with it. */
    kept = flow_of(engine, 3, 1);
    OK(tllm_session_submit(session, kept, 8));
    OK(tllm_session_free(session));
    OK(tllm_engine_run_pending(engine, NULL));
    counters = counters_of(engine);
    CHECK(counters.abandoned == 5 && counters.in_flight == 0 && counters.waiting == 0);
    OK(tllm_flow_free(kept));
    OK(tllm_engine_free(engine));
}

/* A flow at its end: the verdicts come also when it is freed or emptied before them. */
static void last(void)
{
    tllm_engine *engine = engine_with(inline_settings);
    tllm_session *session = session_of(engine);
    tllm_flow *ended = flow_of(engine, 3, 1), *emptied = flow_of(engine, 3, 2);
    tllm_flow_info info;
    tllm_verdict verdicts[16];
    size_t count = 0;
    OK(tllm_flow_info_init(&info, sizeof info));
    OK(tllm_session_submit_last(session, ended, 1));
    OK(tllm_session_submit(session, ended, 2));
    OK(tllm_session_submit_last(session, emptied, 3));
    OK(tllm_flow_free(ended));
    OK(tllm_flow_reset(emptied, &info));
    STATUS(TLLM_ERR_HANDLE, tllm_session_submit_last(session, ended, 4));
    OK(tllm_engine_run_pending(engine, NULL));
    OK(tllm_session_poll(session, verdicts, sizeof verdicts[0], 16, &count));
    CHECK(count == 4 && in_flight(session) == 0);
    for (size_t at = 0; at < count; at++) {
        CHECK(verdicts[at].id == 1 || verdicts[at].id == 3);
    }
    tllm_counters counters = counters_of(engine);
    CHECK(counters.submitted == 3 && counters.done == 2 && counters.abandoned == 1 && counters.in_flight == 0);
    tllm_latency latency;
    OK(tllm_engine_latency(engine, &latency, sizeof latency));
    CHECK(latency.count == 2 && latency.sum_us > 0 && latency.median_us > 0);
    CHECK(latency.median_us <= latency.p90_us && latency.p90_us <= latency.p99_us && latency.reserved[3] == 0);
    OK(tllm_flow_free(emptied));
    OK(tllm_session_free(session));
    OK(tllm_engine_free(engine));
}

static void need_more(void)
{
    static const char *const settings[] = {"engine.workers=0", "flow.min_packets=3", NULL};
    tllm_engine *engine = engine_with(settings);
    tllm_session *session = session_of(engine);
    tllm_flow *few = flow_of(engine, 2, 1), *enough = flow_of(engine, 3, 1);
    const tllm_flow *flows[3] = {few, enough, NULL};
    tllm_verdict verdicts[16];
    size_t count = 0;
    STATUS(TLLM_NEED_MORE, tllm_session_submit(session, few, 1));
    CHECK(counters_of(engine).submitted == 0);
    OK(tllm_session_submit(session, enough, 2));
    flows[2] = flow_of(engine, 1, 1);
    OK(tllm_session_classify(session, flows, 3, verdicts, sizeof verdicts[0], 16, &count));
    CHECK(count == 4);
    CHECK(verdicts[0].id == 0 && verdicts[0].status == TLLM_NEED_MORE && verdicts[0].entries == 1);
    CHECK(verdicts[1].id == 1 && verdicts[2].id == 1 && verdicts[2].position == 1);
    CHECK(verdicts[3].id == 2 && verdicts[3].status == TLLM_NEED_MORE);
    feed(few, 1, 1);
    OK(tllm_session_submit(session, few, 1));
    OK(tllm_flow_free((tllm_flow *)(uintptr_t)flows[2]));
    OK(tllm_flow_free(few));
    OK(tllm_flow_free(enough));
    OK(tllm_session_free(session));
    OK(tllm_engine_free(engine));
}

static void requests(void)
{
    static const char request[] = "GET /index.php?id=1 HTTP/1.1\r\nHost: example.org\r\n\r\n";
    static const char text[] = "this is no request at all";
    tllm_engine *engine = engine_with(inline_settings);
    tllm_session *session = session_of(engine);
    tllm_verdict queued[8], classified[8];
    size_t count = 0, entries = 0;
    const uint8_t *bytes = (const uint8_t *)request;
    OK(tllm_session_submit_request(session, bytes, sizeof request - 1, 11));
    OK(tllm_engine_run_pending(engine, NULL));
    OK(tllm_session_poll(session, queued, sizeof queued[0], 8, &count));
    CHECK(count == 1 && queued[0].id == 11 && queued[0].task == 2);
    CHECK(strcmp(queued[0].task_name, "request_task") == 0);
    OK(tllm_session_classify_request(session, bytes, sizeof request - 1, classified, sizeof classified[0], 8, &entries));
    CHECK(entries == 1 && same_verdict(&queued[0], &classified[0]));
    uint64_t submitted = counters_of(engine).submitted;
    FAILS(TLLM_ERR_REQUEST, "", tllm_session_submit_request(session, (const uint8_t *)text, sizeof text - 1, 12));
    STATUS(TLLM_ERR_REQUEST, tllm_session_submit_request(session, NULL, 0, 12));
    STATUS(TLLM_ERR_NULL, tllm_session_submit_request(session, NULL, 1, 12));
    STATUS(TLLM_ERR_ARGUMENT, tllm_session_submit_request(session, bytes, SIZE_MAX, 12));
    STATUS(TLLM_ERR_REQUEST,
           tllm_session_classify_request(session, (const uint8_t *)text, sizeof text - 1, classified, sizeof classified[0], 8, &entries));
    CHECK(counters_of(engine).submitted == submitted);
    /* A long one is read as far as the model looks. */
    size_t size = 1 << 20;
    char *long_one = malloc(size);
    CHECK(long_one != NULL);
    memset(long_one, 'a', size);
    memcpy(long_one, "POST /a HTTP/1.1\r\n\r\n", 20);
    OK(tllm_session_submit_request(session, (const uint8_t *)long_one, size, 13));
    free(long_one);
    OK(tllm_engine_run_pending(engine, NULL));
    OK(tllm_session_poll(session, queued, sizeof queued[0], 8, &count));
    CHECK(count == 1 && queued[0].id == 13);
    OK(tllm_session_free(session));
    OK(tllm_engine_free(engine));
}

/* Where no chosen task applies, the answer says so. */
static void not_applicable(void)
{
    static const char *const settings[] = {"engine.workers=0", "engine.tasks=request_task", NULL};
    static const char *const flows_only[] = {"engine.workers=0", "engine.tasks=second_task", NULL};
    tllm_engine *engine = engine_with(settings);
    tllm_session *session = session_of(engine);
    tllm_flow *flow = flow_of(engine, 3, 1);
    const tllm_flow *flows[1] = {flow};
    tllm_verdict verdicts[8];
    size_t count = 0;
    OK(tllm_session_submit(session, flow, 5));
    OK(tllm_session_wait(session, 1000000, verdicts, sizeof verdicts[0], 8, &count));
    CHECK(count == 1 && verdicts[0].status == TLLM_NOT_APPLICABLE && verdicts[0].id == 5 && verdicts[0].entries == 1);
    CHECK(verdicts[0].task_name[0] == '\0' && verdicts[0].label_name[0] == '\0' && verdicts[0].score == 0);
    OK(tllm_session_classify(session, flows, 1, verdicts, sizeof verdicts[0], 8, &count));
    CHECK(count == 1 && verdicts[0].status == TLLM_NOT_APPLICABLE && verdicts[0].id == 0);
    OK(tllm_flow_free(flow));
    OK(tllm_session_free(session));
    OK(tllm_engine_free(engine));
    engine = engine_with(flows_only);
    session = session_of(engine);
    const uint8_t *request = (const uint8_t *)"GET / HTTP/1.1\r\n\r\n";
    OK(tllm_session_classify_request(session, request, 18, verdicts, sizeof verdicts[0], 8, &count));
    CHECK(count == 1 && verdicts[0].status == TLLM_NOT_APPLICABLE);
    flow = flow_of(engine, 3, 1);
    flows[0] = flow;
    OK(tllm_session_classify(session, flows, 1, verdicts, sizeof verdicts[0], 8, &count));
    CHECK(count == 1 && strcmp(verdicts[0].task_name, "second_task") == 0 && verdicts[0].task == 1);
    OK(tllm_flow_free(flow));
    OK(tllm_session_free(session));
    OK(tllm_engine_free(engine));
}

static void deadlines(void)
{
    static const char *const settings[] = {"engine.workers=0", "engine.deadline_us=1", NULL};
    tllm_engine *engine = engine_with(settings);
    tllm_session *session = session_of(engine);
    tllm_flow *flow = flow_of(engine, 3, 1);
    tllm_verdict verdicts[8];
    size_t count = 0;
    OK(tllm_session_submit(session, flow, 5));
    sleep_us(2000);
    OK(tllm_engine_run_pending(engine, NULL));
    OK(tllm_session_poll(session, verdicts, sizeof verdicts[0], 8, &count));
    CHECK(count == 1 && verdicts[0].status == TLLM_EXPIRED && verdicts[0].id == 5);
    CHECK(counters_of(engine).expired == 1);
    OK(tllm_flow_free(flow));
    OK(tllm_session_free(session));
    OK(tllm_engine_free(engine));
}

static void classify_misuse(void)
{
    tllm_engine *engine = engine_with(inline_settings);
    tllm_session *session = session_of(engine);
    tllm_flow *flow = flow_of(engine, 3, 1);
    const tllm_flow *twice[2] = {flow, flow}, *wrong[2] = {flow, (const tllm_flow *)session}, *null[2] = {flow, NULL};
    tllm_verdict verdicts[8];
    size_t count = 33;
    memset(verdicts, 0xee, sizeof verdicts);
    FAILS(TLLM_ERR_BUSY, "flow", tllm_session_classify(session, twice, 2, verdicts, sizeof verdicts[0], 8, &count));
    STATUS(TLLM_ERR_HANDLE, tllm_session_classify(session, wrong, 2, verdicts, sizeof verdicts[0], 8, &count));
    STATUS(TLLM_ERR_NULL, tllm_session_classify(session, null, 2, verdicts, sizeof verdicts[0], 8, &count));
    STATUS(TLLM_ERR_NULL, tllm_session_classify(session, NULL, 2, verdicts, sizeof verdicts[0], 8, &count));
    STATUS(TLLM_ERR_BUFFER, tllm_session_classify(session, twice, 2, verdicts, sizeof verdicts[0], 5, &count));
    CHECK(count == 6);
    count = 33;
    STATUS(TLLM_ERR_NULL, tllm_session_classify(session, twice, 1, NULL, sizeof verdicts[0], 8, &count));
    STATUS(TLLM_ERR_NULL, tllm_session_classify(session, twice, 1, verdicts, sizeof verdicts[0], 8, NULL));
    STATUS(TLLM_ERR_STRUCT, tllm_session_classify(session, twice, 1, verdicts, 0, 8, &count));
    int32_t status = tllm_session_classify(session, twice, SIZE_MAX, verdicts, sizeof verdicts[0], 8, &count);
    CHECK(status == TLLM_ERR_BUFFER || status == TLLM_ERR_LIMIT);
    CHECK(count == 33 && verdicts[0].status == (int32_t)0xeeeeeeee);
    /* None of the failures left the flow or the session in use. */
    OK(tllm_session_classify(session, twice, 1, verdicts, sizeof verdicts[0], 3, &count));
    CHECK(count == 2);
    /* Nothing to judge. */
    OK(tllm_session_classify(session, NULL, 0, verdicts, sizeof verdicts[0], 8, &count));
    CHECK(count == 0);
    count = 5;
    OK(tllm_session_classify(session, NULL, 0, NULL, sizeof verdicts[0], 0, &count));
    CHECK(count == 0);
    OK(tllm_flow_free(flow));
    OK(tllm_session_free(session));
    OK(tllm_engine_free(engine));
}

static void limit(void)
{
    static const char *const settings[] = {"engine.workers=0", "engine.queue_flows=1", NULL};
    enum { MOST = 1024 };
    static tllm_session *sessions[MOST];
    tllm_engine *engine = engine_with(settings);
    tllm_session *more = NULL;
    for (size_t at = 0; at < MOST; at++) {
        OK(tllm_session_new(engine, &sessions[at]));
    }
    FAILS(TLLM_ERR_LIMIT, "1024", tllm_session_new(engine, &more));
    CHECK(more == NULL);
    OK(tllm_session_free(sessions[5]));
    OK(tllm_session_new(engine, &sessions[5]));
    for (size_t at = 0; at < MOST; at++) {
        OK(tllm_session_free(sessions[at]));
    }
    OK(tllm_engine_free(engine));
}

int main(int argc, char **argv)
{
    begin(argc, argv, 60);
    without_workers();
    with_workers();
    descriptor();
    full_queue();
    capacities();
    dropped();
    dropped_without_room();
    freed_while_waiting();
    last();
    need_more();
    requests();
    not_applicable();
    deadlines();
    classify_misuse();
    limit();
    return 0;
}
