/* Flows that the host feeds. */
#include "check.h"

static tllm_flow_stats stats_of(const tllm_flow *flow)
{
    tllm_flow_stats stats;
    memset(&stats, 0xee, sizeof stats);
    OK(tllm_flow_describe(flow, &stats, sizeof stats));
    CHECK(stats.reserved[0] == 0 && stats.reserved[1] == 0);
    return stats;
}

static tllm_packet packet_of(uint64_t time_ns, const uint8_t *payload, size_t size)
{
    tllm_packet packet;
    OK(tllm_packet_init(&packet, sizeof packet));
    packet.tcp_flags = 0x18;
    packet.time_ns = time_ns;
    packet.payload = payload;
    packet.payload_size = size;
    packet.payload_bytes = (uint32_t)size;
    packet.ip_bytes = (uint32_t)size + 40;
    return packet;
}

static void prepared(void)
{
    tllm_flow_info info;
    tllm_packet packet;
    memset(&info, 0xee, sizeof info);
    memset(&packet, 0xee, sizeof packet);
    OK(tllm_flow_info_init(&info, sizeof info));
    OK(tllm_packet_init(&packet, sizeof packet));
    CHECK(info.struct_size == sizeof info && packet.struct_size == sizeof packet);
    info.struct_size = packet.struct_size = 0;
    for (size_t at = 0; at < sizeof info; at++) {
        CHECK(((const uint8_t *)&info)[at] == 0);
    }
    for (size_t at = 0; at < sizeof packet; at++) {
        CHECK(((const uint8_t *)&packet)[at] == 0);
    }
    STATUS(TLLM_ERR_NULL, tllm_flow_info_init(NULL, sizeof info));
    STATUS(TLLM_ERR_NULL, tllm_packet_init(NULL, sizeof packet));
    STATUS(TLLM_ERR_STRUCT, tllm_flow_info_init(&info, sizeof info - 1));
    STATUS(TLLM_ERR_STRUCT, tllm_packet_init(&packet, 0));
    STATUS(TLLM_ERR_STRUCT, tllm_packet_init(&packet, SIZE_MAX));
}

static void counting(tllm_engine *engine)
{
    static const uint8_t payload[3000] = {1, 2, 3};
    tllm_flow *flow = empty_flow(engine);
    tllm_flow_stats stats = stats_of(flow);
    CHECK(stats.packets == 0 && stats.bytes == 0 && stats.packets_kept == 0 && stats.memory_bytes > 0);
    tllm_packet packet = packet_of(1000, payload, 100);
    OK(tllm_flow_feed(flow, &packet));
    packet = packet_of(900, NULL, 0);
    OK(tllm_flow_feed(flow, &packet));
    stats = stats_of(flow);
    CHECK(stats.packets == 2 && stats.bytes == 180 && stats.packets_kept == 2 && stats.time_backwards == 1);
    CHECK(stats.payload_bytes_cut == 0);
    /* More payload than is kept of a packet is cut, and counted. */
    packet = packet_of(2000, payload, sizeof payload);
    OK(tllm_flow_feed(flow, &packet));
    stats = stats_of(flow);
    CHECK(stats.payload_bytes_cut > 0 && stats.payload_bytes_cut < sizeof payload);
    /* What was not captured is no loss of the library's. */
    uint64_t cut = stats.payload_bytes_cut;
    packet = packet_of(3000, payload, 10);
    packet.payload_bytes = 1400;
    OK(tllm_flow_feed(flow, &packet));
    stats = stats_of(flow);
    CHECK(stats.payload_bytes_cut == cut && stats.packets == 4);
    /* Another connection has lost nothing yet. */
    tllm_flow_info info;
    OK(tllm_flow_info_init(&info, sizeof info));
    OK(tllm_flow_reset(flow, &info));
    stats = stats_of(flow);
    CHECK(stats.packets == 0 && stats.payload_bytes_cut == 0 && stats.time_backwards == 0);
    OK(tllm_flow_free(flow));
}

static void full(tllm_engine *engine)
{
    tllm_flow *flow = empty_flow(engine);
    tllm_packet packet = packet_of(0, NULL, 0);
    unsigned taken = 0;
    int32_t status = TLLM_OK;
    while (taken < 100000 && (status = tllm_flow_feed(flow, &packet)) == TLLM_OK) {
        taken++;
    }
    STATUS(TLLM_FLOW_FULL, status);
    tllm_flow_stats stats = stats_of(flow);
    CHECK(stats.packets == taken + 1 && stats.packets_kept == taken);
    uint64_t memory = stats.memory_bytes;
    for (unsigned number = 0; number < 1000; number++) {
        STATUS(TLLM_FLOW_FULL, tllm_flow_feed(flow, &packet));
    }
    stats = stats_of(flow);
    CHECK(stats.packets == taken + 1001 && stats.packets_kept == taken && stats.memory_bytes == memory);
    /* Emptied, it is as new, in the same memory. */
    tllm_flow_info info;
    OK(tllm_flow_info_init(&info, sizeof info));
    info.protocol = 17;
    OK(tllm_flow_reset(flow, &info));
    stats = stats_of(flow);
    CHECK(stats.packets == 0 && stats.bytes == 0 && stats.packets_kept == 0 && stats.time_backwards == 0);
    CHECK(stats.payload_bytes_cut == 0 && stats.memory_bytes == memory);
    OK(tllm_flow_feed(flow, &packet));
    OK(tllm_flow_free(flow));
}

