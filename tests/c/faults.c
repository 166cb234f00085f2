/* Defects on order: every exported function catches a panic, and only what was in use is lost. The library is built with the feature
 * `faults`. */
#include "check.h"

extern void tllm_fault_panic_after(uint32_t calls);
extern void tllm_fault_panic_in_use_after(uint32_t uses);
extern int32_t tllm_fault_poison(tllm_engine *engine, uint64_t id);
extern int32_t tllm_fault_hold(tllm_engine *engine, uint64_t id);

static tllm_model *model;
static tllm_config *config;
static tllm_engine *engine;
static tllm_session *session;
static tllm_flow *flow;

static void make(void)
{
    static const char *const settings[] = {"engine.workers=0", NULL};
    model = open_small();
    config = config_of(settings);
    OK(tllm_engine_new(model, config, &engine));
    session = session_of(engine);
    flow = flow_of(engine, 3, 1);
}

static int32_t take(void *user, const tllm_verdict *verdicts, size_t count)
{
    (void)user, (void)verdicts, (void)count;
    return 0;
}

static int32_t take_subject(void *user, const tllm_subject *subject, const tllm_verdict *verdicts, size_t count)
{
    (void)user, (void)subject, (void)verdicts, (void)count;
    return 0;
}

/* The call panics before it has looked at anything; then it works. */
#define PANICS(call)                                                       \
    do {                                                                   \
        tllm_fault_panic_after(0);                                         \
        FAILS(TLLM_ERR_PANIC, "a defect on order", call);                  \
    } while (0)

