/* Heads beside the model: through keys, switched off and on, replaced at run time. */
#include "check.h"

#define FUSION "../plugins/examples/modules/fusion.wasm"
#define BEACONING "../plugins/examples/modules/beaconing.wasm"

static tllm_engine *with_heads(const char *modules, const char *fuel, const char *state)
{
    char setting[3][4200];
    /* A machine that is busy elsewhere must not decide what comes out: no limit of time. */
    const char *settings[7] = {"engine.workers=0", "heads.faults_in_a_row_max=3", "heads.batch_us_max=0", setting[0], setting[1], setting[2], NULL};
    snprintf(setting[0], sizeof setting[0], "heads.modules=%s", modules);
    snprintf(setting[1], sizeof setting[1], "heads.fuel_per_flow=%s", fuel);
    snprintf(setting[2], sizeof setting[2], "heads.allow_state=%s", state);
    tllm_engine *engine = engine_with(settings);
    OK(tllm_engine_start(engine));
    return engine;
}

static tllm_head head_of(const tllm_engine *engine, size_t index)
{
    tllm_head head;
    memset(&head, 0xee, sizeof head);
    OK(tllm_engine_head(engine, index, &head, sizeof head));
    return head;
}

/* Judges one flow and gives back its entries. */
static size_t judged(tllm_engine *engine, tllm_verdict *verdicts, unsigned seed)
{
    tllm_session *session = session_of(engine);
    tllm_flow *flow = flow_of(engine, 12, seed);
    size_t count = 0;
    OK(tllm_session_submit(session, flow, seed));
    OK(tllm_session_wait(session, 10000000, verdicts, sizeof verdicts[0], ENTRIES, &count));
    OK(tllm_flow_free(flow));
    OK(tllm_session_free(session));
    CHECK(count > 0 && verdicts[0].entries == count);
    return count;
}

static void a_head_answers_behind_the_tasks(void)
{
    static tllm_verdict with[ENTRIES], without[ENTRIES];
    tllm_engine *plain = engine_with((const char *const[]){"engine.workers=0", NULL});
    OK(tllm_engine_start(plain));
    tllm_engine *engine = with_heads(path_of(FUSION), "1000000", "0");
    size_t tasks = judged(plain, without, 5), entries = judged(engine, with, 5);
    CHECK(entries == tasks + 1);
    for (size_t at = 0; at < tasks; at++) {
        without[at].entries = with[at].entries;
        CHECK(same_verdict(&with[at], &without[at]));
        CHECK(with[at].evidence[0] == '\0' && with[at].reason[0] == '\0');
    }
    const tllm_verdict *own = &with[tasks];
    CHECK(strcmp(own->task_name, "fusion") == 0 && own->reason[0] == '\0');
    CHECK(own->status == TLLM_OK || own->status == TLLM_ABSTAINED);
    tllm_head head = head_of(engine, 0);
    CHECK(strcmp(head.name, "fusion") == 0 && head.enabled == 1 && head.stateful == 0 && head.labels == 2);
    CHECK(head.verdicts == 1 && head.faults == 0 && head.without_verdict == 0);
    STATUS(TLLM_END, tllm_engine_head(engine, 1, &head, sizeof head));
    STATUS(TLLM_END, tllm_engine_head(plain, 0, &head, sizeof head));
    STATUS(TLLM_ERR_STRUCT, tllm_engine_head(engine, 0, &head, 8));
    STATUS(TLLM_ERR_NULL, tllm_engine_head(engine, 0, NULL, sizeof head));
    static char text[65536];
    OK(tllm_engine_metrics(engine, text, sizeof text, NULL));
    CHECK(strstr(text, "trafficllm_head_verdicts_total{head=\"fusion\"} 1\n") != NULL);
    OK(tllm_engine_free(engine));
    OK(tllm_engine_free(plain));
}

static void a_head_that_fails_is_switched_off_and_on_again(void)
{
    static tllm_verdict verdicts[ENTRIES];
    tllm_engine *engine = with_heads(path_of(FUSION), "1", "0");
    for (unsigned round = 0; round < 4; round++) {
        size_t entries = judged(engine, verdicts, round);
        const tllm_verdict *own = &verdicts[entries - 1];
        CHECK(own->status == TLLM_ABSTAINED && own->label_name[0] == '\0');
        CHECK(own->reason[0] != '\0' && verdicts[0].reason[0] == '\0');
    }
    CHECK(strcmp(verdicts[0].task_name, "fusion") != 0);
    tllm_head head = head_of(engine, 0);
    CHECK(head.enabled == 0 && head.switched_off == 1 && head.faults >= 3 && head.without_verdict == 4);
    FAILS(TLLM_ERR_TASK, "fusion", tllm_engine_head_enable(engine, "other", 1));
    STATUS(TLLM_ERR_NULL, tllm_engine_head_enable(engine, NULL, 1));
    OK(tllm_engine_head_enable(engine, "fusion", 1));
    CHECK(head_of(engine, 0).enabled == 1);
    OK(tllm_engine_head_enable(engine, "fusion", 0));
    CHECK(head_of(engine, 0).enabled == 0);
    OK(tllm_engine_free(engine));
}

static void heads_are_replaced_at_run_time(void)
{
    static tllm_verdict verdicts[ENTRIES];
    char modules[4200];
    tllm_engine *engine = with_heads("", "1000000", "0");
    size_t tasks = judged(engine, verdicts, 1);
    snprintf(modules, sizeof modules, "heads.modules=%s", path_of(BEACONING));
    tllm_config *refused = config_of((const char *const[]){modules, NULL});
    FAILS(TLLM_ERR_VALUE, "beaconing.wasm", tllm_engine_activate_heads(engine, refused));
    CHECK(judged(engine, verdicts, 1) == tasks);
    OK(tllm_config_set(refused, "heads.allow_state", "1"));
    OK(tllm_engine_activate_heads(engine, refused));
    CHECK(judged(engine, verdicts, 1) == tasks + 1);
    CHECK(strcmp(verdicts[tasks].task_name, "beaconing") == 0 && head_of(engine, 0).stateful == 1);
    CHECK(verdicts[0].generation == 2);
    OK(tllm_engine_activate_heads(engine, NULL));
    CHECK(judged(engine, verdicts, 1) == tasks);
    OK(tllm_config_free(refused));
    OK(tllm_engine_free(engine));
}

static void a_file_that_is_no_head_is_named(void)
{
    tllm_model *model = open_small();
    tllm_engine *engine = NULL;
    char setting[4200];
    snprintf(setting, sizeof setting, "heads.modules=%s", path_of("c/heads.c"));
    tllm_config *config = config_of((const char *const[]){setting, NULL});
    FAILS(TLLM_ERR_VALUE, "heads.c", tllm_engine_new(model, config, &engine));
    OK(tllm_config_set(config, "heads.modules", "/nowhere/head.wasm"));
    FAILS(TLLM_ERR_VALUE, "/nowhere/head.wasm", tllm_engine_new(model, config, &engine));
    CHECK(engine == NULL);
    OK(tllm_config_free(config));
    OK(tllm_model_free(model));
}

int main(int argc, char **argv)
{
    begin(argc, argv, 60);
    a_head_answers_behind_the_tasks();
    a_head_that_fails_is_switched_off_and_on_again();
    heads_are_replaced_at_run_time();
    a_file_that_is_no_head_is_named();
    return 0;
}