static void misuse(tllm_engine *engine)
{
    static const uint8_t payload[16] = {0};
    tllm_flow *flow = empty_flow(engine);
    tllm_packet good = packet_of(0, payload, sizeof payload);
    tllm_packet bad;
    STATUS(TLLM_ERR_NULL, tllm_flow_feed(flow, NULL));
    STATUS(TLLM_ERR_NULL, tllm_flow_feed(NULL, &good));
#define BAD_PACKET(status, field, value)                      \
    bad = good;                                               \
    bad.field = (value);                                      \
    FAILS(status, "packet", tllm_flow_feed(flow, &bad))
    BAD_PACKET(TLLM_ERR_STRUCT, struct_size, 0);
    BAD_PACKET(TLLM_ERR_STRUCT, struct_size, sizeof bad - 1);
    BAD_PACKET(TLLM_ERR_STRUCT, struct_size, 5000);
    BAD_PACKET(TLLM_ERR_STRUCT, struct_size, UINT32_MAX);
    BAD_PACKET(TLLM_ERR_STRUCT, reserved0, 1);
    BAD_PACKET(TLLM_ERR_STRUCT, reserved[0], 1);
    BAD_PACKET(TLLM_ERR_STRUCT, reserved[1], 1);
    BAD_PACKET(TLLM_ERR_ARGUMENT, direction, 2);
    BAD_PACKET(TLLM_ERR_ARGUMENT, direction, 255);
    BAD_PACKET(TLLM_ERR_ARGUMENT, payload_size, sizeof payload + 1);
    BAD_PACKET(TLLM_ERR_ARGUMENT, payload_size, SIZE_MAX);
    BAD_PACKET(TLLM_ERR_NULL, payload, NULL);
    /* Without payload the pointer is not looked at. */
    bad = packet_of(0, (const uint8_t *)(uintptr_t)1, 0);
    CHECK(stats_of(flow).packets == 0);
    OK(tllm_flow_feed(flow, &bad));
    CHECK(stats_of(flow).packets == 1);

    tllm_flow_info info, wrong;
    tllm_flow *const untouched = (tllm_flow *)(uintptr_t)64;
    tllm_flow *made = untouched;
    OK(tllm_flow_info_init(&info, sizeof info));
#define BAD_INFO(status, field, value)                                 \
    wrong = info;                                                      \
    wrong.field = (value);                                             \
    FAILS(status, "info", tllm_flow_new(engine, &wrong, &made));       \
    FAILS(status, "info", tllm_flow_reset(flow, &wrong))
    BAD_INFO(TLLM_ERR_STRUCT, struct_size, 0);
    BAD_INFO(TLLM_ERR_STRUCT, struct_size, sizeof info - 8);
    BAD_INFO(TLLM_ERR_STRUCT, struct_size, 5000);
    BAD_INFO(TLLM_ERR_STRUCT, reserved0, 1);
    BAD_INFO(TLLM_ERR_STRUCT, reserved1, 1);
    BAD_INFO(TLLM_ERR_STRUCT, reserved[1], 1);
    BAD_INFO(TLLM_ERR_ARGUMENT, ip_version, 5);
    STATUS(TLLM_ERR_NULL, tllm_flow_new(engine, NULL, &made));
    STATUS(TLLM_ERR_NULL, tllm_flow_new(engine, &info, NULL));
    STATUS(TLLM_ERR_NULL, tllm_flow_new(NULL, &info, &made));
    STATUS(TLLM_ERR_NULL, tllm_flow_reset(flow, NULL));
    CHECK(made == untouched);
    CHECK(stats_of(flow).packets == 1);
    tllm_flow_stats stats;
    STATUS(TLLM_ERR_NULL, tllm_flow_describe(flow, NULL, sizeof stats));
    STATUS(TLLM_ERR_STRUCT, tllm_flow_describe(flow, &stats, sizeof stats - 1));
    OK(tllm_flow_free(flow));
    OK(tllm_flow_free(NULL));
}