static void every_function(void)
{
    static const uint8_t request[] = "GET / HTTP/1.1\r\n\r\n";
    tllm_verdict verdicts[16];
    tllm_config *made_config = NULL;
    tllm_model *made_model = NULL;
    tllm_engine *made_engine = NULL;
    tllm_session *made_session = NULL;
    tllm_flow *made_flow = NULL;
    tllm_flow_info info;
    tllm_packet packet;
    tllm_option option;
    tllm_model_info model_info;
    tllm_task_info task_info;
    tllm_counters counters;
    tllm_memory memory;
    tllm_latency latency;
    tllm_head head;
    tllm_flow_stats stats;
    tllm_subject subject;
    const tllm_flow *flows[1] = {flow};
    size_t size = 0, count = 123;
    int32_t descriptor = -7;
    char text[64] = "same";
    uint8_t *bytes = read_file(path_of(SMALL), &size);
    memset(&subject, 0, sizeof subject);
    memset(verdicts, 0, sizeof verdicts);
    OK(tllm_flow_info_init(&info, sizeof info));
    OK(tllm_packet_init(&packet, sizeof packet));
    PANICS(tllm_check_platform());
    PANICS(tllm_log_set(NULL, NULL, TLLM_LOG_OFF));
    PANICS(tllm_config_new(&made_config));
    PANICS(tllm_config_set(config, "engine.workers", "0"));
    PANICS(tllm_config_get(config, "engine.workers", text, sizeof text, &count));
    PANICS(tllm_config_option(0, &option, sizeof option));
    PANICS(tllm_config_free(config));
    PANICS(tllm_model_open(path_of(SMALL), NULL, &made_model));
    PANICS(tllm_model_open_default(NULL, &made_model));
    PANICS(tllm_model_open_memory(bytes, size, NULL, &made_model));
    PANICS(tllm_model_verify(path_of(SMALL), NULL));
    PANICS(tllm_model_describe(model, &model_info, sizeof model_info));
    PANICS(tllm_model_manifest(model, text, sizeof text, &count));
    PANICS(tllm_model_task(model, 0, &task_info, sizeof task_info));
    PANICS(tllm_model_label(model, 0, 0, text, sizeof text, &count));
    PANICS(tllm_model_free(model));
    PANICS(tllm_engine_new(model, config, &made_engine));
    PANICS(tllm_engine_start(engine));
    PANICS(tllm_engine_stop(engine, 0));
    PANICS(tllm_engine_activate(engine, path_of(OTHER)));
    PANICS(tllm_engine_activate_model(engine, model));
    PANICS(tllm_engine_head(engine, 0, &head, sizeof head));
    PANICS(tllm_engine_head_enable(engine, "none", 1));
    PANICS(tllm_engine_activate_heads(engine, NULL));
    PANICS(tllm_engine_model(engine, &made_model));
    PANICS(tllm_engine_counters(engine, &counters, sizeof counters));
    PANICS(tllm_engine_memory(engine, &memory, sizeof memory));
    PANICS(tllm_engine_latency(engine, &latency, sizeof latency));
    PANICS(tllm_engine_device(engine, text, sizeof text, &count));
    PANICS(tllm_engine_metrics(engine, text, sizeof text, &count));
    PANICS(tllm_engine_run_pending(engine, &count));
    PANICS(tllm_engine_free(engine));
    PANICS(tllm_flow_info_init(&info, sizeof info));
    PANICS(tllm_packet_init(&packet, sizeof packet));
    PANICS(tllm_flow_new(engine, &info, &made_flow));
    PANICS(tllm_flow_feed(flow, &packet));
    PANICS(tllm_flow_reset(flow, &info));
    PANICS(tllm_flow_describe(flow, &stats, sizeof stats));
    PANICS(tllm_flow_free(flow));
    PANICS(tllm_verdicts_json(verdicts, sizeof verdicts[0], 1, text, sizeof text, &count));
    PANICS(tllm_session_new(engine, &made_session));
    PANICS(tllm_session_submit(session, flow, 1));
    PANICS(tllm_session_submit_last(session, flow, 1));
    PANICS(tllm_session_submit_request(session, request, sizeof request - 1, 1));
    PANICS(tllm_session_poll(session, verdicts, sizeof verdicts[0], 16, &count));
    PANICS(tllm_session_wait(session, 1, verdicts, sizeof verdicts[0], 16, &count));
    PANICS(tllm_session_each(session, 1, sizeof(tllm_verdict), take, NULL, &count));
    PANICS(tllm_session_fd(session, &descriptor));
    PANICS(tllm_session_in_flight(session, &count));
    PANICS(tllm_session_classify(session, flows, 1, verdicts, sizeof verdicts[0], 16, &count));
    PANICS(tllm_session_classify_request(session, request, sizeof request - 1, verdicts, sizeof verdicts[0], 16, &count));
    PANICS(tllm_session_free(session));
    PANICS(tllm_capture_detect(engine, path_of("captures/http.pcap"), SIZES, take_subject, NULL, NULL, 0));
    PANICS(tllm_subject_json(NULL, &subject, sizeof subject, verdicts, sizeof verdicts[0], 0, text, sizeof text, &count));
    free(bytes);
    CHECK(made_config == NULL && made_model == NULL && made_engine == NULL && made_flow == NULL && made_session == NULL);
    CHECK(count == 123 && descriptor == -7 && strcmp(text, "same") == 0);
    /* Those that cannot fail are no concern of it. */
    tllm_fault_panic_after(0);
    CHECK(tllm_abi_version() == TLLM_ABI_VERSION && tllm_version_number() > 0 && tllm_version() != NULL);
    CHECK(tllm_status_string(TLLM_OK) != NULL);
    CHECK(tllm_last_error(text, 0, NULL) == TLLM_ERR_BUFFER);
    STATUS(TLLM_ERR_PANIC, tllm_check_platform());
    /* Nothing was in use: everything still works. */
    feed(flow, 1, 1);
    OK(tllm_session_submit(session, flow, 1));
    take_answers(session, 1, NULL, 0);
    CHECK(counters_of(engine).submitted == 1);
    OK(tllm_config_set(config, "engine.workers", "0"));
}

