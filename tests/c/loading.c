/* A host that loads the library by hand: the library stays when it is unloaded, with threads or without. LIBRARY is its path. */
#define CHECK_WITHOUT_LIBRARY
#include "check.h"

#include <dlfcn.h>

#ifndef LIBRARY
#error the test gives the path of the library
#endif

/* The functions that this program uses, by name: it is not linked with the library. */
static struct {
    uint32_t (*abi_version)(void);
    int32_t (*model_open)(const char *, const tllm_config *, tllm_model **);
    int32_t (*model_free)(tllm_model *);
    int32_t (*engine_new)(const tllm_model *, const tllm_config *, tllm_engine **);
    int32_t (*engine_start)(tllm_engine *);
    int32_t (*engine_free)(tllm_engine *);
    int32_t (*session_new)(const tllm_engine *, tllm_session **);
    int32_t (*session_free)(tllm_session *);
    int32_t (*submit_request)(tllm_session *, const uint8_t *, size_t, uint64_t);
    int32_t (*wait)(tllm_session *, uint64_t, tllm_verdict *, size_t, size_t, size_t *);
    int32_t (*last_error)(char *, size_t, size_t *);
} library;

/* check.h asks the library for its texts; this program has no such function but its own. */
int32_t tllm_last_error(char *buffer, size_t size, size_t *needed)
{
    return library.last_error != NULL ? library.last_error(buffer, size, needed) : TLLM_OK;
}
const char *tllm_status_string(int32_t status) { (void)status; return "?"; }
uint32_t tllm_abi_version(void) { return TLLM_ABI_VERSION; }

static void *load(void)
{
    void *handle = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (handle == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
#define LOOK_UP(field, name)                            \
    do {                                                \
        *(void **)(void *)&library.field = dlsym(handle, name); \
        CHECK(library.field != NULL);                   \
    } while (0)
    LOOK_UP(last_error, "tllm_last_error");
    LOOK_UP(abi_version, "tllm_abi_version");
    LOOK_UP(model_open, "tllm_model_open");
    LOOK_UP(model_free, "tllm_model_free");
    LOOK_UP(engine_new, "tllm_engine_new");
    LOOK_UP(engine_start, "tllm_engine_start");
    LOOK_UP(engine_free, "tllm_engine_free");
    LOOK_UP(session_new, "tllm_session_new");
    LOOK_UP(session_free, "tllm_session_free");
    LOOK_UP(submit_request, "tllm_session_submit_request");
    LOOK_UP(wait, "tllm_session_wait");
    CHECK(library.abi_version() == TLLM_ABI_VERSION);
    return handle;
}

static const uint8_t request[] = "GET /a?b=c HTTP/1.1\r\n\r\n";

static void use(tllm_engine **engine, tllm_session **session)
{
    tllm_model *model = NULL;
    tllm_verdict verdicts[8];
    size_t count = 0;
    OK(library.model_open(path_of(SMALL), NULL, &model));
    OK(library.engine_new(model, NULL, engine));
    OK(library.model_free(model));
    OK(library.engine_start(*engine));
    OK(library.session_new(*engine, session));
    OK(library.submit_request(*session, request, sizeof request - 1, 1));
    OK(library.wait(*session, 10000000, verdicts, sizeof verdicts[0], 8, &count));
    CHECK(count == 1 && verdicts[0].id == 1);
}

/* A thread that has used the library ends after it was unloaded: what the library keeps of a thread is freed then. */
static pthread_barrier_t barrier;

static void *use_and_outlive(void *unused)
{
    tllm_model *model = NULL;
    (void)unused;
    STATUS(TLLM_ERR_IO, library.model_open("no-such-file", NULL, &model));
    pthread_barrier_wait(&barrier);
    pthread_barrier_wait(&barrier);
    return NULL;
}

int main(int argc, char **argv)
{
    tllm_engine *engine = NULL, *second = NULL;
    tllm_session *session = NULL, *second_session = NULL;
    begin(argc, argv, 30);
    /* Loaded and unloaded without use. */
    void *handle = load();
    CHECK(dlclose(handle) == 0);
    /* With a running engine, and a thread that ends later. */
    pthread_t thread;
    handle = load();
    use(&engine, &session);
    CHECK(pthread_barrier_init(&barrier, NULL, 2) == 0);
    CHECK(pthread_create(&thread, NULL, use_and_outlive, NULL) == 0);
    pthread_barrier_wait(&barrier);
    CHECK(library.submit_request(session, request, sizeof request - 1, 2) == TLLM_OK);
    CHECK(dlclose(handle) == 0);
    pthread_barrier_wait(&barrier);
    CHECK(pthread_join(thread, NULL) == 0);
    sleep_us(20000);
    /* It is still there. */
    void *resident = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
    CHECK(resident != NULL);
    CHECK(dlclose(resident) == 0);
    /* Loaded again, it is the same one: the handles of before live. */
    handle = load();
    tllm_verdict verdicts[8];
    size_t count = 0;
    OK(library.wait(session, 10000000, verdicts, sizeof verdicts[0], 8, &count));
    CHECK(count == 1 && verdicts[0].id == 2);
    use(&second, &second_session);
    OK(library.session_free(session));
    OK(library.engine_free(engine));
    if (argc > 2) {
        /* The last engine runs to the end of the program, with its library unloaded. */
        CHECK(library.submit_request(second_session, request, sizeof request - 1, 3) == TLLM_OK);
    } else {
        OK(library.session_free(second_session));
        OK(library.engine_free(second));
    }
    CHECK(dlclose(handle) == 0);
    return 0;
}