/* Structs of a newer header: their further bytes are zero, or this library refuses what it does not know. */
static void newer_structs(tllm_engine *engine)
{
    struct {
        tllm_packet packet;
        uint64_t more[4];
    } packet;
    struct {
        tllm_flow_info info;
        uint64_t more[4];
    } info;
    tllm_flow *flow = NULL;
    memset(&info, 0xee, sizeof info);
    memset(&packet, 0xee, sizeof packet);
    OK(tllm_flow_info_init(&info.info, sizeof info));
    OK(tllm_packet_init(&packet.packet, sizeof packet));
    CHECK(info.info.struct_size == sizeof info && info.more[0] == 0 && info.more[3] == 0);
    CHECK(packet.packet.struct_size == sizeof packet && packet.more[0] == 0 && packet.more[3] == 0);
    info.more[3] = 1;
    FAILS(TLLM_ERR_STRUCT, "newer", tllm_flow_new(engine, &info.info, &flow));
    info.more[3] = 0;
    OK(tllm_flow_new(engine, &info.info, &flow));
    OK(tllm_flow_feed(flow, &packet.packet));
    packet.more[2] = (uint64_t)1 << 63;
    FAILS(TLLM_ERR_STRUCT, "newer", tllm_flow_feed(flow, &packet.packet));
    CHECK(stats_of(flow).packets == 1);
    OK(tllm_flow_free(flow));
}

static void limits(void)
{
    static const char *const settings[] = {
        "engine.workers=0", "engine.flows_max=3", "flow.max_packets=2", "flow.max_payload_bytes=5", NULL};
    static const uint8_t payload[9] = {0};
    tllm_engine *engine = engine_with(settings);
    tllm_flow *flows[3], *more = NULL;
    tllm_flow_info info;
    for (size_t at = 0; at < 3; at++) {
        flows[at] = empty_flow(engine);
    }
    CHECK(counters_of(engine).flows == 3);
    OK(tllm_flow_info_init(&info, sizeof info));
    FAILS(TLLM_ERR_LIMIT, "engine.flows_max", tllm_flow_new(engine, &info, &more));
    CHECK(more == NULL && counters_of(engine).flows == 3);
    tllm_packet packet = packet_of(5, payload, sizeof payload);
    OK(tllm_flow_feed(flows[0], &packet));
    OK(tllm_flow_feed(flows[0], &packet));
    STATUS(TLLM_FLOW_FULL, tllm_flow_feed(flows[0], &packet));
    tllm_flow_stats stats = stats_of(flows[0]);
    CHECK(stats.packets == 3 && stats.packets_kept == 2 && stats.payload_bytes_cut >= 8);
    tllm_memory memory;
    OK(tllm_engine_memory(engine, &memory, sizeof memory));
    CHECK(memory.flow_bytes >= 3 * stats.memory_bytes);
    OK(tllm_flow_free(flows[1]));
    OK(tllm_flow_new(engine, &info, &flows[1]));
    for (size_t at = 0; at < 3; at++) {
        OK(tllm_flow_free(flows[at]));
    }
    CHECK(counters_of(engine).flows == 0);
    OK(tllm_engine_free(engine));
}

static uint64_t held(tllm_engine *engine)
{
    tllm_memory memory;
    OK(tllm_engine_memory(engine, &memory, sizeof memory));
    return memory.model_bytes + memory.retired_bytes + memory.worker_bytes + memory.classifier_bytes + memory.queue_bytes
           + memory.flow_bytes;
}

/* Flows count for the engine's budget of memory: as many as fit, then no more until one goes. */
static void budget(void)
{
    static const char *const settings[] = {"engine.workers=0", NULL};
    tllm_engine *engine = engine_with(settings);
    uint64_t empty = held(engine);
    tllm_flow *flow = flow_of(engine, 1, 1);
    uint64_t one = held(engine) - empty;
    OK(tllm_flow_free(flow));
    CHECK(one > 0 && held(engine) == empty);
    OK(tllm_engine_free(engine));

    char bytes[64];
    snprintf(bytes, sizeof bytes, "engine.memory_bytes_max=%" PRIu64, empty + 3 * one);
    const char *const limited[] = {"engine.workers=0", bytes, NULL};
    engine = engine_with(limited);
    tllm_flow *flows[3], *more = NULL;
    tllm_flow_info info;
    OK(tllm_flow_info_init(&info, sizeof info));
    for (size_t at = 0; at < 3; at++) {
        flows[at] = flow_of(engine, 1, 1);
    }
    FAILS(TLLM_ERR_BUDGET, "a flow", tllm_flow_new(engine, &info, &more));
    CHECK(more == NULL && counters_of(engine).flows == 3);
    OK(tllm_flow_free(flows[1]));
    flows[1] = flow_of(engine, 1, 1);
    STATUS(TLLM_ERR_BUDGET, tllm_flow_new(engine, &info, &more));
    for (size_t at = 0; at < 3; at++) {
        OK(tllm_flow_free(flows[at]));
    }
    CHECK(counters_of(engine).flows == 0 && held(engine) == empty);
    OK(tllm_engine_free(engine));
}

int main(int argc, char **argv)
{
    static const char *const settings[] = {"engine.workers=0", NULL};
    begin(argc, argv, 30);
    tllm_engine *engine = engine_with(settings);
    prepared();
    counting(engine);
    full(engine);
    misuse(engine);
    newer_structs(engine);
    limits();
    budget();
    OK(tllm_engine_free(engine));
    return 0;
}
