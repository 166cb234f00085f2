/* Messages go to a callback, or nowhere. */
#include "check.h"

static struct {
    unsigned count[TLLM_LOG_TRACE + 1];
    unsigned elsewhere;
    pthread_t own;
} seen;
static pthread_mutex_t seen_lock = PTHREAD_MUTEX_INITIALIZER;
static int marker;

static void count(void *user, int32_t level, const char *target, const char *message)
{
    CHECK(user == &marker);
    CHECK(level >= TLLM_LOG_ERROR && level <= TLLM_LOG_TRACE);
    CHECK(target != NULL && target[0] != '\0' && message != NULL && message[0] != '\0');
    CHECK(strchr(message, '\n') == NULL);
    pthread_mutex_lock(&seen_lock);
    seen.count[level]++;
    seen.elsewhere += !pthread_equal(pthread_self(), seen.own);
    pthread_mutex_unlock(&seen_lock);
}

static void never(void *user, int32_t level, const char *target, const char *message)
{
    fprintf(stderr, "called with %p, %d, %s: %s\n", user, (int)level, target, message);
    exit(1);
}

static unsigned all_seen(void)
{
    unsigned all = 0;
    pthread_mutex_lock(&seen_lock);
    for (size_t level = 0; level < COUNT(seen.count); level++) {
        all += seen.count[level];
    }
    pthread_mutex_unlock(&seen_lock);
    return all;
}

static void forget(void)
{
    pthread_mutex_lock(&seen_lock);
    memset(&seen, 0, sizeof seen);
    seen.own = pthread_self();
    pthread_mutex_unlock(&seen_lock);
}

/* A life with an activation, a refused one, and work for the workers. */
static void live(void)
{
    static const char *const settings[] = {"engine.workers=2", NULL};
    tllm_engine *engine = engine_with(settings);
    tllm_session *session = session_of(engine);
    tllm_flow *flow = flow_of(engine, 5, 1);
    OK(tllm_engine_start(engine));
    const unsigned flows = rounds(20);
    for (uint64_t id = 0; id < flows; id++) {
        OK(tllm_session_submit(session, flow, id));
    }
    OK(tllm_engine_activate(engine, path_of(OTHER)));
    STATUS(TLLM_ERR_MODEL, tllm_engine_activate(engine, path_of("hostile/bundles/file-hash.tllm")));
    take_answers(session, flows, NULL, 0);
    OK(tllm_flow_free(flow));
    OK(tllm_session_free(session));
    OK(tllm_engine_free(engine));
}

/* It may call anything but tllm_log_set. */
static tllm_engine *asked_engine;
static unsigned asked;

static void ask(void *user, int32_t level, const char *target, const char *message)
{
    (void)user, (void)level, (void)target, (void)message;
    FAILS(TLLM_ERR_BUSY, "log", tllm_log_set(NULL, NULL, TLLM_LOG_OFF));
    STATUS(TLLM_ERR_BUSY, tllm_log_set(ask, NULL, TLLM_LOG_TRACE));
    asked++;
    CHECK(tllm_status_string(TLLM_OK) != NULL && tllm_version() != NULL);
    tllm_config *config = config_of(NULL);
    OK(tllm_config_free(config));
    tllm_model *model = NULL;
    OK(tllm_model_open(path_of(SMALL), NULL, &model));
    OK(tllm_model_free(model));
    if (asked_engine != NULL) {
        (void)counters_of(asked_engine);
        tllm_session *session = NULL;
        int32_t status = tllm_session_new(asked_engine, &session);
        /* The message may be that the engine was stopped. */
        CHECK(status == TLLM_OK || (status == TLLM_ERR_STOPPED && session == NULL));
        OK(tllm_session_free(session));
        tllm_flow *flow = flow_of(asked_engine, 2, 1);
        OK(tllm_flow_free(flow));
        tllm_memory memory;
        size_t needed = 0;
        OK(tllm_engine_memory(asked_engine, &memory, sizeof memory));
        STATUS(TLLM_ERR_BUFFER, tllm_engine_metrics(asked_engine, NULL, 0, &needed));
        OK(tllm_engine_model(asked_engine, &model));
        OK(tllm_model_free(model));
        if (asked < rounds(50)) {
            /* A message about a message is left out, so this does not go round for ever. */
            status = tllm_engine_activate(asked_engine, path_of(SMALL));
            CHECK(status == TLLM_OK || status == TLLM_ERR_STOPPED);
        }
    }
}

