/* The life of an engine. */
#include "check.h"

static const char *const two_workers[] = {"engine.workers=2", NULL};
static const char *const no_workers[] = {"engine.workers=0", NULL};

/* Opening, making, submitting start no thread; starting does; stopping ends them. */
static void start_and_stop(void)
{
    unsigned before = threads();
    tllm_engine *engine = engine_with(two_workers);
    tllm_session *session = session_of(engine);
    tllm_flow *flow = flow_of(engine, 4, 1);
    size_t judged = 9;
    for (uint64_t id = 0; id < 10; id++) {
        OK(tllm_session_submit(session, flow, id));
    }
    OK(tllm_engine_run_pending(engine, &judged));
    CHECK(judged == 0);
    CHECK(threads() == before && counters_of(engine).waiting == 10);
    tllm_verdict verdicts[8];
    size_t count = 0;
    STATUS(TLLM_PENDING, tllm_session_wait(session, 20000, verdicts, sizeof verdicts[0], 8, &count));
    OK(tllm_engine_start(engine));
    CHECK(threads() == before + 2);
    OK(tllm_engine_start(engine));
    CHECK(threads() == before + 2);
    unsigned seen[10] = {0};
    take_answers(session, 10, seen, 10);
    OK(tllm_engine_stop(engine, 10000000));
    CHECK(threads_become(before));
    OK(tllm_engine_stop(engine, 0));
    STATUS(TLLM_ERR_STOPPED, tllm_engine_start(engine));
    FAILS(TLLM_ERR_STOPPED, "", tllm_session_submit(session, flow, 11));
    STATUS(TLLM_ERR_STOPPED, tllm_session_submit_request(session, (const uint8_t *)"GET / HTTP/1.1\r\n\r\n", 18, 11));
    tllm_session *late = NULL;
    STATUS(TLLM_ERR_STOPPED, tllm_session_new(engine, &late));
    CHECK(late == NULL);
    STATUS(TLLM_ERR_STOPPED, tllm_engine_activate(engine, path_of(OTHER)));
    STATUS(TLLM_PENDING, tllm_session_wait(session, UINT64_MAX, verdicts, sizeof verdicts[0], 8, &count));
    /* What it knows can still be asked. */
    tllm_counters counters = counters_of(engine);
    CHECK(counters.submitted == 12 && counters.done == 10 && counters.abandoned == 2);
    OK(tllm_flow_free(flow));
    OK(tllm_session_free(session));
    OK(tllm_engine_free(engine));
    CHECK(threads_become(before));
}

/* What waits when the time is over is abandoned, and told. */
static void stop_without_time(void)
{
    tllm_engine *engine = engine_with(two_workers);
    tllm_session *session = session_of(engine);
    tllm_flow *flow = flow_of(engine, 4, 1);
    for (uint64_t id = 0; id < 10; id++) {
        OK(tllm_session_submit(session, flow, id));
    }
    /* It was never started. */
    STATUS(TLLM_ABANDONED, tllm_engine_stop(engine, 0));
    tllm_verdict verdicts[64];
    size_t count = 0, found = 0;
    while (tllm_session_wait(session, 1000000, verdicts, sizeof verdicts[0], 64, &count) == TLLM_OK) {
        for (size_t at = 0; at < count; at++) {
            CHECK(verdicts[at].status == TLLM_ABANDONED && verdicts[at].entries == 1);
        }
        found += count;
    }
    CHECK(found == 10);
    tllm_counters counters = counters_of(engine);
    CHECK(counters.abandoned == 10 && counters.waiting == 0 && counters.in_flight == 0);
    OK(tllm_flow_free(flow));
    OK(tllm_session_free(session));
    /* It stays so. */
    STATUS(TLLM_ABANDONED, tllm_engine_stop(engine, 0));
    STATUS(TLLM_ABANDONED, tllm_engine_free(engine));
}

