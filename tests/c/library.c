/* Versions, texts of statuses, the last error. */
#include "check.h"

#ifndef EXPECTED_VERSION
#error the test gives the version of the package
#endif

static void versions(void)
{
    char text[64];
    snprintf(text, sizeof text, "%d.%d.%d", TLLM_VERSION_MAJOR, TLLM_VERSION_MINOR, TLLM_VERSION_PATCH);
    CHECK(strcmp(text, EXPECTED_VERSION) == 0);
    CHECK(strcmp(tllm_version(), EXPECTED_VERSION) == 0);
    CHECK(tllm_version() == tllm_version());
    CHECK(tllm_version_number() == (TLLM_VERSION_MAJOR << 16 | TLLM_VERSION_MINOR << 8 | TLLM_VERSION_PATCH));
    CHECK(tllm_abi_version() == TLLM_ABI_VERSION);
    OK(tllm_check_platform());
}

static void platform(void)
{
    const char *before = getenv("TLLM_CPU");
    char kept[64] = "";
    if (before != NULL) {
        snprintf(kept, sizeof kept, "%s", before);
    }
    CHECK(setenv("TLLM_CPU", "abacus", 1) == 0);
    FAILS(TLLM_ERR_PLATFORM, "abacus", tllm_check_platform());
    CHECK(setenv("TLLM_CPU", "portable", 1) == 0);
    OK(tllm_check_platform());
    CHECK(before != NULL ? setenv("TLLM_CPU", kept, 1) == 0 : unsetenv("TLLM_CPU") == 0);
}

static void status_texts(void)
{
    static const int32_t known[] = {
        TLLM_OK, TLLM_PENDING, TLLM_NEED_MORE, TLLM_ABSTAINED, TLLM_QUEUE_FULL, TLLM_EXPIRED, TLLM_ABANDONED,
        TLLM_FLOW_FULL, TLLM_RUNNING, TLLM_CANCELLED, TLLM_END, TLLM_NOT_APPLICABLE, TLLM_ERR_NULL, TLLM_ERR_ARGUMENT,
        TLLM_ERR_HANDLE, TLLM_ERR_BUSY, TLLM_ERR_BUFFER, TLLM_ERR_KEY, TLLM_ERR_VALUE, TLLM_ERR_IO, TLLM_ERR_MODEL,
        TLLM_ERR_PLATFORM, TLLM_ERR_MEMORY, TLLM_ERR_BUDGET, TLLM_ERR_LIMIT, TLLM_ERR_THREAD, TLLM_ERR_STOPPED,
        TLLM_ERR_FORKED, TLLM_ERR_PANIC, TLLM_ERR_WORKER, TLLM_ERR_REQUEST, TLLM_ERR_CAPTURE, TLLM_ERR_STRUCT,
        TLLM_ERR_TEXT, TLLM_ERR_TASK, TLLM_ERR_UNSUPPORTED, TLLM_ERR_NOT_STARTED, TLLM_ERR_DEVICE,
    };
    for (size_t at = 0; at < COUNT(known); at++) {
        const char *text = tllm_status_string(known[at]);
        CHECK(text != NULL && text[0] != '\0' && strcmp(text, "unknown status") != 0);
        CHECK(text == tllm_status_string(known[at]));
        for (size_t other = 0; other < at; other++) {
            CHECK(known[other] != known[at]);
            CHECK(strcmp(text, tllm_status_string(known[other])) != 0);
        }
    }
    static const int32_t unknown[] = {12, -27, 1000, -1000, INT32_MAX, INT32_MIN};
    for (size_t at = 0; at < COUNT(unknown); at++) {
        CHECK(strcmp(tllm_status_string(unknown[at]), "unknown status") == 0);
    }
    /* No number between is without a text: none was forgotten when one was added. */
    for (int32_t number = TLLM_ERR_DEVICE; number <= TLLM_NOT_APPLICABLE; number++) {
        CHECK(strcmp(tllm_status_string(number), "unknown status") != 0);
    }
}

static void *ask_elsewhere(void *unused)
{
    char text[64] = "x";
    (void)unused;
    CHECK(tllm_last_error(text, sizeof text, NULL) == TLLM_OK);
    CHECK(text[0] == '\0');
    FAILS(TLLM_ERR_NULL, "config", tllm_config_new(NULL));
    return NULL;
}

static void last_error(void)
{
    char text[256] = "left as it is";
    size_t needed = 77;
    pthread_t other;
    /* The thread that has met no error has none; nor do threads see each other's. */
    FAILS(TLLM_ERR_NULL, "model: expected a pointer, found NULL", tllm_model_open("nowhere", NULL, NULL));
    CHECK(pthread_create(&other, NULL, ask_elsewhere, NULL) == 0);
    CHECK(pthread_join(other, NULL) == 0);
    CHECK(tllm_last_error(text, sizeof text, &needed) == TLLM_ERR_NULL);
    CHECK(needed == strlen(text) + 1 && strstr(text, "model") != NULL);
    /* Asking changes nothing, with any size; a small buffer stays as it is. */
    char small[4] = "abc";
    size_t again = 0;
    CHECK(tllm_last_error(small, sizeof small, &again) == TLLM_ERR_BUFFER);
    CHECK(strcmp(small, "abc") == 0 && again == needed);
    CHECK(tllm_last_error(NULL, 0, &again) == TLLM_ERR_BUFFER && again == needed);
    CHECK(tllm_last_error(NULL, 0, NULL) == TLLM_ERR_BUFFER);
    CHECK(tllm_last_error(NULL, sizeof text, &again) == TLLM_ERR_NULL && again == needed);
    char exact[256];
    CHECK(needed <= sizeof exact);
    CHECK(tllm_last_error(exact, needed, NULL) == TLLM_ERR_NULL && strcmp(exact, text) == 0);
    CHECK(tllm_last_error(exact, needed - 1, NULL) == TLLM_ERR_BUFFER);
    /* A call that succeeds leaves it. */
    tllm_config *config = NULL;
    OK(tllm_config_new(&config));
    OK(tllm_config_free(config));
    CHECK(tllm_last_error(exact, sizeof exact, NULL) == TLLM_ERR_NULL && strcmp(exact, text) == 0);
    /* A long text is cut, and stays UTF-8. */
    char key[4097];
    memset(key, 'k', sizeof key);
    key[4096] = '\0';
    OK(tllm_config_new(&config));
    STATUS(TLLM_ERR_KEY, tllm_config_set(config, key, "1"));
    char most[2049];
    CHECK(tllm_last_error(most, sizeof most, NULL) == TLLM_ERR_KEY);
    OK(tllm_config_free(config));
}

static void texts_that_go_in(void)
{
    char longest[4098];
    tllm_model *model = NULL;
    memset(longest, 'a', sizeof longest);
    longest[4097] = '\0';
    FAILS(TLLM_ERR_TEXT, "path", tllm_model_open(longest, NULL, &model));
    longest[4096] = '\0';
    STATUS(TLLM_ERR_IO, tllm_model_open(longest, NULL, &model));
    FAILS(TLLM_ERR_TEXT, "UTF-8", tllm_model_open("not \xff utf-8", NULL, &model));
    CHECK(model == NULL);
}

int main(int argc, char **argv)
{
    begin(argc, argv, 20);
    versions();
    platform();
    status_texts();
    last_error();
    texts_that_go_in();
    return 0;
}