/* What a call that panics has in use is lost, and nothing else; it can be freed. */
#define BREAKS(uses, call)                                                 \
    do {                                                                   \
        tllm_fault_panic_in_use_after(uses);                               \
        FAILS(TLLM_ERR_PANIC, "a defect in use", call);                    \
    } while (0)

static void what_was_in_use(void)
{
    tllm_verdict verdicts[16];
    tllm_packet packet;
    char text[64];
    size_t count = 0;
    OK(tllm_packet_init(&packet, sizeof packet));
    BREAKS(0, tllm_config_set(config, "engine.workers", "1"));
    FAILS(TLLM_ERR_PANIC, "config", tllm_config_get(config, "engine.workers", text, sizeof text, &count));
    STATUS(TLLM_ERR_PANIC, tllm_config_set(config, "engine.workers", "1"));
    tllm_engine *none = NULL;
    STATUS(TLLM_ERR_PANIC, tllm_engine_new(model, config, &none));
    OK(tllm_config_free(config));
    STATUS(TLLM_ERR_HANDLE, tllm_config_free(config));
    config = config_of(NULL);

    tllm_flow *broken = flow_of(engine, 3, 1);
    const tllm_flow *flows[2] = {flow, broken};
    BREAKS(0, tllm_flow_feed(broken, &packet));
    FAILS(TLLM_ERR_PANIC, "flow", tllm_flow_feed(broken, &packet));
    FAILS(TLLM_ERR_PANIC, "flow", tllm_session_submit(session, broken, 1));
    STATUS(TLLM_ERR_PANIC, tllm_session_classify(session, flows, 2, verdicts, sizeof verdicts[0], 16, &count));
    OK(tllm_session_classify(session, flows, 1, verdicts, sizeof verdicts[0], 16, &count));
    OK(tllm_flow_free(broken));
    CHECK(counters_of(engine).flows == 1);

    /* The session's call panics at its second use, that of the flow: both are lost. */
    tllm_session *other = session_of(engine);
    broken = flow_of(engine, 3, 1);
    OK(tllm_session_submit(other, broken, 5));
    BREAKS(1, tllm_session_submit(other, broken, 6));
    STATUS(TLLM_ERR_PANIC, tllm_session_submit(other, flow, 7));
    STATUS(TLLM_ERR_PANIC, tllm_session_poll(other, verdicts, sizeof verdicts[0], 16, &count));
    STATUS(TLLM_ERR_PANIC, tllm_session_in_flight(other, &count));
    STATUS(TLLM_ERR_PANIC, tllm_flow_feed(broken, &packet));
    OK(tllm_flow_free(broken));
    OK(tllm_session_free(other));
    OK(tllm_engine_run_pending(engine, NULL));
    /* The engine and the other session go on, and the counters add up. */
    OK(tllm_session_submit(session, flow, 8));
    take_answers(session, 1, NULL, 0);
    CHECK(counters_of(engine).in_flight == 0);
}