/* Answers that have come are there after the stop, and after the engine's handle has gone. */
static void answers_after_the_end(void)
{
    tllm_engine *engine = engine_with(two_workers);
    tllm_session *session = session_of(engine);
    tllm_flow *flow = flow_of(engine, 4, 1);
    OK(tllm_engine_start(engine));
    for (uint64_t id = 0; id < 50; id++) {
        OK(tllm_session_submit(session, flow, id));
    }
    OK(tllm_engine_stop(engine, UINT64_MAX));
    OK(tllm_engine_free(engine));
    STATUS(TLLM_ERR_HANDLE, tllm_engine_start(engine));
    unsigned seen[50] = {0};
    take_answers(session, 50, seen, 50);
    feed(flow, 2, 3);
    STATUS(TLLM_ERR_STOPPED, tllm_session_submit(session, flow, 1));
    OK(tllm_flow_free(flow));
    OK(tllm_session_free(session));
}

/* Model, engine, session, flow and config can be freed in any order. */
static void free_in_any_order(void)
{
    for (unsigned order = 0; order < 120; order += slower() == 1 ? 1 : 7) {
        tllm_model *model = open_small();
        tllm_config *config = config_of(order % 2 ? two_workers : no_workers);
        tllm_engine *engine = NULL;
        OK(tllm_engine_new(model, config, &engine));
        tllm_session *session = session_of(engine);
        tllm_flow *flow = flow_of(engine, 3, order);
        if (order % 3 != 0) {
            OK(tllm_engine_start(engine));
        }
        OK(tllm_session_submit(session, flow, 1));
        unsigned left[5] = {0, 1, 2, 3, 4};
        unsigned number = order;
        for (unsigned count = 5; count > 0; count--) {
            unsigned at = number % count;
            unsigned which = left[at];
            number /= count;
            left[at] = left[count - 1];
            switch (which) {
            case 0: OK(tllm_model_free(model)); break;
            case 1: OK(tllm_config_free(config)); break;
            case 2: {
                int32_t status = tllm_engine_free(engine);
                CHECK(status == TLLM_OK || status == TLLM_ABANDONED);
                break;
            }
            case 3: OK(tllm_session_free(session)); break;
            default: OK(tllm_flow_free(flow)); break;
            }
        }
        STATUS(TLLM_ERR_HANDLE, tllm_model_free(model));
        STATUS(TLLM_ERR_HANDLE, tllm_config_free(config));
        STATUS(TLLM_ERR_HANDLE, tllm_engine_free(engine));
        STATUS(TLLM_ERR_HANDLE, tllm_session_free(session));
        STATUS(TLLM_ERR_HANDLE, tllm_flow_free(flow));
    }
}

static void settings(void)
{
    static const char *const task[] = {"engine.workers=0", "engine.tasks=no_such_task", NULL};
    static const char *const budget[] = {"engine.workers=0", "engine.memory_bytes_max=1000", NULL};
    static const char *const odd[] = {"engine.workers=3", "engine.batch_tokens=64", "engine.queue_flows=1",
                                      "engine.batch_wait_us=100", NULL};
    tllm_model *model = open_small();
    tllm_engine *const untouched = (tllm_engine *)(uintptr_t)80;
    tllm_engine *engine = untouched;
    tllm_config *config = config_of(task);
    FAILS(TLLM_ERR_TASK, "no_such_task", tllm_engine_new(model, config, &engine));
    OK(tllm_config_free(config));
    config = config_of(budget);
    FAILS(TLLM_ERR_BUDGET, "1000", tllm_engine_new(model, config, &engine));
    OK(tllm_config_free(config));
    CHECK(engine == untouched);
    STATUS(TLLM_ERR_HANDLE, tllm_engine_new(model, config, &engine));
    STATUS(TLLM_ERR_NULL, tllm_engine_new(NULL, NULL, &engine));
    STATUS(TLLM_ERR_NULL, tllm_engine_new(model, NULL, NULL));
    config = config_of(odd);
    OK(tllm_engine_new(model, config, &engine));
    /* What was made does not look at its config any more. */
    OK(tllm_config_set(config, "engine.queue_flows", "2000"));
    OK(tllm_config_free(config));
    tllm_session *session = session_of(engine);
    tllm_flow *flow = flow_of(engine, 20, 1);
    OK(tllm_session_submit(session, flow, 1));
    STATUS(TLLM_QUEUE_FULL, tllm_session_submit(session, flow, 2));
    OK(tllm_engine_start(engine));
    take_answers(session, 1, NULL, 0);
    OK(tllm_flow_free(flow));
    OK(tllm_session_free(session));
    OK(tllm_engine_free(engine));
    /* Without a config: the defaults. */
    OK(tllm_engine_new(model, NULL, &engine));
    OK(tllm_engine_free(engine));
    OK(tllm_engine_free(NULL));
    OK(tllm_model_free(model));
}

