/* Changes the model of an engine while another thread keeps it busy.
 *
 *     swap BUNDLE BUNDLE [SWAPS]
 *
 * The engine begins with the first bundle and goes to and fro between the two, ten times unless told. Flows under way finish on the model
 * that they were submitted to; a bundle that cannot be used changes nothing, and the library says why. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <trafficllm.h>

enum { GENERATIONS = 1024, VERDICTS = 256 };

static tllm_engine *engine;
static atomic_int finished;
static uint64_t answers[GENERATIONS]; /* by the number of the model that judged */

static int fail(const char *what) {
    char text[1024] = "";
    tllm_last_error(text, sizeof text, NULL);
    fprintf(stderr, "swap: %s: %s\n", what, text);
    return 1;
}

/* A DNS question and its answer, 40 ms apart. */
static int feed(tllm_flow *flow) {
    static const uint8_t question[] = "\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07" "example\x03" "org\x00\x00\x01\x00\x01";
    tllm_packet packet;
    if (tllm_packet_init(&packet, sizeof packet) != TLLM_OK) return -1;
    packet.payload = question;
    packet.payload_size = sizeof question - 1;
    for (int i = 0; i < 2; i++) {
        packet.direction = i == 0 ? TLLM_FROM_INITIATOR : TLLM_FROM_RESPONDER;
        packet.time_ns = (uint64_t)i * 40000000u;
        packet.payload_bytes = (uint32_t)packet.payload_size;
        packet.ip_bytes = 28 + packet.payload_bytes;
        if (tllm_flow_feed(flow, &packet) < 0) return -1;
    }
    return 0;
}

/* The packet path: it has a session of its own, and never notices a swap but by the number in the verdicts. */
static void *submit_flows(void *result) {
    static tllm_verdict verdicts[VERDICTS];
    tllm_session *session = NULL;
    tllm_flow *flow = NULL;
    tllm_flow_info info;
    size_t count = 0, under_way = 1;
    int32_t status = TLLM_OK;
    if (tllm_session_new(engine, &session) != TLLM_OK || tllm_flow_info_init(&info, sizeof info) != TLLM_OK) goto failed;
    info.protocol = 17;
    if (tllm_flow_new(engine, &info, &flow) != TLLM_OK || feed(flow) != 0) goto failed;
    for (uint64_t id = 0; !atomic_load(&finished) || under_way > 0; id++) {
        if (!atomic_load(&finished)) status = tllm_session_submit(session, flow, id);
        if (status < 0) goto failed;
        /* A full queue, or nothing more to submit: time to sleep until verdicts come. */
        uint64_t timeout_us = status == TLLM_QUEUE_FULL || atomic_load(&finished) ? 10000 : 0;
        status = tllm_session_wait(session, timeout_us, verdicts, sizeof verdicts[0], VERDICTS, &count);
        if (status < 0) goto failed;
        for (size_t i = 0; status == TLLM_OK && i < count; i += verdicts[i].entries) {
            if (verdicts[i].generation < GENERATIONS) answers[verdicts[i].generation]++;
        }
        if (tllm_session_in_flight(session, &under_way) != TLLM_OK) goto failed;
    }
    tllm_flow_free(flow);
    tllm_session_free(session);
    return NULL;
failed:
    fail("submit");
    *(int *)result = 1;
    return NULL;
}

int main(int argc, char **argv) {
    const int swaps = argc > 3 ? atoi(argv[3]) : 10;
    const struct timespec pause = {.tv_nsec = 100000000};
    int result = 0;
    tllm_model *model = NULL;
    tllm_counters counters;
    pthread_t thread;

    if (argc < 3) return fprintf(stderr, "usage: swap BUNDLE BUNDLE [SWAPS]\n"), 2;
    if (tllm_abi_version() != TLLM_ABI_VERSION) return fprintf(stderr, "swap: another libtrafficllm than it was compiled for\n"), 1;
    if (tllm_model_open(argv[1], NULL, &model) != TLLM_OK) return fail(argv[1]);
    if (tllm_engine_new(model, NULL, &engine) != TLLM_OK || tllm_engine_start(engine) != TLLM_OK) return fail("engine");
    tllm_model_free(model);
    if (pthread_create(&thread, NULL, submit_flows, &result) != 0) return fprintf(stderr, "swap: no thread\n"), 1;

    for (int swap = 1; swap <= swaps; swap++) {
        nanosleep(&pause, NULL);
        if (tllm_engine_activate(engine, argv[1 + swap % 2]) != TLLM_OK) result = fail(argv[1 + swap % 2]);
    }
    /* What is refused changes nothing. */
    if (tllm_engine_activate(engine, "/nonexistent.tllm") == TLLM_OK) result = fail("a bundle that is not there was activated");
    nanosleep(&pause, NULL);
    atomic_store(&finished, 1);
    pthread_join(thread, NULL);

    if (tllm_engine_stop(engine, 1000000) != TLLM_OK || tllm_engine_counters(engine, &counters, sizeof counters) != TLLM_OK) result = fail("stop");
    for (int i = 0; i < GENERATIONS; i++) {
        if (answers[i] > 0) printf("model %d: %llu answers\n", i, (unsigned long long)answers[i]);
    }
    printf("%llu submitted = %llu done + %llu shed; %llu swaps, %llu refused\n", (unsigned long long)counters.submitted,
           (unsigned long long)counters.done, (unsigned long long)counters.shed, (unsigned long long)counters.activations,
           (unsigned long long)counters.activations_failed);
    if (counters.submitted != counters.done + counters.shed) result = fail("the counters do not add up");
    tllm_engine_free(engine);
    return result;
}
