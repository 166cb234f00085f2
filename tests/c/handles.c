/* Every function, with every handle that is none. */
#include "check.h"

static tllm_model *model;
static tllm_config *config;
static tllm_engine *engine;
static tllm_session *session;
static tllm_flow *flow;

/* What is called with a pointer in the place of a handle. */
typedef int32_t (*call)(void *handle);

static char text[4096];
static size_t needed;
static tllm_verdict verdicts[16];
static tllm_packet packet;
static tllm_flow_info info;

static const uint8_t request[] = "GET / HTTP/1.1\r\n\r\n";

static int32_t config_set(void *handle) { return tllm_config_set(handle, "engine.workers", "1"); }
static int32_t config_get(void *handle) { return tllm_config_get(handle, "engine.workers", text, sizeof text, &needed); }
static int32_t config_free(void *handle) { return tllm_config_free(handle); }
static int32_t open_with(void *handle)
{
    tllm_model *made = NULL;
    int32_t status = tllm_model_open(path_of(SMALL), handle, &made);
    CHECK(made == NULL);
    return status;
}
static int32_t open_default_with(void *handle)
{
    tllm_model *made = NULL;
    int32_t status = tllm_model_open_default(handle, &made);
    CHECK(made == NULL);
    return status;
}
static int32_t open_memory_with(void *handle)
{
    tllm_model *made = NULL;
    int32_t status = tllm_model_open_memory(request, sizeof request, handle, &made);
    CHECK(made == NULL);
    return status;
}
static int32_t verify_with(void *handle) { return tllm_model_verify(path_of(SMALL), handle); }
static int32_t engine_with_config(void *handle)
{
    tllm_engine *made = NULL;
    int32_t status = tllm_engine_new(model, handle, &made);
    CHECK(made == NULL);
    return status;
}

static int32_t model_describe(void *handle) { return tllm_model_describe(handle, &(tllm_model_info){{0}, {0}, {0}, 0, 0, 0, {0}}, sizeof(tllm_model_info)); }
static int32_t model_manifest(void *handle) { return tllm_model_manifest(handle, text, sizeof text, &needed); }
static int32_t model_task(void *handle) { return tllm_model_task(handle, 0, &(tllm_task_info){{0}, 0, 0, 0, 0, {0}}, sizeof(tllm_task_info)); }
static int32_t model_label(void *handle) { return tllm_model_label(handle, 0, 0, text, sizeof text, &needed); }
static int32_t model_free(void *handle) { return tllm_model_free(handle); }
static int32_t engine_over(void *handle)
{
    tllm_engine *made = NULL;
    int32_t status = tllm_engine_new(handle, NULL, &made);
    CHECK(made == NULL);
    return status;
}
static int32_t activate_model(void *handle) { return tllm_engine_activate_model(engine, handle); }

static int32_t engine_start(void *handle) { return tllm_engine_start(handle); }
static int32_t engine_stop(void *handle) { return tllm_engine_stop(handle, 0); }
static int32_t engine_activate(void *handle) { return tllm_engine_activate(handle, path_of(SMALL)); }
static int32_t engine_activate_model(void *handle) { return tllm_engine_activate_model(handle, model); }
static int32_t engine_model(void *handle)
{
    tllm_model *made = NULL;
    int32_t status = tllm_engine_model(handle, &made);
    CHECK(made == NULL);
    return status;
}
static int32_t engine_counters(void *handle) { return tllm_engine_counters(handle, &(tllm_counters){0}, sizeof(tllm_counters)); }
static int32_t engine_head(void *handle) { return tllm_engine_head(handle, 0, &(tllm_head){0}, sizeof(tllm_head)); }
static int32_t engine_head_enable(void *handle) { return tllm_engine_head_enable(handle, "none", 1); }
static int32_t engine_activate_heads(void *handle) { return tllm_engine_activate_heads(handle, NULL); }
static int32_t engine_latency(void *handle) { return tllm_engine_latency(handle, &(tllm_latency){0}, sizeof(tllm_latency)); }
static int32_t engine_memory(void *handle) { return tllm_engine_memory(handle, &(tllm_memory){0}, sizeof(tllm_memory)); }
static int32_t engine_device(void *handle) { return tllm_engine_device(handle, text, sizeof text, &needed); }
static int32_t engine_metrics(void *handle) { return tllm_engine_metrics(handle, text, sizeof text, &needed); }
static int32_t engine_run_pending(void *handle) { return tllm_engine_run_pending(handle, &needed); }
static int32_t engine_free(void *handle) { return tllm_engine_free(handle); }
static int32_t flow_new(void *handle)
{
    tllm_flow *made = NULL;
    int32_t status = tllm_flow_new(handle, &info, &made);
    CHECK(made == NULL);
    return status;
}
static int32_t session_new(void *handle)
{
    tllm_session *made = NULL;
    int32_t status = tllm_session_new(handle, &made);
    CHECK(made == NULL);
    return status;
}
static int32_t no_callback(void *user, const tllm_subject *subject, const tllm_verdict *entries, size_t count)
{
    (void)user, (void)subject, (void)entries, (void)count;
    return 0;
}
static int32_t capture_detect(void *handle) { return tllm_capture_detect(handle, path_of("captures/http.pcap"), SIZES, no_callback, NULL, NULL, 0); }

