/* Classifies the flows of a capture: libpcap reads it, libtrafficllm judges.
 *
 *     classify CAPTURE [BUNDLE]
 *
 * One line per flow: protocol, who began it, whom it went to, and its verdicts in JSON. This is the synchronous way: no worker, no queue. A
 * host with a packet path of its own goes the way of live.c. */
#include "packets.h"

/* A text of the library for every error, and the end. */
static int fail(const char *what) {
    char text[1024] = "out of memory";
    tllm_last_error(text, sizeof text, NULL);
    fprintf(stderr, "classify: %s: %s\n", what, text);
    return 1;
}

int main(int argc, char **argv) {
    static flow_table flows;
    tllm_model *model = NULL;
    tllm_engine *engine = NULL;
    tllm_session *session = NULL;
    tllm_flow_info info;
    tllm_packet packet;
    char text[PCAP_ERRBUF_SIZE] = "";

    if (argc < 2) return fprintf(stderr, "usage: classify CAPTURE [BUNDLE]\n"), 2;
    if (tllm_abi_version() != TLLM_ABI_VERSION) return fprintf(stderr, "classify: another libtrafficllm than it was compiled for\n"), 1;
    if ((argc > 2 ? tllm_model_open(argv[2], NULL, &model) : tllm_model_open_default(NULL, &model)) != TLLM_OK) return fail("model");
    if (tllm_engine_new(model, NULL, &engine) != TLLM_OK) return fail("engine");
    if (tllm_session_new(engine, &session) != TLLM_OK) return fail("session");
    tllm_flow_info_init(&info, sizeof info);
    tllm_packet_init(&packet, sizeof packet);

    /* Every packet goes to its flow, in the order of the capture. */
    pcap_t *capture = pcap_open_offline_with_tstamp_precision(argv[1], PCAP_TSTAMP_PRECISION_NANO, text);
    if (capture == NULL) return fprintf(stderr, "classify: %s\n", text), 1;
    struct pcap_pkthdr *head;
    const u_char *bytes;
    int got;
    while ((got = pcap_next_ex(capture, &head, &bytes)) == 1) {
        if (!decode(capture, head, bytes, &info, &packet)) continue;
        struct flow *flow = find_flow(flows, engine, &info, &packet.direction);
        if (flow == NULL || tllm_flow_feed(flow->handle, &packet) < 0) return fail("flow");
    }
    if (got == PCAP_ERROR) fprintf(stderr, "classify: %s: %s\n", argv[1], pcap_geterr(capture));
    pcap_close(capture);

    /* Every flow is judged, by all tasks that apply to it: at most 64 here. */
    for (size_t bucket = 0; bucket < FLOW_BUCKETS; bucket++) {
        for (struct flow *flow = flows[bucket]; flow != NULL; flow = flow->next) {
            static tllm_verdict verdicts[64];
            static char json[32768];
            const tllm_flow *judged[1] = {flow->handle};
            size_t count = 0;
            if (tllm_session_classify(session, judged, 1, verdicts, sizeof verdicts[0], 64, &count) < 0) return fail("classify");
            if (tllm_verdicts_json(verdicts, sizeof verdicts[0], count, json, sizeof json, NULL) < 0) return fail("json");
            print_flow(&flow->info);
            printf(" %s\n", json);
        }
    }

    /* Any order will do: what is in use stays as long as it is. */
    tllm_model_free(model);
    tllm_engine_free(engine);
    tllm_session_free(session);
    free_flows(flows, UINT64_MAX, 0);
    return got == PCAP_ERROR;
}
