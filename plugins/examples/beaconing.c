/* Finds host pairs that a clock drives: malware that calls home, tunnels through DNS or DoH that poll, devices that report.
 *
 * Licence: MIT OR Apache-2.0.
 *
 * Keeps what it knows of PAIRS_MAX host pairs: when their last CALLS calls began (flows that begin within MERGE_MS of each other are one call),
 * the last WAITS waits inside their flows, and how many flows in a row began when the one before had ended. A pair that comes when all
 * places of its group are taken takes the place of the one that was silent for longest; a day of silence begins anew. Looks at times alone: no
 * payload, no sizes, no addresses.
 *
 * "beacon", by one of:
 * - The clock. Distances between calls, or waits inside flows, that are equal to 3 %, or become so when halved or doubled: timers repeat,
 *   and double when nothing happens. How likely is it that so many of so many agree without a clock, if it were equally likely
 *   at all places of an octave? Below CHANCE_MAX, counting that each distance was tried as the clock, it is said to be one.
 * - Jitter. Distances between at least JITTER_CALLS_MIN calls that spread by less than a fifth of their mean (standard deviation over mean), as those of the usual
 *   tools do when asked for 0 to 30 % of jitter.
 * "lockstep": LOCKSTEP_MIN flows in a row that each began within LOCKSTEP_MS after the end of the one before: one conversation cut into many flows.
 *
 * What is not seen: a tunnel in one single flow that never waits, or one whose flows all begin at once. What is seen besides: whatever else a clock drives. A
 * device that asks for the time every two seconds is a beacon, if a harmless one. A packet that is like the one before it, in the same direction, counts
 * as a repetition and not as a wait: they are sent by a clock too. Waits below MERGE_MS are none: programs try another address after a quarter
 * of a second (RFC 8305, 5).
 */

#define HEAD_NAME "beaconing"
#define HEAD_VERSION "2"
#define HEAD_LABELS "none", "beacon", "lockstep"
#define HEAD_NEEDS (TLLM_HEAD_NEEDS_PAIR | TLLM_HEAD_NEEDS_PACKETS | TLLM_HEAD_STATEFUL)
#define HEAD_INPUT_BYTES 16384
#define HEAD_OUTPUT_BYTES 12288
#define HEAD_STATE struct beaconing

#include <stdint.h>

#define PAIRS_MAX 512
/* Pairs whose numbers lead to the same group share its places. */
#define GROUP 8
#define CALLS 24
#define WAITS 24
/* Distances, or waits, below which nothing is said. */
#define DISTANCES_MIN 5
#define JITTER_CALLS_MIN 8
#define MERGE_MS 300
#define LOCKSTEP_MS 50
#define LOCKSTEP_MIN 24
#define DAY_US 86400000000u
#define CHANCE_MAX 1e-4f
/* Half of log2(1.03 / 0.97) octaves, in 65,536ths; and the share of an octave that is so near. */
#define NEAR 2837
#define NEAR_SHARE 0.08658f
/* The square of a fifth. */
#define SPREAD_MAX 0.04f

struct wait {
    /* When its flow began, and how long it was. */
    uint32_t flow_ms, wait_ms;
};

struct pair {
    uint64_t pair;
    /* The latest beginning and the latest end. */
    uint64_t last_us, end_us;
    uint32_t calls_total;
    uint32_t lockstep, lockstep_ms;
    uint16_t calls, waits;
    /* In the order of time; modulo 2^32. */
    uint32_t call_ms[CALLS];
    struct wait wait[WAITS];
};

struct beaconing {
    struct pair pairs[PAIRS_MAX];
};

#include "trafficllm_head_sdk.h"

/* What a clock explains. */
struct clock {
    float chance;
    uint32_t distance_ms, agree;
    /* Bit k: distance k agrees. */
    uint32_t which;
};

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
    *oldest = (struct pair){.pair = number};
    return oldest;
}

