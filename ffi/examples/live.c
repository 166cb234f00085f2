/* Judges flows while they are running: one thread, one poll(2), and a packet path that never waits for the model.
 *
 *     live CAPTURE | live -i INTERFACE [SECONDS]
 *
 * A flow is submitted once it has FIRST_PACKETS packets, or has been silent for a second; its verdicts are printed when they come. Flows that
 * are silent for a minute are freed. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <time.h>

#include "packets.h"

enum { FIRST_PACKETS = 20, VERDICTS = 256 };
static const uint64_t SECOND_NS = 1000000000u;

static flow_table flows;
static volatile sig_atomic_t stopped;

static void stop(int signal) {
    (void)signal;
    stopped = 1;
}

static int fail(const char *what, const char *text) {
    char error[1024] = "";
    tllm_last_error(error, sizeof error, NULL);
    fprintf(stderr, "live: %s: %s\n", what, text != NULL ? text : error);
    return 1;
}

/* Submits a flow. The verdicts come back with the address of its entry: none comes after the flow was freed, so it is valid then. */
static int submit(tllm_session *session, struct flow *flow) {
    int32_t status = tllm_session_submit(session, flow->handle, (uint64_t)(uintptr_t)flow);
    /* TLLM_QUEUE_FULL: the engine cannot keep up. It has counted the flow as shed, and a packet path goes on without it. */
    flow->submitted = status != TLLM_NEED_MORE;
    return status < 0 ? -1 : 0;
}

/* Feeds up to 256 packets; then it is the verdicts' turn. 1 for more, 0 for none now, -1 for the end, -2 for an error. */
static int read_packets(pcap_t *capture, tllm_engine *engine, tllm_session *session, uint64_t *now_ns) {
    static tllm_flow_info info;
    static tllm_packet packet;
    struct pcap_pkthdr *head;
    const u_char *bytes;
    if (info.struct_size == 0 && (tllm_flow_info_init(&info, sizeof info) | tllm_packet_init(&packet, sizeof packet)) != TLLM_OK) return -2;
    for (int i = 0; i < 256; i++) {
        int got = pcap_next_ex(capture, &head, &bytes);
        if (got != 1) return got == 0 ? 0 : got == PCAP_ERROR_BREAK ? -1 : -2;
        if (!decode(capture, head, bytes, &info, &packet)) continue;
        struct flow *flow = find_flow(flows, engine, &info, &packet.direction);
        if (flow == NULL) continue; /* TLLM_ERR_LIMIT: too many flows at a time. This one is not judged; the others are. */
        int32_t status = tllm_flow_feed(flow->handle, &packet);
        if (status < 0) return -2;
        flow->last_ns = *now_ns = packet.time_ns;
        flow->packets++;
        if (!flow->submitted && (flow->packets >= FIRST_PACKETS || status == TLLM_FLOW_FULL) && submit(session, flow) < 0) return -2;
    }
    return 1;
}

/* Submits the flows that have been silent for `idle_ns`. */
static int submit_silent(tllm_session *session, uint64_t now_ns, uint64_t idle_ns) {
    for (size_t bucket = 0; bucket < FLOW_BUCKETS; bucket++) {
        for (struct flow *flow = flows[bucket]; flow != NULL; flow = flow->next) {
            if (!flow->submitted && now_ns >= flow->last_ns && now_ns - flow->last_ns >= idle_ns && submit(session, flow) < 0) return -1;
        }
    }
    return 0;
}

/* Takes and prints what has come. An answer has an entry for each task that applies. */
static int print_verdicts(tllm_session *session) {
    static tllm_verdict verdicts[VERDICTS];
    size_t count = 0;
    int32_t status;
    while ((status = tllm_session_poll(session, verdicts, sizeof verdicts[0], VERDICTS, &count)) == TLLM_OK) {
        for (size_t i = 0; i < count; i++) {
            const tllm_verdict *verdict = &verdicts[i];
            print_flow(&((const struct flow *)(uintptr_t)verdict->id)->info);
            if (verdict->status == TLLM_OK || verdict->status == TLLM_ABSTAINED)
                printf(" %s %s%s %.4f\n", verdict->task_name, verdict->label_name, verdict->status == TLLM_OK ? "" : "?", (double)verdict->score);
            else
                printf(" %s\n", tllm_status_string(verdict->status));
        }
        fflush(stdout);
    }
    return status < 0 ? -1 : 0;
}

