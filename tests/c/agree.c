/* The same verdicts by every way: classified at once, through the queue, and of the whole capture file. The flows are fed here packet
 * by packet from a capture that this program reads itself. */
#include "check.h"

enum { FLOWS = 256, MOST = 8 };

struct connection {
    uint32_t addresses[2];
    uint16_t ports[2];
    uint8_t protocol;
    tllm_flow *flow;
    uint64_t packets;
    uint64_t bytes;
    size_t entries;
    tllm_verdict verdicts[MOST];
    unsigned matched;
};

static struct connection connections[FLOWS];
static size_t flows;
/* Flows of the capture that this program does not read: ICMP, IPv6. */
static size_t others;

static uint16_t two(const uint8_t *bytes) { return (uint16_t)(bytes[0] << 8 | bytes[1]); }

static struct connection *find(tllm_engine *engine, const uint32_t addresses[2], const uint16_t ports[2], uint8_t protocol,
                               uint8_t *direction)
{
    for (size_t at = 0; at < flows; at++) {
        struct connection *one = &connections[at];
        for (uint8_t side = 0; side < 2; side++) {
            if (one->protocol == protocol && one->addresses[0] == addresses[side] && one->addresses[1] == addresses[!side] &&
                one->ports[0] == ports[side] && one->ports[1] == ports[!side]) {
                *direction = side;
                return one;
            }
        }
    }
    CHECK(flows < FLOWS);
    struct connection *one = &connections[flows++];
    memset(one, 0, sizeof *one);
    memcpy(one->addresses, addresses, sizeof one->addresses);
    memcpy(one->ports, ports, sizeof one->ports);
    one->protocol = protocol;
    tllm_flow_info info;
    OK(tllm_flow_info_init(&info, sizeof info));
    info.protocol = protocol;
    info.ip_version = 4;
    info.initiator_port = ports[0];
    info.responder_port = ports[1];
    memcpy(info.initiator, &addresses[0], 4);
    memcpy(info.responder, &addresses[1], 4);
    OK(tllm_flow_new(engine, &info, &one->flow));
    *direction = 0;
    return one;
}

/* IPv4 in Ethernet, TCP and UDP, without fragments or options that the captures do not have. */
static void read_packet(tllm_engine *engine, const uint8_t *bytes, size_t size, uint64_t time_ns)
{
    if (size < 34 || two(bytes + 12) != 0x0800) {
        return;
    }
    const uint8_t *ip = bytes + 14;
    size_t ip_header = (size_t)(ip[0] & 15) * 4, ip_bytes = two(ip + 2);
    if ((ip[9] != 6 && ip[9] != 17) || size < 14 + ip_header + 8) {
        return;
    }
    const uint8_t *transport = ip + ip_header;
    size_t transport_header = ip[9] == 6 ? (size_t)(transport[12] >> 4) * 4 : 8;
    uint32_t addresses[2];
    uint16_t ports[2] = {two(transport), two(transport + 2)};
    uint8_t direction = 0;
    memcpy(addresses, ip + 12, sizeof addresses);
    struct connection *one = find(engine, addresses, ports, ip[9], &direction);
    tllm_packet packet;
    OK(tllm_packet_init(&packet, sizeof packet));
    packet.direction = direction;
    packet.tcp_flags = ip[9] == 6 ? transport[13] : 0;
    packet.time_ns = time_ns;
    packet.ip_bytes = (uint32_t)ip_bytes;
    packet.payload_bytes = (uint32_t)(ip_bytes - ip_header - transport_header);
    packet.payload = transport + transport_header;
    size_t captured = size - 14 - ip_header - transport_header;
    packet.payload_size = captured < packet.payload_bytes ? captured : packet.payload_bytes;
    int32_t status = tllm_flow_feed(one->flow, &packet);
    CHECK(status == TLLM_OK || status == TLLM_FLOW_FULL);
    one->packets++;
    one->bytes += ip_bytes;
}

static uint32_t four(const uint8_t *bytes)
{
    return (uint32_t)bytes[3] << 24 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[1] << 8 | bytes[0];
}

static void read_capture(tllm_engine *engine, const char *path)
{
    size_t size = 0, at = 24;
    uint8_t *bytes = read_file(path, &size);
    CHECK(size > 24 && (four(bytes) == 0xa1b2c3d4 || four(bytes) == 0xa1b23c4d) && four(bytes + 20) == 1);
    uint64_t unit = four(bytes) == 0xa1b23c4d ? 1 : 1000;
    flows = 0;
    while (at + 16 <= size) {
        uint64_t time_ns = four(bytes + at) * 1000000000u + four(bytes + at + 4) * unit;
        size_t length = four(bytes + at + 8);
        CHECK(at + 16 + length <= size);
        read_packet(engine, bytes + at + 16, length, time_ns);
        at += 16 + length;
    }
    free(bytes);
    CHECK(at == size && flows > 0);
}