static void add_call(struct pair *pair, uint32_t start_ms)
{
    uint32_t place = pair->calls;
    while (place > 0 && (int32_t)(pair->call_ms[place - 1] - start_ms) > 0)
        place--;
    if (place > 0 && start_ms - pair->call_ms[place - 1] < MERGE_MS)
        return;
    if (place < pair->calls && pair->call_ms[place] - start_ms < MERGE_MS)
        return;
    pair->calls_total += pair->calls_total < 1000000;
    if (pair->calls == CALLS) {
        /* The oldest goes, which may be this one: flows come in the order in which they end. */
        if (place == 0)
            return;
        place--;
        for (uint32_t call = 0; call < place; call++)
            pair->call_ms[call] = pair->call_ms[call + 1];
    } else {
        for (uint32_t call = pair->calls++; call > place; call--)
            pair->call_ms[call] = pair->call_ms[call - 1];
    }
    pair->call_ms[place] = start_ms;
}

static void add_waits(struct pair *pair, const struct head_flow *flow, uint32_t start_ms)
{
    uint64_t waited_us = 0;
    uint32_t last_size = 0;
    uint8_t last_direction = 2;
    for (uint32_t number = 0; number < flow->packets; number++) {
        struct head_packet packet = head_packet(flow, number);
        waited_us += packet.gap_us;
        if (packet.payload_size == 0)
            continue;
        int repeats = packet.direction == last_direction && packet.payload_size == last_size;
        if (last_direction != 2 && !repeats && waited_us >= MERGE_MS * 1000u && waited_us < DAY_US / 24) {
            if (pair->waits == WAITS) {
                pair->waits--;
                for (uint32_t wait = 0; wait < pair->waits; wait++)
                    pair->wait[wait] = pair->wait[wait + 1];
            }
            pair->wait[pair->waits++] = (struct wait){start_ms, (uint32_t)(waited_us / 1000)};
        }
        waited_us = 0;
        last_direction = packet.direction;
        last_size = packet.payload_size;
    }
}

static void add_lockstep(struct pair *pair, const struct head_flow *flow, uint32_t start_ms)
{
    uint64_t end_us = flow->start_us + flow->duration_us;
    int follows = pair->end_us != 0 && flow->start_us >= pair->end_us && flow->start_us - pair->end_us < LOCKSTEP_MS * 1000u;
    if (!follows || pair->lockstep == 0) {
        pair->lockstep = 0;
        pair->lockstep_ms = start_ms;
    }
    pair->lockstep += pair->lockstep < 1000000;
    if (end_us > pair->end_us)
        pair->end_us = end_us;
}

/* Where in its octave a time is: the part of its binary logarithm behind the point, in 65,536ths; to three decimals. */
static uint16_t octave_place(uint32_t time_ms)
{
    union { uint32_t bits; float value; } number;
    number.value = (float)time_ms;
    number.bits = (number.bits & 0x7fffffu) | 0x3f800000u;
    float m = number.value;
    float log = -1.7417939f + (2.8212026f + (-1.4699568f + (0.44717955f - 0.056570851f * m) * m) * m) * m;
    log = log < 0.0f ? 0.0f : log;
    return (uint16_t)(uint32_t)(log * 65536.0f);
}

/* The chance that at least `least` of `count` agree with one more, if each does with NEAR_SHARE. */
static float chance(uint32_t count, uint32_t least)
{
    float term = 1.0f, sum = 0.0f;
    for (uint32_t number = 0; number < count; number++)
        term *= 1.0f - NEAR_SHARE;
    for (uint32_t number = 0; number <= count; number++) {
        if (number >= least)
            sum += term;
        term *= (float)(count - number) / (float)(number + 1) * (NEAR_SHARE / (1.0f - NEAR_SHARE));
    }
    return sum;
}