/* The small model is opened without a config, so it has no weights for a device, whatever this machine has. */
static void device(void)
{
    static const char *const number[] = {"engine.workers=0", "engine.device=cuda:63", NULL};
    static const char *const any[] = {"engine.workers=1", "engine.device=auto", NULL};
    static const char *const none[] = {"engine.workers=0", NULL};
    tllm_engine *engine = engine_with(none);
    char text[512];
    size_t needed = 0;
    OK(tllm_engine_start(engine));
    OK(tllm_engine_device(engine, text, sizeof text, &needed));
    CHECK(strcmp(text, "cpu") == 0 && needed == 4);
    OK(tllm_engine_free(engine));
    engine = engine_with(number);
    FAILS(TLLM_ERR_DEVICE, "cuda:63", tllm_engine_start(engine));
    OK(tllm_engine_free(engine));
    engine = engine_with(any);
    OK(tllm_engine_device(engine, text, sizeof text, NULL));
    CHECK(strstr(text, "not started") != NULL);
    OK(tllm_engine_start(engine));
    OK(tllm_engine_device(engine, text, sizeof text, NULL));
    CHECK(strncmp(text, "cpu (", 5) == 0 && strstr(text, "not started") == NULL);
    tllm_session *session = session_of(engine);
    tllm_flow *flow = flow_of(engine, 5, 1);
    OK(tllm_session_submit(session, flow, 1));
    take_answers(session, 1, NULL, 0);
    tllm_counters counters = counters_of(engine);
    CHECK(counters.done == 1 && counters.batches == 1 && counters.device_batches == 0 && counters.device_failures == 0);
    OK(tllm_flow_free(flow));
    OK(tllm_session_free(session));
    OK(tllm_engine_free(engine));
}

static void memory_and_metrics(void)
{
    tllm_engine *engine = engine_with(two_workers);
    tllm_memory before, after;
    memset(&before, 0xee, sizeof before);
    OK(tllm_engine_memory(engine, &before, sizeof before));
    CHECK(before.model_bytes > 0 && before.worker_bytes > 0 && before.reserved[1] == 0 && before.flow_bytes == 0);
    CHECK(before.device_bytes == 0);
    tllm_session *session = session_of(engine);
    tllm_flow *flow = flow_of(engine, 20, 1);
    tllm_flow_stats stats;
    OK(tllm_engine_memory(engine, &after, sizeof after));
    OK(tllm_flow_describe(flow, &stats, sizeof stats));
    CHECK(after.queue_bytes > before.queue_bytes && after.flow_bytes > 0);
    CHECK(after.flow_bytes >= stats.memory_bytes);
    STATUS(TLLM_ERR_STRUCT, tllm_engine_memory(engine, &after, sizeof after - 1));
    STATUS(TLLM_ERR_NULL, tllm_engine_memory(engine, NULL, sizeof after));
    STATUS(TLLM_ERR_STRUCT, tllm_engine_counters(engine, &(tllm_counters){0}, 1));
    STATUS(TLLM_ERR_NULL, tllm_engine_counters(engine, NULL, sizeof(tllm_counters)));
    OK(tllm_session_submit(session, flow, 1));
    OK(tllm_engine_start(engine));
    take_answers(session, 1, NULL, 0);
    size_t needed = 0;
    STATUS(TLLM_ERR_BUFFER, tllm_engine_metrics(engine, NULL, 0, &needed));
    char *text = malloc(needed + 64);
    CHECK(text != NULL && needed > 500);
    OK(tllm_engine_metrics(engine, text, needed + 64, &needed));
    CHECK(strlen(text) + 1 == needed && text[needed - 2] == '\n');
    CHECK(strstr(text, "# TYPE trafficllm_") != NULL && strstr(text, "# HELP trafficllm_") != NULL);
    for (const char *line = text; *line != '\0'; line = strchr(line, '\n') + 1) {
        CHECK(strncmp(line, "# ", 2) == 0 || strncmp(line, "trafficllm_", 11) == 0);
    }
    free(text);
    tllm_model *active = NULL;
    OK(tllm_engine_model(engine, &active));
    tllm_model_info info;
    OK(tllm_model_describe(active, &info, sizeof info));
    CHECK(info.tasks == 3);
    OK(tllm_model_free(active));
    OK(tllm_flow_free(flow));
    OK(tllm_session_free(session));
    OK(tllm_engine_free(engine));
}

