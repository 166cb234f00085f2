/* One score out of many: how likely it is that at least one task of the model sees something bad, if they were independent.
 *
 * Licence: MIT OR Apache-2.0.
 *
 * Labels that begin with one of GOOD are harmless; tasks without such a label say what a flow is, not whether it is bad, and are left out.
 * A task that abstains counts half.
 */

#define HEAD_NAME "fusion"
#define HEAD_VERSION "2"
#define HEAD_LABELS "harmless", "suspicious"
#define HEAD_NEEDS TLLM_HEAD_NEEDS_TASKS
#define HEAD_OUTPUT_BYTES 12288
#define HEAD_INPUT_BYTES 32768
#define HEAD_STATE struct fusion
#define HEAD_BEGIN begin

#include <stdint.h>

static const char *const GOOD[] = {"normal", "benign", "Benign", "Normal", "non-doh"};

#define TASKS 64
#define TASK_LABELS 128
#define NAME_BYTES 64

struct fusion {
    /* Of the model's tasks: whether each can be told from, which labels are harmless (a bit each), and names. */
    uint8_t is_used[TASKS];
    uint8_t harmless[TASKS][TASK_LABELS / 8];
    char names[TASKS][NAME_BYTES];
};

#include "trafficllm_head_sdk.h"

static int is_good(const uint8_t *text, uint32_t bytes)
{
    for (uint32_t number = 0; number < sizeof GOOD / sizeof GOOD[0]; number++) {
        uint32_t at = 0;
        while (GOOD[number][at] && at < bytes && (uint8_t)GOOD[number][at] == text[at])
            at++;
        if (!GOOD[number][at])
            return 1;
    }
    return 0;
}

static int32_t begin(const uint8_t *block, uint32_t bytes, struct fusion *state)
{
    uint32_t tasks = head_u16(block + 16), used = 0;
    const uint8_t *at = block + head_u16(block + 18);
    (void)bytes;
    for (uint32_t task = 0; task < tasks && task < TASKS; task++) {
        uint32_t labels = head_u16(at + 4), length = head_u16(at + 6);
        for (uint32_t byte = 0; byte < length && byte < NAME_BYTES - 1; byte++)
            state->names[task][byte] = (char)at[8 + byte];
        at += 8 + length;
        for (uint32_t label = 0; label < labels; label++) {
            length = head_u16(at);
            if (label < TASK_LABELS && is_good(at + 2, length)) {
                state->harmless[task][label / 8] |= (uint8_t)(1u << label % 8);
                state->is_used[task] = labels <= TASK_LABELS;
            }
            at += 2 + length;
        }
        used += state->is_used[task];
    }
    return used ? 0 : -1;
}

static float bad(const struct fusion *state, const struct head_task *task)
{
    const uint8_t *harmless = state->harmless[task->task];
    float good = 0.0f;
    if (!task->scores)
        return harmless[task->label / 8] >> task->label % 8 & 1 ? 1.0f - task->score : task->score;
    for (uint32_t label = 0; label < task->scores; label++)
        if (harmless[label / 8] >> label % 8 & 1)
            good += head_f32(task->score_list + 4 * label);
    return good < 1.0f ? 1.0f - good : 0.0f;
}

static int32_t head_judge(const struct head_flow *flow, struct head_verdict *verdict, struct fusion *state)
{
    float none = 1.0f, most = 0.0f;
    uint32_t used = 0, worst = 0;
    for (uint32_t number = 0; number < flow->tasks; number++) {
        struct head_task task = head_task(flow, number);
        if (task.task >= TASKS || !state->is_used[task.task] || task.label >= TASK_LABELS)
            continue;
        float score = bad(state, &task);
        if (task.flags & TLLM_HEAD_TASK_ABSTAINED)
            score *= 0.5f;
        none *= 1.0f - score;
        used++;
        if (score > most) {
            most = score;
            worst = task.task;
        }
    }
    if (!used) {
        verdict->flags = TLLM_HEAD_VERDICT_ABSTAINED;
        return 0;
    }
    verdict->label = none < 0.5f;
    verdict->score = verdict->label ? 1.0f - none : none;
    head_say(verdict, "of ");
    head_say_number(verdict, used);
    head_say(verdict, " tasks, most by ");
    head_say(verdict, state->names[worst]);
    return 0;
}