static struct clock find_clock(const uint32_t *distance_ms, uint32_t count)
{
    struct clock best = {1.0f, 0, 0, 0};
    uint16_t place[CALLS > WAITS ? CALLS : WAITS];
    if (count < DISTANCES_MIN)
        return best;
    for (uint32_t number = 0; number < count; number++)
        place[number] = octave_place(distance_ms[number]);
    for (uint32_t tried = 0; tried < count; tried++) {
        uint32_t which = 0, agree = 0;
        for (uint32_t number = 0; number < count; number++) {
            uint16_t apart = (uint16_t)(place[number] - place[tried]);
            if (apart <= NEAR || apart >= 65536 - NEAR) {
                which |= 1u << number;
                agree++;
            }
        }
        if (agree > best.agree)
            best = (struct clock){1.0f, distance_ms[tried], agree, which};
    }
    best.chance = (float)count * chance(count - 1, best.agree - 1);
    best.chance = best.chance < 1.0f ? best.chance : 1.0f;
    return best;
}

/* The square of standard deviation over mean. */
static float spread(const uint32_t *distance_ms, uint32_t count, float *mean_ms)
{
    float sum = 0.0f, squares = 0.0f;
    for (uint32_t number = 0; number < count; number++)
        sum += (float)distance_ms[number];
    *mean_ms = sum / (float)count;
    for (uint32_t number = 0; number < count; number++) {
        float apart = (float)distance_ms[number] - *mean_ms;
        squares += apart * apart;
    }
    return squares / (float)(count - 1) / (*mean_ms * *mean_ms);
}

/* Seconds with two decimals, for people. */
static void say_seconds(struct head_verdict *verdict, uint32_t time_ms)
{
    uint32_t hundredths = (time_ms + 5) / 10;
    head_say_number(verdict, hundredths / 100);
    head_say(verdict, hundredths % 100 < 10 ? ".0" : ".");
    head_say_number(verdict, hundredths % 100);
}

/* Names a flow of the pair by how long before this one it began; as many as there is room for. */
static void say_flow(struct head_verdict *verdict, uint32_t *said, uint32_t now_ms, uint32_t flow_ms)
{
    if (flow_ms == now_ms || verdict->evidence_bytes > TLLM_HEAD_EVIDENCE_BYTES_MAX - 24)
        return;
    head_say(verdict, *said == 0 ? "; with the flows that began " : " ");
    if ((int32_t)(now_ms - flow_ms) < 0) {
        head_say(verdict, "-");
        say_seconds(verdict, flow_ms - now_ms);
    } else {
        say_seconds(verdict, now_ms - flow_ms);
    }
    (*said)++;
}

static void say_clock(struct head_verdict *verdict, const struct clock *clock, uint32_t count, const char *of)
{
    head_say(verdict, "every ");
    say_seconds(verdict, clock->distance_ms);
    head_say(verdict, " s, halved or doubled: ");
    head_say_number(verdict, clock->agree);
    head_say(verdict, " of ");
    head_say_number(verdict, count);
    head_say(verdict, of);
}

/* The calls on both sides of the distances of `which`, the latest first. */
static void say_calls(struct head_verdict *verdict, const struct pair *pair, uint32_t which, uint32_t now_ms)
{
    uint32_t said = 0;
    for (uint32_t call = pair->calls; call-- > 0;)
        if ((call < 31 && which >> call & 1) || (call > 0 && which >> (call - 1) & 1))
            say_flow(verdict, &said, now_ms, pair->call_ms[call]);
    if (said)
        head_say(verdict, " s before");
}

static void say_waits(struct head_verdict *verdict, const struct pair *pair, uint32_t which, uint32_t now_ms)
{
    uint32_t said = 0, last_ms = now_ms;
    for (uint32_t wait = pair->waits; wait-- > 0;) {
        if (!(which >> wait & 1) || pair->wait[wait].flow_ms == last_ms)
            continue;
        last_ms = pair->wait[wait].flow_ms;
        say_flow(verdict, &said, now_ms, last_ms);
    }
    if (said)
        head_say(verdict, " s before");
}

