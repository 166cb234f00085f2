/* Opening, verifying and describing models. */
#include "check.h"

static void check_text(const char *field, size_t size)
{
    CHECK(memchr(field, '\0', size) != NULL && field[0] != '\0');
}

/* Everything that a model says about itself, and that it says it again. */
static void describe(tllm_model *model, uint32_t tasks)
{
    tllm_model_info info;
    memset(&info, 0xee, sizeof info);
    OK(tllm_model_describe(model, &info, sizeof info));
    check_text(info.id, sizeof info.id);
    check_text(info.profile, sizeof info.profile);
    check_text(info.level, sizeof info.level);
    CHECK(strlen(info.id) == 16 && strspn(info.id, "0123456789abcdef") == 16);
    CHECK(strncmp(info.profile, "clean", 5) == 0);
    CHECK(info.memory_bytes > 0 && info.tasks == tasks && info.tokens_max > 0);
    CHECK(info.reserved[0] == 0 && info.reserved[3] == 0);
    for (size_t task = 0; task < tasks; task++) {
        tllm_task_info told;
        memset(&told, 0xee, sizeof told);
        OK(tllm_model_task(model, task, &told, sizeof told));
        check_text(told.name, sizeof told.name);
        CHECK(told.kind == TLLM_TASK_FLOW || told.kind == TLLM_TASK_REQUEST);
        CHECK(told.labels > 0 && told.threshold >= 0 && told.threshold <= 1);
        CHECK(told.reserved0 == 0 && told.reserved[1] == 0);
        for (size_t label = 0; label < told.labels; label++) {
            char text[TLLM_LABEL_BYTES];
            size_t needed = 0;
            OK(tllm_model_label(model, task, label, text, sizeof text, &needed));
            CHECK(needed == strlen(text) + 1 && needed > 1);
            STATUS(TLLM_ERR_BUFFER, tllm_model_label(model, task, label, text, needed - 1, NULL));
        }
        STATUS(TLLM_END, tllm_model_label(model, task, told.labels, NULL, 0, NULL));
        STATUS(TLLM_END, tllm_model_label(model, task, SIZE_MAX, NULL, 0, NULL));
        STATUS(TLLM_ERR_STRUCT, tllm_model_task(model, task, &told, sizeof told - 1));
        STATUS(TLLM_ERR_NULL, tllm_model_task(model, task, NULL, sizeof told));
    }
    STATUS(TLLM_END, tllm_model_task(model, tasks, &(tllm_task_info){0}, sizeof(tllm_task_info)));
    STATUS(TLLM_END, tllm_model_task(model, SIZE_MAX, &(tllm_task_info){0}, sizeof(tllm_task_info)));
    STATUS(TLLM_ERR_TASK, tllm_model_label(model, tasks, 0, NULL, 0, NULL));
    STATUS(TLLM_ERR_TASK, tllm_model_label(model, SIZE_MAX, 0, NULL, 0, NULL));
    STATUS(TLLM_ERR_STRUCT, tllm_model_describe(model, &info, sizeof info - 8));
    STATUS(TLLM_ERR_NULL, tllm_model_describe(model, NULL, sizeof info));
}

static void manifest(tllm_model *model)
{
    size_t needed = 0, again = 0;
    STATUS(TLLM_ERR_BUFFER, tllm_model_manifest(model, NULL, 0, &needed));
    CHECK(needed > 100);
    char *text = malloc(needed);
    CHECK(text != NULL);
    STATUS(TLLM_ERR_BUFFER, tllm_model_manifest(model, text, needed - 1, &again));
    CHECK(again == needed);
    OK(tllm_model_manifest(model, text, needed, &again));
    CHECK(again == needed && strlen(text) + 1 == needed && text[0] == '{');
    CHECK(strstr(text, "\"tasks\"") != NULL && strstr(text, "\"licence\"") != NULL);
    free(text);
}

static void from_file_and_memory(void)
{
    size_t size = 0;
    uint8_t *bytes = read_file(path_of(SMALL), &size);
    tllm_model *file = open_small(), *memory = NULL;
    tllm_model_info a, b;
    OK(tllm_model_open_memory(bytes, size, NULL, &memory));
    /* The bytes were copied. */
    memset(bytes, 0, size);
    free(bytes);
    CHECK(file != memory);
    OK(tllm_model_describe(file, &a, sizeof a));
    OK(tllm_model_describe(memory, &b, sizeof b));
    CHECK(memcmp(&a, &b, sizeof a) == 0);
    describe(file, 3);
    describe(memory, 3);
    manifest(memory);
    OK(tllm_model_free(file));
    describe(memory, 3);
    OK(tllm_model_free(memory));
    OK(tllm_model_verify(path_of(SMALL), NULL));
    OK(tllm_model_free(NULL));
}

static void the_default(void)
{
    tllm_model *model = NULL;
    unsigned before = threads();
    OK(tllm_model_open_default(NULL, &model));
    tllm_model_info info;
    OK(tllm_model_describe(model, &info, sizeof info));
    describe(model, info.tasks);
    manifest(model);
    CHECK(threads() == before);
    OK(tllm_model_free(model));
}