/* A defect in a worker costs the flows of its batch; the worker goes on. */
static void in_a_worker(void)
{
    static const char *const settings[] = {"engine.workers=1", NULL};
    tllm_engine *working = engine_with(settings);
    tllm_session *own = session_of(working);
    tllm_flow *fed = flow_of(working, 3, 1);
    tllm_verdict verdicts[64];
    size_t count = 0;
    OK(tllm_fault_poison(working, 13));
    /* One batch: they all wait when the worker starts. */
    for (uint64_t id = 12; id < 15; id++) {
        OK(tllm_session_submit(own, fed, id));
    }
    OK(tllm_engine_start(working));
    unsigned lost = 0;
    while (lost < 3) {
        int32_t status = tllm_session_wait(own, 1000000, verdicts, sizeof verdicts[0], 64, &count);
        CHECK(status == TLLM_OK);
        for (size_t at = 0; at < count; at++) {
            CHECK(verdicts[at].status == TLLM_ERR_WORKER && verdicts[at].entries == 1 && verdicts[at].label_name[0] == '\0');
            lost++;
        }
    }
    CHECK(lost == 3);
    OK(tllm_session_submit(own, fed, 15));
    OK(tllm_session_wait(own, 10000000, verdicts, sizeof verdicts[0], 64, &count));
    CHECK(count == 2 && verdicts[0].id == 15 && verdicts[0].status >= 0);
    tllm_counters counters = counters_of(working);
    CHECK(counters.failed == 3 && counters.done == 1 && counters.worker_panics == 1);
    /* Classified, the same defect is the same status, and the session goes on. */
    const tllm_flow *flows[1] = {fed};
    OK(tllm_fault_poison(working, 0));
    int32_t status = tllm_session_classify(own, flows, 1, verdicts, sizeof verdicts[0], 64, &count);
    CHECK(status == TLLM_OK && count == 1 && verdicts[0].status == TLLM_ERR_WORKER);
    OK(tllm_fault_poison(working, UINT64_MAX));
    OK(tllm_session_classify(own, flows, 1, verdicts, sizeof verdicts[0], 64, &count));
    CHECK(count == 2 && verdicts[0].status >= 0);
    (void)counters_of(working);
    OK(tllm_flow_free(fed));
    OK(tllm_session_free(own));
    OK(tllm_engine_free(working));
}

/* A worker that the system does not let run: stopping, freeing and submitting do not wait for it. */
static void a_worker_that_stands_still(void)
{
    static const char *const settings[] = {"engine.workers=1", "engine.queue_flows=4", "engine.stop_timeout_us=1000", NULL};
    tllm_engine *stuck = engine_with(settings);
    tllm_session *own = session_of(stuck);
    tllm_flow *fed = flow_of(stuck, 3, 1);
    tllm_verdict verdicts[16];
    size_t count = 0;
    OK(tllm_engine_start(stuck));
    OK(tllm_fault_hold(stuck, 1));
    OK(tllm_session_submit(own, fed, 1));
    while (counters_of(stuck).waiting > 0) {
        sleep_us(1000);
    }
    uint64_t start = now_us();
    unsigned shed = 0;
    for (unsigned round = 0; round < 1000; round++) {
        int32_t status = tllm_session_submit(own, fed, 2);
        CHECK(status == TLLM_OK || status == TLLM_QUEUE_FULL);
        shed += status == TLLM_QUEUE_FULL;
        STATUS(TLLM_PENDING, tllm_session_poll(own, verdicts, sizeof verdicts[0], 16, &count));
        tllm_flow *another = flow_of(stuck, 1, 1);
        OK(tllm_flow_free(another));
    }
    CHECK(shed >= 996);
    tllm_session *second = session_of(stuck);
    OK(tllm_session_free(second));
    STATUS(TLLM_RUNNING, tllm_engine_stop(stuck, 10000));
    STATUS(TLLM_RUNNING, tllm_engine_stop(stuck, 0));
    OK(tllm_fault_hold(stuck, UINT64_MAX));
    int32_t status = TLLM_RUNNING;
    while (status == TLLM_RUNNING) {
        status = tllm_engine_stop(stuck, 100000);
    }
    STATUS(TLLM_ABANDONED, status);
    CHECK(now_us() - start < 20000000);
    OK(tllm_flow_free(fed));
    OK(tllm_session_free(own));
    tllm_counters counters = counters_of(stuck);
    CHECK(counters.in_flight == 0);
    STATUS(TLLM_ABANDONED, tllm_engine_free(stuck));
}

int main(int argc, char **argv)
{
    begin(argc, argv, 60);
    make();
    every_function();
    what_was_in_use();
    in_a_worker();
    a_worker_that_stands_still();
    OK(tllm_flow_free(flow));
    OK(tllm_session_free(session));
    OK(tllm_engine_free(engine));
    OK(tllm_config_free(config));
    OK(tllm_model_free(model));
    return 0;
}