static int32_t flow_feed(void *handle) { return tllm_flow_feed(handle, &packet); }
static int32_t flow_reset(void *handle) { return tllm_flow_reset(handle, &info); }
static int32_t flow_describe(void *handle) { return tllm_flow_describe(handle, &(tllm_flow_stats){0}, sizeof(tllm_flow_stats)); }
static int32_t flow_free(void *handle) { return tllm_flow_free(handle); }
static int32_t submit_flow(void *handle) { return tllm_session_submit(session, handle, 1); }
static int32_t classify_flow(void *handle)
{
    const tllm_flow *flows[1] = {handle};
    return tllm_session_classify(session, flows, 1, verdicts, sizeof verdicts[0], 16, &needed);
}

static int32_t take(void *user, const tllm_verdict *entries, size_t count)
{
    (void)user, (void)entries, (void)count;
    return 0;
}
static int32_t submit_last_flow(void *handle) { return tllm_session_submit_last(session, handle, 1); }
static int32_t session_submit_last(void *handle) { return tllm_session_submit_last(handle, flow, 1); }
static int32_t session_submit(void *handle) { return tllm_session_submit(handle, flow, 1); }
static int32_t session_submit_request(void *handle) { return tllm_session_submit_request(handle, request, sizeof request - 1, 1); }
static int32_t session_poll(void *handle) { return tllm_session_poll(handle, verdicts, sizeof verdicts[0], 16, &needed); }
static int32_t session_wait(void *handle) { return tllm_session_wait(handle, 1000, verdicts, sizeof verdicts[0], 16, &needed); }
static int32_t session_each(void *handle) { return tllm_session_each(handle, 1000, sizeof(tllm_verdict), take, NULL, &needed); }
static int32_t session_fd(void *handle) { int32_t descriptor; return tllm_session_fd(handle, &descriptor); }
static int32_t session_in_flight(void *handle) { return tllm_session_in_flight(handle, &needed); }
static int32_t session_classify(void *handle)
{
    const tllm_flow *flows[1] = {flow};
    return tllm_session_classify(handle, flows, 1, verdicts, sizeof verdicts[0], 16, &needed);
}
static int32_t session_classify_request(void *handle) { return tllm_session_classify_request(handle, request, sizeof request - 1, verdicts, sizeof verdicts[0], 16, &needed); }
static int32_t session_free(void *handle) { return tllm_session_free(handle); }

enum kind { CONFIG, MODEL, ENGINE, FLOW, SESSION, KINDS };

static const struct {
    const char *name;
    call function;
    enum kind kind;
    /* NULL is TLLM_ERR_NULL for most; nothing to do for those that free; the defaults for a config that goes in. */
    int is_null_allowed;
} calls[] = {
    {"config_set", config_set, CONFIG, 0},
    {"config_get", config_get, CONFIG, 0},
    {"config_free", config_free, CONFIG, 1},
    {"model_open", open_with, CONFIG, 2},
    {"model_open_default", open_default_with, CONFIG, 2},
    {"model_open_memory", open_memory_with, CONFIG, 2},
    {"model_verify", verify_with, CONFIG, 2},
    {"engine_new(config)", engine_with_config, CONFIG, 2},
    {"model_describe", model_describe, MODEL, 0},
    {"model_manifest", model_manifest, MODEL, 0},
    {"model_task", model_task, MODEL, 0},
    {"model_label", model_label, MODEL, 0},
    {"model_free", model_free, MODEL, 1},
    {"engine_new", engine_over, MODEL, 0},
    {"engine_activate_model(model)", activate_model, MODEL, 0},
    {"engine_start", engine_start, ENGINE, 0},
    {"engine_stop", engine_stop, ENGINE, 0},
    {"engine_activate", engine_activate, ENGINE, 0},
    {"engine_activate_model", engine_activate_model, ENGINE, 0},
    {"engine_model", engine_model, ENGINE, 0},
    {"engine_counters", engine_counters, ENGINE, 0},
    {"engine_memory", engine_memory, ENGINE, 0},
    {"engine_latency", engine_latency, ENGINE, 0},
    {"engine_head", engine_head, ENGINE, 0},
    {"engine_head_enable", engine_head_enable, ENGINE, 0},
    {"engine_activate_heads", engine_activate_heads, ENGINE, 0},
    {"engine_device", engine_device, ENGINE, 0},
    {"engine_metrics", engine_metrics, ENGINE, 0},
    {"engine_run_pending", engine_run_pending, ENGINE, 0},
    {"engine_free", engine_free, ENGINE, 1},
    {"flow_new", flow_new, ENGINE, 0},
    {"session_new", session_new, ENGINE, 0},
    {"capture_detect", capture_detect, ENGINE, 0},
    {"flow_feed", flow_feed, FLOW, 0},
    {"flow_reset", flow_reset, FLOW, 0},
    {"flow_describe", flow_describe, FLOW, 0},
    {"flow_free", flow_free, FLOW, 1},
    {"session_submit(flow)", submit_flow, FLOW, 0},
    {"session_submit_last(flow)", submit_last_flow, FLOW, 0},
    {"session_classify(flow)", classify_flow, FLOW, 0},
    {"session_submit", session_submit, SESSION, 0},
    {"session_submit_last", session_submit_last, SESSION, 0},
    {"session_submit_request", session_submit_request, SESSION, 0},
    {"session_poll", session_poll, SESSION, 0},
    {"session_wait", session_wait, SESSION, 0},
    {"session_each", session_each, SESSION, 0},
    {"session_fd", session_fd, SESSION, 0},
    {"session_in_flight", session_in_flight, SESSION, 0},
    {"session_classify", session_classify, SESSION, 0},
    {"session_classify_request", session_classify_request, SESSION, 0},
    {"session_free", session_free, SESSION, 1},
};