static int32_t compare(void *user, const tllm_subject *subject, const tllm_verdict *verdicts, size_t count)
{
    (void)user;
    CHECK(subject->kind == TLLM_SUBJECT_FLOW);
    if (subject->ip_version != 4 || (subject->protocol != 6 && subject->protocol != 17)) {
        others++;
        return 0;
    }
    for (size_t at = 0; at < flows; at++) {
        struct connection *one = &connections[at];
        if (subject->ip_version == 4 && one->protocol == subject->protocol && one->ports[0] == subject->initiator_port &&
            one->ports[1] == subject->responder_port && memcmp(&one->addresses[0], subject->initiator, 4) == 0 &&
            memcmp(&one->addresses[1], subject->responder, 4) == 0) {
            CHECK(subject->packets == one->packets && subject->bytes == one->bytes);
            CHECK(count == one->entries);
            for (size_t entry = 0; entry < count; entry++) {
                CHECK(same_verdict(&verdicts[entry], &one->verdicts[entry]));
            }
            one->matched++;
            /* What stands in JSON is what stands in the struct. */
            char json[8192], array[4096], label[300];
            size_t needed = 0;
            OK(tllm_subject_json(NULL, subject, sizeof *subject, verdicts, sizeof *verdicts, count, json, sizeof json, &needed));
            CHECK(needed == strlen(json) + 1 && json[0] == '{' && json[needed - 2] == '}');
            OK(tllm_verdicts_json(verdicts, sizeof *verdicts, count, array, sizeof array, &needed));
            CHECK(needed == strlen(array) + 1 && array[0] == '[' && array[needed - 2] == ']');
            CHECK(strstr(json, array) != NULL);
            for (size_t entry = 0; entry < count; entry++) {
                snprintf(label, sizeof label, "\"label\":\"%s\"", verdicts[entry].label_name);
                CHECK(strstr(array, label) != NULL);
            }
            return 0;
        }
    }
    fprintf(stderr, "a flow with ports %u and %u is in the capture only\n", subject->initiator_port, subject->responder_port);
    exit(1);
}

static void agree(tllm_engine *engine, const char *path)
{
    tllm_session *session = session_of(engine);
    static tllm_verdict classified[FLOWS * MOST], queued[FLOWS * MOST];
    const tllm_flow *handles[FLOWS];
    size_t count = 0;
    read_capture(engine, path);
    for (size_t at = 0; at < flows; at++) {
        handles[at] = connections[at].flow;
    }
    OK(tllm_session_classify(session, handles, flows, classified, sizeof classified[0], FLOWS * MOST, &count));
    uint64_t last = 0;
    for (size_t at = 0; at < count; at++) {
        CHECK(classified[at].id >= last && classified[at].id < flows);
        last = classified[at].id;
        struct connection *one = &connections[last];
        CHECK(classified[at].position == one->entries && one->entries < MOST);
        one->verdicts[one->entries++] = classified[at];
    }
    /* One at a time, they are the same. */
    for (size_t at = 0; at < flows; at++) {
        size_t entries = 0;
        OK(tllm_session_classify(session, &handles[at], 1, queued, sizeof queued[0], FLOWS * MOST, &entries));
        CHECK(entries == connections[at].entries);
        for (size_t entry = 0; entry < entries; entry++) {
            CHECK(same_verdict(&queued[entry], &connections[at].verdicts[entry]));
        }
    }
    for (size_t at = 0; at < flows; at++) {
        OK(tllm_session_submit(session, connections[at].flow, at));
    }
    size_t answers = 0;
    while (answers < flows) {
        size_t entries = 0;
        int32_t status = tllm_session_wait(session, 1000000, queued, sizeof queued[0], FLOWS * MOST, &entries);
        CHECK(status == TLLM_OK || status == TLLM_PENDING);
        for (size_t at = 0; at < entries; at++) {
            CHECK(queued[at].id < flows && queued[at].entries == connections[queued[at].id].entries);
            CHECK(same_verdict(&queued[at], &connections[queued[at].id].verdicts[queued[at].position]));
            answers += queued[at].position == 0;
        }
    }
    tllm_capture_report report;
    others = 0;
    OK(tllm_capture_detect(engine, path, SIZES, compare, NULL, &report, sizeof report));
    CHECK(report.flows == flows + others);
    for (size_t at = 0; at < flows; at++) {
        CHECK(connections[at].matched == 1);
        OK(tllm_flow_free(connections[at].flow));
    }
    OK(tllm_session_free(session));
}

int main(int argc, char **argv)
{
    static const char *const captures[] = {"captures/http.pcap", "captures/ssh.pcap", "captures/smtp.pcap", "captures/dns-tunnel.pcap"};
    static const char *const settings[2][2] = {{"engine.workers=0", NULL}, {"engine.workers=2", NULL}};
    begin(argc, argv, 120);
    /* What the default bundle says takes a tool too long to watch. */
    for (size_t bundle = 0; bundle < (slower() < 10 ? 2 : 1); bundle++) {
        tllm_model *model = NULL;
        if (bundle == 0) {
            model = open_small();
        } else {
            OK(tllm_model_open_default(NULL, &model));
        }
        for (size_t how = 0; how < 2; how++) {
            tllm_config *config = config_of(settings[how]);
            tllm_engine *engine = NULL;
            OK(tllm_engine_new(model, config, &engine));
            OK(tllm_engine_start(engine));
            if (slower() < 10) {
                for (size_t at = 0; at < (bundle == 0 ? COUNT(captures) : 1); at++) {
                    agree(engine, path_of(captures[at]));
                }
            } else {
                agree(engine, path_of("captures/smtp.pcap"));
            }
            OK(tllm_engine_free(engine));
            OK(tllm_config_free(config));
        }
        OK(tllm_model_free(model));
    }
    return 0;
}