/* Threads that submit, take, free flows of each other and ask for counters, all at once. */
enum { SUBMITTERS = 3, ROUNDS = 400, SHARED = 64 };
static tllm_engine *shared_engine;
static tllm_flow *shared_flows[SHARED];
static pthread_mutex_t shared_lock = PTHREAD_MUTEX_INITIALIZER;

static void *submit_and_take(void *argument)
{
    unsigned own = (unsigned)(uintptr_t)argument;
    tllm_session *session = session_of(shared_engine);
    tllm_verdict verdicts[64];
    size_t count = 0;
    for (unsigned round = 0; round < rounds(ROUNDS); round++) {
        tllm_flow *flow = flow_of(shared_engine, 1 + round % 5, round);
        int32_t status = tllm_session_submit(session, flow, (uint64_t)own << 32 | round);
        CHECK(status == TLLM_OK || status == TLLM_QUEUE_FULL);
        /* Another thread frees it some time. */
        pthread_mutex_lock(&shared_lock);
        tllm_flow *old = shared_flows[(round * 7 + own) % SHARED];
        shared_flows[(round * 7 + own) % SHARED] = flow;
        pthread_mutex_unlock(&shared_lock);
        OK(tllm_flow_free(old));
        status = tllm_session_poll(session, verdicts, sizeof verdicts[0], 64, &count);
        CHECK(status == TLLM_OK || status == TLLM_PENDING);
        for (size_t at = 0; at < count; at++) {
            CHECK(verdicts[at].id >> 32 == own && (uint32_t)verdicts[at].id <= round);
        }
        if (round % 50 == 0) {
            (void)counters_of(shared_engine);
        }
    }
    OK(tllm_session_free(session));
    return NULL;
}

static void many_threads(void)
{
    static const char *const settings[] = {"engine.workers=2", "engine.queue_flows=100", NULL};
    pthread_t submitters[SUBMITTERS];
    shared_engine = engine_with(settings);
    OK(tllm_engine_start(shared_engine));
    for (uintptr_t own = 0; own < SUBMITTERS; own++) {
        CHECK(pthread_create(&submitters[own], NULL, submit_and_take, (void *)own) == 0);
    }
    for (size_t own = 0; own < SUBMITTERS; own++) {
        CHECK(pthread_join(submitters[own], NULL) == 0);
    }
    for (size_t at = 0; at < SHARED; at++) {
        OK(tllm_flow_free(shared_flows[at]));
        shared_flows[at] = NULL;
    }
    int32_t status = tllm_engine_stop(shared_engine, 10000000);
    CHECK(status == TLLM_OK || status == TLLM_ABANDONED);
    tllm_counters counters = counters_of(shared_engine);
    CHECK(counters.submitted == SUBMITTERS * rounds(ROUNDS) && counters.in_flight == 0 && counters.flows == 0);
    CHECK(counters.failed == 0 && counters.worker_panics == 0);
    OK(tllm_engine_free(shared_engine));
}

int main(int argc, char **argv)
{
    begin(argc, argv, 60);
    start_and_stop();
    stop_without_time();
    answers_after_the_end();
    free_in_any_order();
    settings();
    device();
    memory_and_metrics();
    many_threads();
    return 0;
}
