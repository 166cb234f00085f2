/* A plugin of Suricata's that bends the packets which another one is shown, and is no more than a test: loaded before and behind it (as
 * two files), it turns a bit of the packet's pointer to its flow over and back, for the first TLLM_BEND packets of flows. So packets look
 * as if this Suricata had another layout, while Suricata itself sees nothing of it.
 */
#include <stdint.h>
#include <stdlib.h>

/* `Packet.flow`. */
#define FLOW 64

typedef void (*update_fn)(void *thread, void *flow, void *packet, void *data);
extern _Bool SCFlowRegisterUpdateCallback(update_fn function, void *data);

static unsigned long left;

static void bend(void *thread, void *flow, void *packet, void *data)
{
    (void)thread, (void)flow, (void)data;
    if (left == 0)
        return;
    left--;
    *(uintptr_t *)((char *)packet + FLOW) ^= 1;
}

static void init(void)
{
    const char *packets = getenv("TLLM_BEND");
    left = packets ? strtoul(packets, NULL, 10) : 0;
    SCFlowRegisterUpdateCallback(bend, NULL);
}

static const struct {
    uint64_t version;
    const char *suricata_version, *name, *plugin_version, *license, *author;
    void (*init)(void);
} record = {0x0800, "8.0", "bend", "0", "GPL-2.0-only", "tests", init};

const void *SCPluginRegister(void)
{
    return &record;
}
