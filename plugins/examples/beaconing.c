/* Finds hosts that call at regular times: the flows of a host pair begin at nearly equal distances, whoever answers.
 *
 * Licence: MIT OR Apache-2.0.
 *
 * Keeps what it knows of PAIRS_MAX host pairs, 32 bytes each: of a pair the number of its flows, when the last began, and mean and variance of
 * the distances (Welford's method; flows that begin within a second of each other are one call). A pair that comes when all places
 * of its group are taken takes the place of the one that was silent for longest. A pair is called a beacon from CALLS_MIN calls on, if the
 * distances spread by less than a fifth of their mean (standard deviation over mean); jitter of up to a third of the distance, as the
 * usual tools have it when asked for 0 to 30 %, stays below that.
 */

#define HEAD_NAME "beaconing"
#define HEAD_VERSION "1"
#define HEAD_LABELS "none", "beacon"
#define HEAD_NEEDS (TLLM_HEAD_NEEDS_PAIR | TLLM_HEAD_STATEFUL)
#define HEAD_INPUT_BYTES 8192
#define HEAD_OUTPUT_BYTES 12288
#define HEAD_HEADS_MAX 8
#define HEAD_STATE struct beaconing

#include <stdint.h>

#define PAIRS_MAX 1024
/* Pairs whose numbers lead to the same group share its places. */
#define GROUP 8
#define CALLS_MIN 6
/* What is closer is one call, and what is further apart begins anew. */
#define DISTANCE_MIN_US 1000000u
#define DISTANCE_MAX_US 86400000000u
/* The square of a fifth. */
#define SPREAD_MAX 0.04f

struct pair {
    uint64_t pair, last_us;
    uint32_t calls;
    /* Of the distances, in seconds. */
    float mean_s, squares_s2;
    uint32_t reserved;
};

struct beaconing {
    struct pair pairs[PAIRS_MAX];
};

#include "trafficllm_head_sdk.h"

/* The pair's place; a new one is zeros but for its number. */
static struct pair *find(struct beaconing *state, uint64_t number)
{
    struct pair *group = &state->pairs[(number ^ number >> 32) % (PAIRS_MAX / GROUP) * GROUP], *oldest = group;
    for (uint32_t place = 0; place < GROUP; place++) {
        if (group[place].pair == number)
            return &group[place];
        if (group[place].pair == 0 || (oldest->pair != 0 && group[place].last_us < oldest->last_us))
            oldest = &group[place];
    }
    oldest->pair = number;
    oldest->last_us = 0;
    oldest->calls = 0;
    oldest->mean_s = oldest->squares_s2 = 0.0f;
    return oldest;
}

/* Tenths, for people. */
static void say_seconds(struct head_verdict *verdict, float seconds)
{
    uint64_t tenths = (uint64_t)(seconds * 10.0f + 0.5f);
    head_say_number(verdict, tenths / 10);
    head_say(verdict, ".");
    head_say_number(verdict, tenths % 10);
    head_say(verdict, " s");
}

static int32_t head_judge(const struct head_flow *flow, struct head_verdict *verdict, struct beaconing *state)
{
    struct pair *pair;
    verdict->score = 0.5f;
    verdict->flags = TLLM_HEAD_VERDICT_ABSTAINED;
    if (flow->pair == 0)
        return 0;
    pair = find(state, flow->pair);
    if (pair->calls == 0) {
        pair->calls = 1;
        pair->last_us = flow->start_us;
        return 0;
    }
    /* Flows come in the order in which they end, so one can have begun before the one that came before it. */
    if (flow->start_us >= pair->last_us + DISTANCE_MIN_US) {
        uint64_t distance_us = flow->start_us - pair->last_us;
        pair->last_us = flow->start_us;
        if (distance_us > DISTANCE_MAX_US) {
            pair->calls = 1;
            pair->mean_s = pair->squares_s2 = 0.0f;
            return 0;
        }
        float distance_s = (float)distance_us * 1e-6f, delta = distance_s - pair->mean_s;
        pair->mean_s += delta / (float)pair->calls;
        pair->squares_s2 += delta * (distance_s - pair->mean_s);
        pair->calls += pair->calls < 1000000;
    }
    if (pair->calls < CALLS_MIN)
        return 0;
    /* The square of the spread; 0 is as regular as can be. */
    float spread = pair->squares_s2 / (float)(pair->calls - 1) / (pair->mean_s * pair->mean_s);
    float regular = 1.0f / (1.0f + spread / SPREAD_MAX);
    verdict->flags = 0;
    verdict->label = spread < SPREAD_MAX;
    verdict->score = verdict->label ? regular : 1.0f - regular;
    head_say_number(verdict, pair->calls);
    head_say(verdict, " calls of this host pair, one every ");
    say_seconds(verdict, pair->mean_s);
    return 0;
}