static void expect(size_t at, const char *what, void *handle, int32_t expected)
{
    int32_t found = calls[at].function(handle);
    if (found != expected) {
        char said[2100] = "";
        (void)tllm_last_error(said, sizeof said, NULL);
        fprintf(stderr, "tllm_%s with %s (%p): expected %s, found %s: %s\n", calls[at].name, what, handle,
                tllm_status_string(expected), tllm_status_string(found), said);
        exit(1);
    }
}

static void make(void)
{
    static const char *const settings[] = {"engine.workers=0", NULL};
    model = open_small();
    config = config_of(settings);
    OK(tllm_engine_new(model, config, &engine));
    session = session_of(engine);
    flow = flow_of(engine, 3, 1);
}

static void all_live(void)
{
    OK(config_set(config));
    OK(model_describe(model));
    OK(engine_counters(engine));
    OK(flow_describe(flow));
    OK(session_in_flight(session));
}

static void end(void)
{
    OK(tllm_flow_free(flow));
    OK(tllm_session_free(session));
    OK(tllm_engine_free(engine));
    OK(tllm_config_free(config));
    OK(tllm_model_free(model));
}

int main(int argc, char **argv)
{
    begin(argc, argv, 60);
    OK(tllm_flow_info_init(&info, sizeof info));
    OK(tllm_packet_init(&packet, sizeof packet));
    make();
    void *live[KINDS] = {config, model, engine, flow, session};
    /* Two things that were freed: a handle of each kind, and one whose place has another thing since. */
    make();
    void *freed[KINDS] = {config, model, engine, flow, session};
    end();
    make();
    void *now[KINDS] = {config, model, engine, flow, session};
    for (size_t kind = 0; kind < KINDS; kind++) {
        CHECK(freed[kind] != now[kind]);
    }
    long on_stack[4] = {0};
    static long in_data[4];
    void *on_heap = malloc(64);
    CHECK(on_heap != NULL);
    for (size_t at = 0; at < COUNT(calls); at++) {
        if (calls[at].is_null_allowed == 1) {
            expect(at, "NULL", NULL, TLLM_OK);
        } else if (calls[at].is_null_allowed == 0) {
            expect(at, "NULL", NULL, TLLM_ERR_NULL);
        }
        for (size_t kind = 0; kind < KINDS; kind++) {
            if (kind != calls[at].kind) {
                expect(at, "a handle of another kind", live[kind], TLLM_ERR_HANDLE);
                expect(at, "a freed handle of another kind", freed[kind], TLLM_ERR_HANDLE);
            }
        }
        void *own = freed[calls[at].kind];
        expect(at, "a freed handle", own, TLLM_ERR_HANDLE);
        expect(at, "an address of the stack", on_stack, TLLM_ERR_HANDLE);
        expect(at, "an address of data", in_data, TLLM_ERR_HANDLE);
        expect(at, "an address of the heap", on_heap, TLLM_ERR_HANDLE);
        expect(at, "an address of code", (void *)(uintptr_t)&make, TLLM_ERR_HANDLE);
        expect(at, "the last address", (void *)UINTPTR_MAX, TLLM_ERR_HANDLE);
        for (uintptr_t near = 1; near <= 16; near++) {
            expect(at, "a small number", (void *)near, TLLM_ERR_HANDLE);
            expect(at, "a number beside a live handle", (void *)((uintptr_t)live[calls[at].kind] + near), TLLM_ERR_HANDLE);
            if (near < 16) {
                expect(at, "a number beside a freed handle", (void *)((uintptr_t)own - near), TLLM_ERR_HANDLE);
            }
        }
        for (unsigned bit = 4; bit < 8 * sizeof(void *); bit++) {
            /* Other places that are taken are other handles: the low places are. */
            if (bit >= 12) {
                expect(at, "a live handle with another bit",
                       (void *)((uintptr_t)live[calls[at].kind] ^ (uintptr_t)1 << bit), TLLM_ERR_HANDLE);
            }
        }
        all_live();
    }
    free(on_heap);
    /* Freed twice. */
    end();
    STATUS(TLLM_ERR_HANDLE, tllm_flow_free(flow));
    STATUS(TLLM_ERR_HANDLE, tllm_session_free(session));
    STATUS(TLLM_ERR_HANDLE, tllm_engine_free(engine));
    STATUS(TLLM_ERR_HANDLE, tllm_config_free(config));
    STATUS(TLLM_ERR_HANDLE, tllm_model_free(model));
    config = live[CONFIG], model = live[MODEL], engine = live[ENGINE], flow = live[FLOW], session = live[SESSION];
    all_live();
    /* Places for results: NULL, and where nothing can stand. */
    char *odd = text + 1;
    STATUS(TLLM_ERR_ARGUMENT, tllm_config_new((tllm_config **)(void *)odd));
    STATUS(TLLM_ERR_ARGUMENT, tllm_engine_new(model, NULL, (tllm_engine **)(void *)odd));
    STATUS(TLLM_ERR_ARGUMENT, tllm_model_open(path_of(SMALL), NULL, (tllm_model **)(void *)odd));
    STATUS(TLLM_ERR_ARGUMENT, tllm_engine_model(engine, (tllm_model **)(void *)odd));
    STATUS(TLLM_ERR_ARGUMENT, tllm_session_new(engine, (tllm_session **)(void *)odd));
    STATUS(TLLM_ERR_ARGUMENT, tllm_flow_new(engine, &info, (tllm_flow **)(void *)odd));
    STATUS(TLLM_ERR_ARGUMENT, tllm_flow_new(engine, (tllm_flow_info *)(void *)odd, &flow));
    STATUS(TLLM_ERR_ARGUMENT, tllm_flow_feed(flow, (tllm_packet *)(void *)odd));
    STATUS(TLLM_ERR_ARGUMENT, tllm_session_poll(session, (tllm_verdict *)(void *)odd, sizeof(tllm_verdict), 8, &needed));
    STATUS(TLLM_ERR_ARGUMENT, tllm_session_poll(session, verdicts, sizeof(tllm_verdict), 8, (size_t *)(void *)odd));
    STATUS(TLLM_ERR_ARGUMENT, tllm_session_poll(session, verdicts, sizeof(tllm_verdict) + 1, 8, &needed));
    STATUS(TLLM_ERR_ARGUMENT, tllm_session_fd(session, (int32_t *)(void *)odd));
    STATUS(TLLM_ERR_ARGUMENT, tllm_session_in_flight(session, (size_t *)(void *)odd));
    STATUS(TLLM_ERR_ARGUMENT, tllm_session_each(session, 0, sizeof(tllm_verdict), take, NULL, (size_t *)(void *)odd));
    STATUS(TLLM_ERR_ARGUMENT, tllm_session_classify(session, (const tllm_flow *const *)(const void *)odd, 1, verdicts, sizeof(tllm_verdict), 8, &needed));
    STATUS(TLLM_ERR_ARGUMENT, tllm_config_get(config, "engine.workers", text, sizeof text, (size_t *)(void *)odd));
    STATUS(TLLM_ERR_ARGUMENT, tllm_engine_run_pending(engine, (size_t *)(void *)odd));
    STATUS(TLLM_ERR_NULL, tllm_session_new(engine, NULL));
    STATUS(TLLM_ERR_NULL, tllm_engine_model(engine, NULL));
    STATUS(TLLM_ERR_NULL, tllm_session_fd(session, NULL));
    STATUS(TLLM_ERR_NULL, tllm_session_in_flight(session, NULL));
    STATUS(TLLM_ERR_NULL, tllm_session_each(session, 0, sizeof(tllm_verdict), NULL, NULL, NULL));
    STATUS(TLLM_ERR_NULL, tllm_capture_detect(engine, path_of("captures/http.pcap"), SIZES, NULL, NULL, NULL, 0));
    STATUS(TLLM_ERR_NULL, tllm_capture_detect(engine, NULL, SIZES, no_callback, NULL, NULL, 0));
    all_live();
    end();
    return 0;
}