/* Callbacks are replaced while messages come: none is called after it was. */
static int first, second;
static volatile int who;

static void is_first(void *user, int32_t level, const char *target, const char *message)
{
    (void)level, (void)target, (void)message;
    CHECK(user == &first);
    CHECK(who != 2);
}

static void is_second(void *user, int32_t level, const char *target, const char *message)
{
    (void)target, (void)message;
    CHECK(user == &second);
    CHECK(who != 1 && level <= TLLM_LOG_WARN);
}

static volatile int is_over;

static void *make_messages(void *unused)
{
    (void)unused;
    static const char *const settings[] = {"engine.workers=0", NULL};
    tllm_engine *engine = engine_with(settings);
    while (!is_over) {
        STATUS(TLLM_ERR_MODEL, tllm_engine_activate(engine, path_of("hostile/bundles/packed-magic.tllm")));
    }
    OK(tllm_engine_free(engine));
    return NULL;
}

int main(int argc, char **argv)
{
    begin(argc, argv, 60);
    /* Silent until the first call. */
    live();
    STATUS(TLLM_ERR_ARGUMENT, tllm_log_set(never, NULL, TLLM_LOG_TRACE + 1));
    STATUS(TLLM_ERR_ARGUMENT, tllm_log_set(never, NULL, -1));
    STATUS(TLLM_ERR_ARGUMENT, tllm_log_set(never, NULL, INT32_MAX));
    live();
    OK(tllm_log_set(never, NULL, TLLM_LOG_OFF));
    live();
    OK(tllm_log_set(NULL, NULL, TLLM_LOG_TRACE));
    live();

    forget();
    OK(tllm_log_set(count, &marker, TLLM_LOG_TRACE));
    live();
    CHECK(all_seen() > 0 && seen.count[TLLM_LOG_INFO] > 0);
    /* The refused activation. */
    CHECK(seen.count[TLLM_LOG_ERROR] + seen.count[TLLM_LOG_WARN] > 0);
    for (int32_t level = TLLM_LOG_ERROR; level <= TLLM_LOG_TRACE; level++) {
        forget();
        OK(tllm_log_set(count, &marker, level));
        live();
        for (int32_t above = level + 1; above <= TLLM_LOG_TRACE; above++) {
            CHECK(seen.count[above] == 0);
        }
    }
    OK(tllm_log_set(NULL, NULL, TLLM_LOG_OFF));
    forget();
    live();
    CHECK(all_seen() == 0);

    OK(tllm_log_set(ask, NULL, TLLM_LOG_TRACE));
    live();
    unsigned before = asked;
    CHECK(before > 0);
    static const char *const settings[] = {"engine.workers=1", NULL};
    asked_engine = engine_with(settings);
    OK(tllm_engine_start(asked_engine));
    OK(tllm_engine_activate(asked_engine, path_of(OTHER)));
    STATUS(TLLM_ERR_MODEL, tllm_engine_activate(asked_engine, path_of("hostile/bundles/gguf-cut.tllm")));
    tllm_engine *ended = asked_engine;
    OK(tllm_engine_stop(ended, 1000000));
    asked_engine = NULL;
    OK(tllm_engine_free(ended));
    CHECK(asked > before);
    OK(tllm_log_set(NULL, NULL, TLLM_LOG_OFF));

    pthread_t others[2];
    for (size_t at = 0; at < COUNT(others); at++) {
        CHECK(pthread_create(&others[at], NULL, make_messages, NULL) == 0);
    }
    for (unsigned round = 0; round < rounds(200); round++) {
        who = 0;
        OK(tllm_log_set(is_first, &first, TLLM_LOG_TRACE));
        who = 1;
        sleep_us(200);
        who = 0;
        OK(tllm_log_set(is_second, &second, TLLM_LOG_WARN));
        who = 2;
        sleep_us(200);
        who = 0;
        OK(tllm_log_set(never, NULL, TLLM_LOG_OFF));
        sleep_us(200);
    }
    is_over = 1;
    for (size_t at = 0; at < COUNT(others); at++) {
        CHECK(pthread_join(others[at], NULL) == 0);
    }
    return 0;
}
