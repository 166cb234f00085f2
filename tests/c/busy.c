/* Two threads in one session, flow or config are told so; nothing breaks. */
#include "check.h"

static tllm_engine *engine;
static tllm_session *session;
static tllm_flow *flow;
static tllm_config *config;
static pthread_barrier_t barrier;

/* A callback that holds the session: the other thread finds it in use, every time. */
static int32_t hold(void *user, const tllm_verdict *verdicts, size_t count)
{
    (void)user, (void)verdicts, (void)count;
    pthread_barrier_wait(&barrier);
    pthread_barrier_wait(&barrier);
    return 0;
}

static void *find_it_in_use(void *unused)
{
    tllm_verdict verdicts[8];
    const tllm_flow *flows[1] = {flow};
    size_t count = 0;
    int32_t descriptor = 0;
    (void)unused;
    pthread_barrier_wait(&barrier);
    FAILS(TLLM_ERR_BUSY, "session", tllm_session_submit(session, flow, 2));
    STATUS(TLLM_ERR_BUSY, tllm_session_submit_request(session, (const uint8_t *)"GET / HTTP/1.1\r\n\r\n", 18, 2));
    STATUS(TLLM_ERR_BUSY, tllm_session_poll(session, verdicts, sizeof verdicts[0], 8, &count));
    STATUS(TLLM_ERR_BUSY, tllm_session_wait(session, 1000000, verdicts, sizeof verdicts[0], 8, &count));
    STATUS(TLLM_ERR_BUSY, tllm_session_each(session, 1000000, sizeof(tllm_verdict), hold, NULL, &count));
    STATUS(TLLM_ERR_BUSY, tllm_session_fd(session, &descriptor));
    STATUS(TLLM_ERR_BUSY, tllm_session_in_flight(session, &count));
    STATUS(TLLM_ERR_BUSY, tllm_session_classify(session, flows, 1, verdicts, sizeof verdicts[0], 8, &count));
    STATUS(TLLM_ERR_BUSY, tllm_session_classify_request(session, (const uint8_t *)"GET / HTTP/1.1\r\n\r\n", 18, verdicts, sizeof verdicts[0], 8, &count));
    /* Flow and engine are not the session's. */
    feed(flow, 1, 1);
    (void)counters_of(engine);
    pthread_barrier_wait(&barrier);
    return NULL;
}

static void a_session_in_use(void)
{
    pthread_t other;
    size_t answers = 0;
    CHECK(pthread_barrier_init(&barrier, NULL, 2) == 0);
    OK(tllm_session_submit(session, flow, 1));
    CHECK(pthread_create(&other, NULL, find_it_in_use, NULL) == 0);
    OK(tllm_session_each(session, 1000000, sizeof(tllm_verdict), hold, NULL, &answers));
    CHECK(answers == 1);
    CHECK(pthread_join(other, NULL) == 0);
    CHECK(pthread_barrier_destroy(&barrier) == 0);
    OK(tllm_session_submit(session, flow, 3));
    take_answers(session, 1, NULL, 0);
}

/* Two threads hammer the same things: each call is done or refused. */
enum { ROUNDS = 20000 };

static void *hammer(void *argument)
{
    uintptr_t *done = argument;
    tllm_packet packet;
    tllm_verdict verdicts[8];
    size_t count = 0;
    char value[32];
    OK(tllm_packet_init(&packet, sizeof packet));
    for (unsigned round = 0; round < rounds(ROUNDS); round++) {
        int32_t status = tllm_flow_feed(flow, &packet);
        CHECK(status == TLLM_OK || status == TLLM_FLOW_FULL || status == TLLM_ERR_BUSY);
        done[0] += status >= 0;
        if (round % 16 == 0) {
            status = tllm_session_submit(session, flow, round);
            CHECK(status == TLLM_OK || status == TLLM_QUEUE_FULL || status == TLLM_ERR_BUSY);
            done[1] += status >= 0;
            status = tllm_session_wait(session, 100, verdicts, sizeof verdicts[0], 8, &count);
            CHECK(status == TLLM_OK || status == TLLM_PENDING || status == TLLM_ERR_BUSY);
        }
        status = tllm_config_set(config, "engine.workers", "3");
        CHECK(status == TLLM_OK || status == TLLM_ERR_BUSY);
        status = tllm_config_get(config, "engine.workers", value, sizeof value, &count);
        CHECK(status == TLLM_ERR_BUSY || (status == TLLM_OK && strcmp(value, "3") == 0));
    }
    return NULL;
}

static void hammered(void)
{
    pthread_t other;
    uintptr_t mine[2] = {0}, others[2] = {0};
    tllm_flow_stats before, after;
    OK(tllm_flow_describe(flow, &before, sizeof before));
    uint64_t submitted = counters_of(engine).submitted;
    CHECK(pthread_create(&other, NULL, hammer, others) == 0);
    (void)hammer(mine);
    CHECK(pthread_join(other, NULL) == 0);
    OK(tllm_flow_describe(flow, &after, sizeof after));
    CHECK(after.packets - before.packets == mine[0] + others[0]);
    CHECK(counters_of(engine).submitted - submitted == mine[1] + others[1]);
}

/* Only one of those who free a thing has freed it. */
static void *free_it(void *argument)
{
    int32_t *statuses = argument;
    pthread_barrier_wait(&barrier);
    statuses[0] = tllm_flow_free(flow);
    statuses[1] = tllm_session_free(session);
    statuses[2] = tllm_config_free(config);
    statuses[3] = tllm_engine_free(engine);
    return NULL;
}

static void freed_by_two(void)
{
    pthread_t other;
    int32_t mine[4], others[4];
    CHECK(pthread_barrier_init(&barrier, NULL, 2) == 0);
    CHECK(pthread_create(&other, NULL, free_it, others) == 0);
    (void)free_it(mine);
    CHECK(pthread_join(other, NULL) == 0);
    CHECK(pthread_barrier_destroy(&barrier) == 0);
    for (size_t at = 0; at < 4; at++) {
        CHECK((mine[at] >= 0) != (others[at] >= 0));
        int32_t refused = mine[at] < 0 ? mine[at] : others[at];
        CHECK(refused == TLLM_ERR_HANDLE || refused == TLLM_ERR_BUSY);
    }
}

int main(int argc, char **argv)
{
    static const char *const settings[] = {"engine.workers=1", NULL};
    begin(argc, argv, 60);
    for (unsigned round = 0; round < rounds(20); round++) {
        engine = engine_with(settings);
        config = config_of(NULL);
        session = session_of(engine);
        flow = flow_of(engine, 2, 1);
        OK(tllm_engine_start(engine));
        if (round == 0) {
            a_session_in_use();
            hammered();
        }
        freed_by_two();
    }
    return 0;
}