static void judge(const struct pair *pair, struct head_verdict *verdict, uint32_t now_ms)
{
    uint32_t distance_ms[CALLS], wait_ms[WAITS], distances = pair->calls ? pair->calls - 1u : 0;
    float mean_ms = 0.0f, most = 0.0f, spreads = 1e9f;
    for (uint32_t number = 0; number < distances; number++)
        distance_ms[number] = pair->call_ms[number + 1] - pair->call_ms[number];
    for (uint32_t number = 0; number < pair->waits; number++)
        wait_ms[number] = pair->wait[number].wait_ms;
    struct clock calls = find_clock(distance_ms, distances), waits = find_clock(wait_ms, pair->waits);
    float by_calls = 1.0f / (1.0f + calls.chance / CHANCE_MAX), by_waits = 1.0f / (1.0f + waits.chance / CHANCE_MAX);
    float by_jitter = 0.0f, by_lockstep = (float)pair->lockstep / (float)(pair->lockstep + LOCKSTEP_MIN);
    if (pair->calls >= JITTER_CALLS_MIN) {
        spreads = spread(distance_ms, distances, &mean_ms);
        by_jitter = 1.0f / (1.0f + spreads / SPREAD_MAX);
    }
    /* The first that holds is said, the surest kind of evidence first. */
    if (by_calls > 0.5f && by_calls >= by_waits) {
        say_clock(verdict, &calls, distances, " distances between calls");
        say_calls(verdict, pair, calls.which, now_ms);
        most = by_calls;
    } else if (by_waits > 0.5f) {
        say_clock(verdict, &waits, pair->waits, " waits inside flows");
        say_waits(verdict, pair, waits.which, now_ms);
        most = by_waits;
    } else if (by_jitter > 0.5f) {
        head_say(verdict, "every ");
        say_seconds(verdict, (uint32_t)mean_ms);
        head_say(verdict, " s on average, within a fifth: ");
        head_say_number(verdict, pair->calls);
        head_say(verdict, " calls");
        say_calls(verdict, pair, ~0u, now_ms);
        most = by_jitter;
    }
    if (most > 0.0f) {
        verdict->label = 1;
        verdict->score = most;
    } else if (pair->lockstep >= LOCKSTEP_MIN) {
        head_say_number(verdict, pair->lockstep);
        head_say(verdict, " flows in a row, each begun when the one before had ended; the first began ");
        say_seconds(verdict, now_ms - pair->lockstep_ms);
        head_say(verdict, " s before");
        verdict->label = 2;
        verdict->score = by_lockstep;
    } else if (distances < DISTANCES_MIN && pair->waits < DISTANCES_MIN) {
        verdict->flags = TLLM_HEAD_VERDICT_ABSTAINED;
        verdict->score = 0.5f;
    } else {
        most = by_calls > by_waits ? by_calls : by_waits;
        most = by_jitter > most ? by_jitter : most;
        most = by_lockstep > most ? by_lockstep : most;
        verdict->score = 1.0f - most;
        head_say_number(verdict, pair->calls_total);
        head_say(verdict, " calls of this host pair, no clock");
    }
}

static int32_t head_judge(const struct head_flow *flow, struct head_verdict *verdict, struct beaconing *state)
{
    uint32_t start_ms = (uint32_t)(flow->start_us / 1000);
    struct pair *pair;
    if (flow->pair == 0) {
        verdict->flags = TLLM_HEAD_VERDICT_ABSTAINED;
        verdict->score = 0.5f;
        return 0;
    }
    pair = find(state, flow->pair);
    if (pair->calls != 0 && flow->start_us > pair->last_us && flow->start_us - pair->last_us > DAY_US)
        *pair = (struct pair){.pair = flow->pair};
    if (flow->start_us > pair->last_us)
        pair->last_us = flow->start_us;
    add_call(pair, start_ms);
    add_waits(pair, flow, start_ms);
    add_lockstep(pair, flow, start_ms);
    judge(pair, verdict, start_ms);
    return 0;
}
