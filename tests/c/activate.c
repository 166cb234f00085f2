/* Changing the model while flows come. */
#include "check.h"

static char small_id[TLLM_MODEL_ID_BYTES], other_id[TLLM_MODEL_ID_BYTES];

static void id_of(const char *path, char *id)
{
    tllm_model *model = NULL;
    tllm_model_info info;
    OK(tllm_model_open(path_of(path), NULL, &model));
    OK(tllm_model_describe(model, &info, sizeof info));
    memcpy(id, info.id, sizeof info.id);
    OK(tllm_model_free(model));
}

/* Odd generations are the small model's, even ones the other's. */
static void check_model(const tllm_verdict *entry)
{
    int is_other = entry->generation % 2 == 0;
    CHECK(strcmp(entry->model_id, is_other ? other_id : small_id) == 0);
    CHECK((strncmp(entry->label_name, "other ", 6) == 0) == is_other);
    if (entry->task == 1) {
        CHECK(strcmp(entry->task_name, is_other ? "third_task" : "second_task") == 0);
    }
}

static void good_and_bad(void)
{
    static const char *const settings[] = {"engine.workers=0", NULL};
    tllm_engine *engine = engine_with(settings);
    tllm_session *session = session_of(engine);
    tllm_flow *flow = flow_of(engine, 5, 1);
    const tllm_flow *flows[1] = {flow};
    tllm_verdict before[8], entries[8];
    size_t count = 0;
    OK(tllm_session_classify(session, flows, 1, before, sizeof before[0], 8, &count));
    CHECK(count == 2 && before[0].generation == 1);
    /* A bad bundle changes nothing, is counted, and the text says why. */
    static const struct {
        const char *name;
        const char *part;
        int32_t status;
    } bad[] = {
        {"hostile/bundles/file-hash.tllm", "sha256", TLLM_ERR_MODEL},
        {"hostile/bundles/packed-magic.tllm", "magic", TLLM_ERR_MODEL},
        {"hostile/bundles/self-test-score.tllm", "self_test", TLLM_ERR_MODEL},
        {"no-such-bundle", "no-such-bundle", TLLM_ERR_IO},
    };
    for (size_t at = 0; at < COUNT(bad); at++) {
        FAILS(bad[at].status, bad[at].part, tllm_engine_activate(engine, path_of(bad[at].name)));
        tllm_counters counters = counters_of(engine);
        CHECK(counters.generation == 1 && counters.activations == 0 && counters.activations_failed == at + 1);
        OK(tllm_session_classify(session, flows, 1, entries, sizeof entries[0], 8, &count));
        CHECK(count == 2 && entries[0].generation == 1 && same_verdict(&entries[0], &before[0]));
    }
    /* A flow that waits finishes on the model before. */
    OK(tllm_session_submit(session, flow, 1));
    OK(tllm_engine_activate(engine, path_of(OTHER)));
    OK(tllm_session_submit(session, flow, 2));
    OK(tllm_engine_run_pending(engine, NULL));
    OK(tllm_session_poll(session, entries, sizeof entries[0], 8, &count));
    CHECK(count == 4);
    for (size_t at = 0; at < count; at++) {
        CHECK(entries[at].generation == entries[at].id);
        check_model(&entries[at]);
        if (entries[at].id == 1) {
            CHECK(same_verdict(&entries[at], &before[entries[at].position]));
        }
    }
    /* And back, with a model that is open. */
    tllm_model *small = open_small(), *active = NULL;
    tllm_model_info info;
    OK(tllm_engine_activate_model(engine, small));
    OK(tllm_engine_model(engine, &active));
    OK(tllm_model_describe(active, &info, sizeof info));
    CHECK(strcmp(info.id, small_id) == 0);
    OK(tllm_model_free(active));
    OK(tllm_model_free(small));
    STATUS(TLLM_ERR_HANDLE, tllm_engine_activate_model(engine, small));
    STATUS(TLLM_ERR_NULL, tllm_engine_activate_model(engine, NULL));
    STATUS(TLLM_ERR_NULL, tllm_engine_activate(engine, NULL));
    OK(tllm_session_classify(session, flows, 1, entries, sizeof entries[0], 8, &count));
    CHECK(count == 2 && entries[0].generation == 3 && same_verdict(&entries[1], &before[1]));
    tllm_counters counters = counters_of(engine);
    CHECK(counters.generation == 3 && counters.activations == 2);
    OK(tllm_flow_free(flow));
    OK(tllm_session_free(session));
    OK(tllm_engine_free(engine));
}

