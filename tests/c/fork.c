/* A host that forks. */
#include "check.h"

/* Under tools that count what is left, a child that cannot free its copy of an engine would be told as a leak. */
static void end_child(void)
{
    fflush(NULL);
    _exit(0);
}

static void wait_for(pid_t child)
{
    int status = 0;
    CHECK(child > 0);
    CHECK(waitpid(child, &status, 0) == child);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        fprintf(stderr, "the child ended with status %#x\n", (unsigned)status);
        exit(1);
    }
}

static void classify_once(tllm_engine *engine, tllm_session *session)
{
    tllm_flow *flow = flow_of(engine, 4, 1);
    const tllm_flow *flows[1] = {flow};
    tllm_verdict verdicts[8];
    size_t count = 0;
    OK(tllm_session_classify(session, flows, 1, verdicts, sizeof verdicts[0], 8, &count));
    CHECK(count == 2);
    OK(tllm_flow_free(flow));
}

/* A model, and an engine that was not started, are the child's as well as the parent's. */
static void before_the_start(void)
{
    static const char *const settings[] = {"engine.workers=2", NULL};
    tllm_model *model = open_small();
    tllm_config *config = config_of(settings);
    tllm_engine *engine = NULL;
    OK(tllm_engine_new(model, config, &engine));
    tllm_session *session = session_of(engine);
    tllm_flow *flow = flow_of(engine, 4, 1);
    OK(tllm_session_submit(session, flow, 1));
    pid_t child = fork();
    if (child == 0) {
        alarm(20);
        OK(tllm_engine_start(engine));
    } else {
        OK(tllm_engine_start(engine));
    }
    take_answers(session, 1, NULL, 0);
    OK(tllm_session_submit(session, flow, 2));
    take_answers(session, 1, NULL, 0);
    classify_once(engine, session);
    tllm_engine *another = NULL;
    OK(tllm_engine_new(model, config, &another));
    OK(tllm_engine_start(another));
    OK(tllm_engine_free(another));
    OK(tllm_flow_free(flow));
    OK(tllm_session_free(session));
    OK(tllm_engine_free(engine));
    OK(tllm_config_free(config));
    OK(tllm_model_free(model));
    if (child == 0) {
        end_child();
    }
    wait_for(child);
}

static void in_the_child(tllm_model *model, tllm_config *config, tllm_engine *engine, tllm_session *session, tllm_flow *flow)
{
    tllm_verdict verdicts[8];
    tllm_flow_info info;
    tllm_flow *more = NULL;
    tllm_session *another = NULL;
    tllm_model *active = NULL;
    const tllm_flow *flows[1] = {flow};
    const uint8_t *request = (const uint8_t *)"GET / HTTP/1.1\r\n\r\n";
    size_t count = 0;
    int32_t descriptor = 0;
    OK(tllm_flow_info_init(&info, sizeof info));
    FAILS(TLLM_ERR_FORKED, "fork", tllm_engine_start(engine));
    STATUS(TLLM_ERR_FORKED, tllm_engine_stop(engine, 1000000));
    STATUS(TLLM_ERR_FORKED, tllm_engine_activate(engine, path_of(OTHER)));
    STATUS(TLLM_ERR_FORKED, tllm_engine_activate_model(engine, model));
    STATUS(TLLM_ERR_FORKED, tllm_engine_model(engine, &active));
    STATUS(TLLM_ERR_FORKED, tllm_engine_counters(engine, &(tllm_counters){0}, sizeof(tllm_counters)));
    STATUS(TLLM_ERR_FORKED, tllm_engine_memory(engine, &(tllm_memory){0}, sizeof(tllm_memory)));
    STATUS(TLLM_ERR_FORKED, tllm_engine_device(engine, NULL, 0, &count));
    STATUS(TLLM_ERR_FORKED, tllm_engine_metrics(engine, NULL, 0, &count));
    STATUS(TLLM_ERR_FORKED, tllm_engine_run_pending(engine, &count));
    STATUS(TLLM_ERR_FORKED, tllm_flow_new(engine, &info, &more));
    STATUS(TLLM_ERR_FORKED, tllm_session_new(engine, &another));
    STATUS(TLLM_ERR_FORKED, tllm_session_submit(session, flow, 3));
    STATUS(TLLM_ERR_FORKED, tllm_session_submit_request(session, request, 18, 3));
    STATUS(TLLM_ERR_FORKED, tllm_session_poll(session, verdicts, sizeof verdicts[0], 8, &count));
    STATUS(TLLM_ERR_FORKED, tllm_session_wait(session, UINT64_MAX, verdicts, sizeof verdicts[0], 8, &count));
    STATUS(TLLM_ERR_FORKED, tllm_session_fd(session, &descriptor));
    STATUS(TLLM_ERR_FORKED, tllm_session_in_flight(session, &count));
    STATUS(TLLM_ERR_FORKED, tllm_session_classify(session, flows, 1, verdicts, sizeof verdicts[0], 8, &count));
    STATUS(TLLM_ERR_FORKED, tllm_session_classify_request(session, request, 18, verdicts, sizeof verdicts[0], 8, &count));
    CHECK(more == NULL && another == NULL && active == NULL);
    /* What has no thread goes on. */
    feed(flow, 2, 2);
    OK(tllm_model_verify(path_of(SMALL), NULL));
    tllm_model_info told;
    OK(tllm_model_describe(model, &told, sizeof told));
    /* An engine of the child's own, over the parent's model. */
    tllm_engine *own = NULL;
    OK(tllm_engine_new(model, config, &own));
    OK(tllm_engine_start(own));
    tllm_session *own_session = session_of(own);
    classify_once(own, own_session);
    tllm_flow *own_flow = flow_of(own, 4, 4);
    OK(tllm_session_submit(own_session, own_flow, 9));
    take_answers(own_session, 1, NULL, 0);
    OK(tllm_flow_free(own_flow));
    OK(tllm_session_free(own_session));
    OK(tllm_engine_free(own));
    /* Freeing works, and does not wait for threads that are not here. */
    OK(tllm_flow_free(flow));
    OK(tllm_session_free(session));
    OK(tllm_engine_free(engine));
    STATUS(TLLM_ERR_HANDLE, tllm_engine_free(engine));
    OK(tllm_config_free(config));
    OK(tllm_model_free(model));
}

