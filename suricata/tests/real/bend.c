/* A plugin of Suricata's that bends the packets which another one is shown, and is no more than a test: loaded before it, it sets the
 * lowest bit of the packet's pointer to its flow, for the first TLLM_BEND packets of flows; loaded behind it (built with -DBEHIND), it
 * clears that bit, which no flow's address has. So packets look as if this Suricata had another layout, while Suricata itself sees nothing
 * of it. The one behind looks at the bit and does not count: Suricata's threads come to it in another order than to the one before.
 */
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

/* `Packet.flow`. */
#define FLOW 64

typedef void (*update_fn)(void *thread, void *flow, void *packet, void *data);
extern _Bool SCFlowRegisterUpdateCallback(update_fn function, void *data);

static atomic_ulong seen;
static unsigned long bent_max;

static void bend(void *thread, void *flow, void *packet, void *data)
{
    (void)thread, (void)flow, (void)data;
    uintptr_t *pointer = (uintptr_t *)((char *)packet + FLOW);
#ifdef BEHIND
    *pointer &= ~(uintptr_t)1;
#else
    if (atomic_fetch_add(&seen, 1) < bent_max)
        *pointer |= 1;
#endif
}

static void init(void)
{
    const char *packets = getenv("TLLM_BEND");
    bent_max = packets ? strtoul(packets, NULL, 10) : 0;
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