static void a_task_that_is_gone(void)
{
    static const char *const settings[] = {"engine.workers=0", "engine.tasks=second_task", NULL};
    tllm_engine *engine = engine_with(settings);
    FAILS(TLLM_ERR_TASK, "second_task", tllm_engine_activate(engine, path_of(OTHER)));
    tllm_counters counters = counters_of(engine);
    CHECK(counters.generation == 1 && counters.activations_failed == 1);
    OK(tllm_engine_free(engine));
}

static void over_the_budget(void)
{
    tllm_model *model = open_small();
    tllm_engine *engine = NULL;
    tllm_memory memory;
    char bytes[32];
    static const char *const first[] = {"engine.workers=0", "engine.queue_flows=1", NULL};
    tllm_config *config = config_of(first);
    OK(tllm_engine_new(model, config, &engine));
    OK(tllm_engine_memory(engine, &memory, sizeof memory));
    OK(tllm_engine_free(engine));
    /* Room for one model, not for two. */
    snprintf(bytes, sizeof bytes, "%" PRIu64,
             memory.model_bytes + memory.model_bytes / 2 + memory.worker_bytes + memory.queue_bytes);
    OK(tllm_config_set(config, "engine.memory_bytes_max", bytes));
    OK(tllm_engine_new(model, config, &engine));
    FAILS(TLLM_ERR_BUDGET, bytes, tllm_engine_activate(engine, path_of(OTHER)));
    CHECK(counters_of(engine).generation == 1);
    OK(tllm_config_free(config));
    OK(tllm_model_free(model));
    OK(tllm_engine_free(engine));
}

/* A thread submits and takes while another one swaps, well and badly. */
static tllm_engine *engine_of_threads;
static volatile int is_over;

static void *submit_and_take(void *unused)
{
    (void)unused;
    tllm_session *session = session_of(engine_of_threads);
    tllm_flow *flow = flow_of(engine_of_threads, 6, 5);
    tllm_verdict verdicts[64];
    uint64_t next = 0;
    size_t count = 0;
    while (!is_over || next < rounds(200)) {
        int32_t status = tllm_session_submit(session, flow, next++);
        CHECK(status == TLLM_OK || status == TLLM_QUEUE_FULL);
        status = tllm_session_wait(session, next % 8 == 0 ? 1000 : 0, verdicts, sizeof verdicts[0], 64, &count);
        CHECK(status == TLLM_OK || status == TLLM_PENDING);
        for (size_t at = 0; at < count; at++) {
            CHECK(verdicts[at].status == TLLM_OK || verdicts[at].status == TLLM_ABSTAINED);
            CHECK(verdicts[at].id < next);
            check_model(&verdicts[at]);
        }
    }
    OK(tllm_flow_free(flow));
    OK(tllm_session_free(session));
    return NULL;
}

static void under_load(void)
{
    static const char *const settings[] = {"engine.workers=2", NULL};
    pthread_t submitters[2];
    engine_of_threads = engine_with(settings);
    OK(tllm_engine_start(engine_of_threads));
    for (size_t at = 0; at < 2; at++) {
        CHECK(pthread_create(&submitters[at], NULL, submit_and_take, NULL) == 0);
    }
    const unsigned all = rounds(20);
    for (unsigned round = 0; round < all; round++) {
        STATUS(TLLM_ERR_MODEL, tllm_engine_activate(engine_of_threads, path_of("hostile/bundles/gguf-cut.tllm")));
        OK(tllm_engine_activate(engine_of_threads, path_of(round % 2 ? SMALL : OTHER)));
        sleep_us(5000);
    }
    is_over = 1;
    for (size_t at = 0; at < 2; at++) {
        CHECK(pthread_join(submitters[at], NULL) == 0);
    }
    tllm_counters counters = counters_of(engine_of_threads);
    CHECK(counters.generation == all + 1 && counters.activations == all && counters.activations_failed == all);
    CHECK(counters.failed == 0);
    tllm_memory memory;
    OK(tllm_engine_memory(engine_of_threads, &memory, sizeof memory));
    int32_t status = tllm_engine_free(engine_of_threads);
    CHECK(status == TLLM_OK || status == TLLM_ABANDONED);
}

int main(int argc, char **argv)
{
    begin(argc, argv, 60);
    id_of(SMALL, small_id);
    id_of(OTHER, other_id);
    CHECK(strcmp(small_id, other_id) != 0);
    good_and_bad();
    a_task_that_is_gone();
    over_the_budget();
    under_load();
    return 0;
}