/* After the start the threads are in the parent only. */
static void after_the_start(unsigned how)
{
    static const char *const settings[] = {"engine.workers=2", NULL};
    tllm_model *model = open_small();
    tllm_config *config = config_of(settings);
    tllm_engine *engine = NULL;
    int32_t descriptor = -1;
    OK(tllm_engine_new(model, config, &engine));
    OK(tllm_engine_start(engine));
    tllm_session *session = session_of(engine);
    tllm_flow *flow = flow_of(engine, 4, 1);
    OK(tllm_session_fd(session, &descriptor));
    for (uint64_t id = 0; id < 100; id++) {
        OK(tllm_session_submit(session, flow, id));
    }
    pid_t child = fork();
    if (child == 0) {
        alarm(20);
        if (how == 0) {
            in_the_child(model, config, engine, session, flow);
            end_child();
        } else if (how == 1) {
            /* Frees nothing, and runs what is run at the end of a program. */
            exit(0);
        } else {
            /* Frees the engine first. */
            OK(tllm_engine_free(engine));
            OK(tllm_session_free(session));
            OK(tllm_model_free(model));
            OK(tllm_flow_free(flow));
            end_child();
        }
    }
    wait_for(child);
    /* The parent has noticed nothing. */
    unsigned seen[101] = {0};
    take_answers(session, 100, seen, 100);
    OK(tllm_session_submit(session, flow, 100));
    take_answers(session, 1, seen, 101);
    for (size_t id = 0; id < 101; id++) {
        CHECK(seen[id] == 1);
    }
    OK(tllm_flow_free(flow));
    OK(tllm_session_free(session));
    OK(tllm_engine_free(engine));
    OK(tllm_config_free(config));
    OK(tllm_model_free(model));
}

/* A daemon: forks twice, and starts in the grandchild. */
static void daemon_like(void)
{
    static const char *const settings[] = {"engine.workers=1", NULL};
    tllm_engine *engine = engine_with(settings);
    pid_t child = fork();
    if (child == 0) {
        pid_t grandchild = fork();
        if (grandchild == 0) {
            alarm(20);
            OK(tllm_engine_start(engine));
            tllm_session *session = session_of(engine);
            tllm_flow *flow = flow_of(engine, 4, 1);
            OK(tllm_session_submit(session, flow, 1));
            take_answers(session, 1, NULL, 0);
            OK(tllm_flow_free(flow));
            OK(tllm_session_free(session));
            OK(tllm_engine_free(engine));
            end_child();
        }
        wait_for(grandchild);
        OK(tllm_engine_free(engine));
        end_child();
    }
    wait_for(child);
    OK(tllm_engine_free(engine));
}

int main(int argc, char **argv)
{
    begin(argc, argv, 60);
    before_the_start();
    for (unsigned how = 0; how < 3; how++) {
        after_the_start(how);
    }
    daemon_like();
    return 0;
}
