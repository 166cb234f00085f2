/* Judges a whole file, in the least code: a capture (pcap, pcapng, plain or gzip) or HTTP requests in JSON Lines.
 *
 *     capture FILE [BUNDLE]
 *
 * Writes what `trafficllm detect --format json` writes, byte for byte. */
#include <stdio.h>
#include <trafficllm.h>

static int fail(const char *what) {
    char text[1024] = "";
    tllm_last_error(text, sizeof text, NULL);
    fprintf(stderr, "capture: %s: %s\n", what, text);
    return 1;
}

/* Called on the main thread for each flow or request; another value than 0 would end it. */
static int32_t print(void *user, const tllm_subject *subject, const tllm_verdict *verdicts, size_t count) {
    char json[32768];
    if (tllm_subject_json((const char *)user, subject, sizeof *subject, verdicts, sizeof *verdicts, count, json, sizeof json, NULL) != TLLM_OK)
        return 1;
    puts(json);
    return 0;
}

int main(int argc, char **argv) {
    tllm_config *config = NULL;
    tllm_model *model = NULL;
    tllm_engine *engine = NULL;
    tllm_capture_report report;

    if (argc < 2) return fprintf(stderr, "usage: capture FILE [BUNDLE]\n"), 2;
    if (tllm_abi_version() != TLLM_ABI_VERSION) return fprintf(stderr, "capture: another libtrafficllm than it was compiled for\n"), 1;
    if (tllm_config_new(&config) != TLLM_OK || tllm_config_set(config, "engine.workers", "1") != TLLM_OK) return fail("config");
    if ((argc > 2 ? tllm_model_open(argv[2], config, &model) : tllm_model_open_default(config, &model)) != TLLM_OK) return fail("model");
    if (tllm_engine_new(model, config, &engine) != TLLM_OK || tllm_engine_start(engine) != TLLM_OK) return fail("engine");

    int32_t status = tllm_capture_detect(engine, argv[1], sizeof(tllm_subject), sizeof(tllm_verdict), print, argv[1], &report, sizeof report);
    if (status == TLLM_OK || status == TLLM_ERR_CAPTURE)
        fprintf(stderr, "capture: %llu flows, %llu lines, %llu verdicts, %llu of them abstain\n", (unsigned long long)report.flows,
                (unsigned long long)report.lines, (unsigned long long)report.verdicts, (unsigned long long)report.abstained);
    if (status < 0) fail(argv[1]);

    tllm_engine_free(engine);
    tllm_model_free(model);
    tllm_config_free(config);
    return status != TLLM_OK;
}