/* Time as packets have it: of a file's last packet, of an interface now, so that silence is noticed where nothing comes. */
static uint64_t time_ns(uint64_t last_packet_ns, int live) {
    struct timespec now;
    if (!live || clock_gettime(CLOCK_REALTIME, &now) != 0) return last_packet_ns;
    return (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec;
}

static int run(pcap_t *capture, tllm_engine *engine, tllm_session *session, int live, time_t until) {
    struct pollfd wake[2] = {{.fd = pcap_get_selectable_fd(capture), .events = POLLIN}, {.fd = -1, .events = POLLIN}};
    uint64_t now_ns = 0, swept_ns = 0;
    size_t under_way = 0;
    int packets = 1;
    int32_t descriptor;
    if (tllm_session_fd(session, &descriptor) != TLLM_OK) return fail("session", NULL);
    wake[1].fd = descriptor;
    for (;;) {
        if (packets >= 0) {
            packets = read_packets(capture, engine, session, &now_ns);
            if (packets == -2) return fail("packets", *pcap_geterr(capture) != '\0' ? pcap_geterr(capture) : NULL);
            now_ns = time_ns(now_ns, live);
            if (stopped || (until != 0 && time(NULL) >= until)) packets = -1;
            if (packets == -1) { /* nothing more comes: what was not submitted yet is now */
                wake[0].fd = -1;
                if (submit_silent(session, UINT64_MAX, 0) < 0) return fail("submit", NULL);
            }
        }
        if (now_ns - swept_ns >= SECOND_NS) {
            swept_ns = now_ns;
            if (submit_silent(session, now_ns, SECOND_NS) < 0) return fail("submit", NULL);
            free_flows(flows, now_ns, 60 * SECOND_NS);
        }
        if (print_verdicts(session) < 0) return fail("verdicts", NULL);
        if (tllm_session_in_flight(session, &under_way) != TLLM_OK) return fail("session", NULL);
        if (packets == -1 && under_way == 0) return 0;
        /* Packets that are there already do not wait; a file is always there. */
        if (poll(wake, 2, packets == 1 ? 0 : 1000) < 0 && errno != EINTR) return fail("poll", strerror(errno));
    }
}

int main(int argc, char **argv) {
    int live = argc > 2 && strcmp(argv[1], "-i") == 0;
    char text[PCAP_ERRBUF_SIZE] = "";
    tllm_model *model = NULL;
    tllm_engine *engine = NULL;
    tllm_session *session = NULL;
    tllm_counters counters;

    if (argc < 2) return fprintf(stderr, "usage: live CAPTURE | live -i INTERFACE [SECONDS]\n"), 2;
    if (tllm_abi_version() != TLLM_ABI_VERSION) return fprintf(stderr, "live: another libtrafficllm than it was compiled for\n"), 1;
    pcap_t *capture = live ? pcap_open_live(argv[2], 65535, 1, 100, text)
                           : pcap_open_offline_with_tstamp_precision(argv[1], PCAP_TSTAMP_PRECISION_NANO, text);
    if (capture == NULL || (live && pcap_setnonblock(capture, 1, text) != 0)) return fail(argv[live ? 2 : 1], text);
    if (tllm_model_open_default(NULL, &model) != TLLM_OK) return fail("model", NULL);
    if (tllm_engine_new(model, NULL, &engine) != TLLM_OK) return fail("engine", NULL);
    tllm_model_free(model); /* the engine keeps it */
    /* A host that forks does it before this. */
    if (tllm_engine_start(engine) != TLLM_OK || tllm_session_new(engine, &session) != TLLM_OK) return fail("engine", NULL);
    signal(SIGINT, stop);
    signal(SIGTERM, stop);

    int result = run(capture, engine, session, live, argc > 3 ? time(NULL) + atoi(argv[3]) : 0);

    if (tllm_engine_counters(engine, &counters, sizeof counters) == TLLM_OK)
        fprintf(stderr, "live: %llu submitted, %llu done, %llu shed\n", (unsigned long long)counters.submitted,
                (unsigned long long)counters.done, (unsigned long long)counters.shed);
    free_flows(flows, UINT64_MAX, 0);
    tllm_session_free(session);
    tllm_engine_free(engine);
    pcap_close(capture);
    return result;
}
