/* Settings by key. */
#include "check.h"

static void get(const tllm_config *config, const char *key, char *value, size_t size)
{
    size_t needed = 0;
    OK(tllm_config_get(config, key, value, size, &needed));
    CHECK(needed == strlen(value) + 1);
}

static void refused(tllm_config *config, const char *key, const char *value)
{
    char before[4200], after[4200];
    get(config, key, before, sizeof before);
    FAILS(TLLM_ERR_VALUE, key, tllm_config_set(config, key, value));
    get(config, key, after, sizeof after);
    CHECK(strcmp(before, after) == 0);
}

static void taken(tllm_config *config, const char *key, const char *value)
{
    char found[4200];
    OK(tllm_config_set(config, key, value));
    get(config, key, found, sizeof found);
    CHECK(strcmp(found, value) == 0);
}

static void integer(tllm_config *config, const tllm_option *option)
{
    char number[32];
    snprintf(number, sizeof number, "%" PRIu64, option->minimum);
    taken(config, option->key, number);
    snprintf(number, sizeof number, "%" PRIu64, option->maximum);
    taken(config, option->key, number);
    if (option->minimum > 0) {
        snprintf(number, sizeof number, "%" PRIu64, option->minimum - 1);
        refused(config, option->key, number);
    }
    if (option->maximum < UINT64_MAX) {
        snprintf(number, sizeof number, "%" PRIu64, option->maximum + 1);
        refused(config, option->key, number);
    }
    CHECK(option->minimum <= option->maximum && option->unit[0] != '\0');
    refused(config, option->key, "");
    refused(config, option->key, "-1");
    refused(config, option->key, "0x10");
    refused(config, option->key, "1.5");
    refused(config, option->key, "many");
    refused(config, option->key, "18446744073709551616");
    refused(config, option->key, "99999999999999999999999999999999");
}

static void every_key(void)
{
    tllm_config *config = NULL, *untouched = NULL;
    OK(tllm_config_new(&config));
    OK(tllm_config_new(&untouched));
    size_t keys = 0;
    for (;; keys++) {
        tllm_option option;
        char value[4200];
        memset(&option, 0xee, sizeof option);
        int32_t status = tllm_config_option(keys, &option, sizeof option);
        if (status == TLLM_END) {
            break;
        }
        STATUS(TLLM_OK, status);
        CHECK(strchr(option.key, '.') != NULL && option.help[0] != '\0');
        get(config, option.key, value, sizeof value);
        CHECK(strcmp(value, option.default_value) == 0);
        if (strcmp(option.kind, "integer") == 0) {
            integer(config, &option);
        } else {
            CHECK(strcmp(option.kind, "list") == 0 || strcmp(option.kind, "text") == 0);
            CHECK(option.unit[0] == '\0');
            if (strcmp(option.kind, "list") == 0) {
                taken(config, option.key, "first_task,second_task");
            } else if (strcmp(option.key, "engine.device") == 0) {
                taken(config, option.key, "cuda:63");
                refused(config, option.key, "cuda:64");
            } else if (strcmp(option.key, "engine.device_activations") == 0) {
                taken(config, option.key, "bf16");
                refused(config, option.key, "portable");
            } else {
                taken(config, option.key, "portable");
            }
            taken(config, option.key, "");
        }
        taken(config, option.key, option.default_value);
        get(untouched, option.key, value, sizeof value);
        CHECK(strcmp(value, option.default_value) == 0);
    }
    CHECK(keys >= 10);
    STATUS(TLLM_END, tllm_config_option(SIZE_MAX, &(tllm_option){0}, sizeof(tllm_option)));
    OK(tllm_config_free(config));
    OK(tllm_config_free(untouched));
}

static void what_is_no_key(void)
{
    tllm_config *config = NULL;
    char value[16] = "same";
    size_t needed = 5;
    OK(tllm_config_new(&config));
    FAILS(TLLM_ERR_KEY, "engine.workers", tllm_config_set(config, "engine.worker", "1"));
    FAILS(TLLM_ERR_KEY, "nothing.like.it", tllm_config_get(config, "nothing.like.it", value, sizeof value, &needed));
    CHECK(strcmp(value, "same") == 0 && needed == 5);
    STATUS(TLLM_ERR_KEY, tllm_config_set(config, "", "1"));
    STATUS(TLLM_ERR_TEXT, tllm_config_set(config, "\xc3\x28", "1"));
    STATUS(TLLM_ERR_TEXT, tllm_config_set(config, "model.cpu", "\xff"));
    STATUS(TLLM_ERR_NULL, tllm_config_set(config, NULL, "1"));
    STATUS(TLLM_ERR_NULL, tllm_config_set(config, "engine.workers", NULL));
    STATUS(TLLM_ERR_NULL, tllm_config_get(config, NULL, value, sizeof value, NULL));
    OK(tllm_config_free(config));
}

static void texts_that_come_out(void)
{
    tllm_config *config = NULL;
    char value[8] = "same";
    size_t needed = 0;
    OK(tllm_config_new(&config));
    OK(tllm_config_set(config, "engine.workers", "12"));
    STATUS(TLLM_ERR_BUFFER, tllm_config_get(config, "engine.workers", NULL, 0, &needed));
    CHECK(needed == 3);
    needed = 0;
    STATUS(TLLM_ERR_BUFFER, tllm_config_get(config, "engine.workers", value, 2, &needed));
    CHECK(needed == 3 && strcmp(value, "same") == 0);
    STATUS(TLLM_ERR_BUFFER, tllm_config_get(config, "engine.workers", value, 2, NULL));
    OK(tllm_config_get(config, "engine.workers", value, 3, NULL));
    CHECK(strcmp(value, "12") == 0 && value[3] == 'e');
    STATUS(TLLM_ERR_NULL, tllm_config_get(config, "engine.workers", NULL, 3, NULL));
    OK(tllm_config_free(config));
}

static void sizes(void)
{
    struct {
        tllm_option option;
        uint8_t more[64];
    } grown;
    memset(&grown, 0xee, sizeof grown);
    STATUS(TLLM_ERR_NULL, tllm_config_option(0, NULL, sizeof(tllm_option)));
    STATUS(TLLM_ERR_STRUCT, tllm_config_option(0, &grown.option, sizeof(tllm_option) - 1));
    STATUS(TLLM_ERR_STRUCT, tllm_config_option(0, &grown.option, 0));
    STATUS(TLLM_ERR_STRUCT, tllm_config_option(0, &grown.option, 5000));
    CHECK(grown.more[0] == 0xee && ((uint8_t *)&grown)[0] == 0xee);
    /* A newer header's further bytes become zero, and nothing behind them is touched. */
    OK(tllm_config_option(0, &grown.option, sizeof(tllm_option) + 32));
    CHECK(grown.more[0] == 0 && grown.more[31] == 0 && grown.more[32] == 0xee);
}

static void limit(void)
{
    static tllm_config *configs[4096];
    tllm_config *more = (tllm_config *)16;
    for (size_t at = 0; at < COUNT(configs); at++) {
        OK(tllm_config_new(&configs[at]));
    }
    FAILS(TLLM_ERR_LIMIT, "4096", tllm_config_new(&more));
    CHECK(more == (tllm_config *)16);
    OK(tllm_config_free(configs[1000]));
    OK(tllm_config_new(&configs[1000]));
    for (size_t at = 0; at < COUNT(configs); at++) {
        OK(tllm_config_free(configs[at]));
    }
}

int main(int argc, char **argv)
{
    begin(argc, argv, 20);
    every_key();
    what_is_no_key();
    texts_that_come_out();
    sizes();
    limit();
    return 0;
}