static void processors(void)
{
    static const char *const portable[] = {"model.cpu=portable", NULL};
    static const char *const unknown[] = {"model.cpu=abacus", NULL};
    tllm_config *config = config_of(portable);
    tllm_model *model = NULL;
    tllm_model_info info;
    OK(tllm_model_open(path_of(SMALL), config, &model));
    OK(tllm_model_describe(model, &info, sizeof info));
    CHECK(strcmp(info.level, "portable") == 0);
    OK(tllm_model_free(model));
    OK(tllm_model_verify(path_of(SMALL), config));
    OK(tllm_config_free(config));
    model = NULL;
    OK(tllm_config_new(&config));
    int32_t status = tllm_config_set(config, "model.cpu", unknown[0] + strlen("model.cpu="));
    /* Found out when it is set, or else when it is used. */
    if (status == TLLM_OK) {
        FAILS(TLLM_ERR_PLATFORM, "abacus", tllm_model_open(path_of(SMALL), config, &model));
        STATUS(TLLM_ERR_PLATFORM, tllm_model_verify(path_of(SMALL), config));
    } else {
        STATUS(TLLM_ERR_VALUE, status);
    }
    CHECK(model == NULL);
    OK(tllm_config_free(config));
}

static void broken(void)
{
    static const struct {
        const char *name;
        const char *part;
    } files[] = {
        {"hostile/bundles/packed-magic.tllm", "magic"},
        {"hostile/bundles/packed-empty.tllm", "magic"},
        {"hostile/bundles/packed-trailing-bytes.tllm", "file size"},
        {"hostile/bundles/file-hash.tllm", "sha256"},
        {"hostile/bundles/gguf-cut.tllm", ""},
        {"hostile/bundles/manifest-unknown-field.tllm", "unknown field"},
        {"hostile/bundles/label-twice.tllm", ""},
        {"hostile/bundles/self-test-score.tllm", ""},
        {"hostile/bundles/adapter-cut.tllm", ""},
    };
    tllm_model *const untouched = (tllm_model *)(uintptr_t)48;
    for (size_t at = 0; at < COUNT(files); at++) {
        tllm_model *model = untouched;
        FAILS(TLLM_ERR_MODEL, files[at].part, tllm_model_open(path_of(files[at].name), NULL, &model));
        CHECK(model == untouched);
        FAILS(TLLM_ERR_MODEL, files[at].part, tllm_model_verify(path_of(files[at].name), NULL));
        size_t size = 0;
        uint8_t *bytes = read_file(path_of(files[at].name), &size);
        FAILS(TLLM_ERR_MODEL, files[at].part, tllm_model_open_memory(bytes, size, NULL, &model));
        CHECK(model == untouched);
        free(bytes);
    }
    tllm_model *model = untouched;
    FAILS(TLLM_ERR_IO, "no-such-file", tllm_model_open(path_of("no-such-file"), NULL, &model));
    STATUS(TLLM_ERR_IO, tllm_model_verify(path_of("no-such-file"), NULL));
    /* A folder without a manifest. */
    int32_t status = tllm_model_open(path_of("captures"), NULL, &model);
    CHECK(status == TLLM_ERR_IO || status == TLLM_ERR_MODEL);
    STATUS(TLLM_ERR_MODEL, tllm_model_open_memory(NULL, 0, NULL, &model));
    STATUS(TLLM_ERR_NULL, tllm_model_open_memory(NULL, 10, NULL, &model));
    STATUS(TLLM_ERR_ARGUMENT, tllm_model_open_memory((const uint8_t *)"x", SIZE_MAX, NULL, &model));
    STATUS(TLLM_ERR_NULL, tllm_model_open(NULL, NULL, &model));
    STATUS(TLLM_ERR_NULL, tllm_model_open_default(NULL, NULL));
    STATUS(TLLM_ERR_NULL, tllm_model_verify(NULL, NULL));
    CHECK(model == untouched);
}

/* Every cut of a bundle, and every byte of its first part changed, is refused or opens: it never crashes. */
static void cuts_and_changes(void)
{
    size_t size = 0;
    uint8_t *bytes = read_file(path_of(SMALL), &size);
    tllm_model *model = NULL;
    for (size_t cut = 0; cut < size; cut += 1 + size / (2 * rounds(40))) {
        STATUS(TLLM_ERR_MODEL, tllm_model_open_memory(bytes, cut, NULL, &model));
    }
    for (size_t at = 0; at < size; at += 1 + size / (2 * rounds(60))) {
        bytes[at] ^= 0x41;
        int32_t status = tllm_model_open_memory(bytes, size, NULL, &model);
        /* All bytes are hashed but those of the manifest itself, where another text can be as good. */
        if (status == TLLM_OK) {
            OK(tllm_model_free(model));
        } else {
            STATUS(TLLM_ERR_MODEL, status);
        }
        bytes[at] ^= 0x41;
    }
    OK(tllm_model_open_memory(bytes, size, NULL, &model));
    OK(tllm_model_free(model));
    free(bytes);
}

int main(int argc, char **argv)
{
    begin(argc, argv, 60);
    from_file_and_memory();
    the_default();
    processors();
    broken();
    cuts_and_changes();
    return 0;
}
