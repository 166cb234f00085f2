/* Stands in front of libtrafficllm and has it misbehave as TLLM_SHIM says; everything else goes on to the library, which is built with
 * its feature `faults`. The plugin loads this as its library: functions that are not here are found in what it is linked with.
 *
 *   abi      another ABI number
 *   hold     the first flow that is run stands still in its batch, until the file TLLM_SHIM_RELEASE is there
 *   poison   every hundredth flow, from the second on, makes its worker panic
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern int32_t tllm_fault_hold(void *engine, uint64_t id);
extern int32_t tllm_fault_poison(void *engine, uint64_t id);

static void *engine;
static atomic_uint submissions;

static int is(const char *mode)
{
    const char *found = getenv("TLLM_SHIM");
    return found && strcmp(found, mode) == 0;
}

/* Suricata's statistics and the plugin's thread ask for these now and then, whatever becomes of flows. */
int32_t tllm_engine_counters(const void *asked, void *counters, size_t size)
{
    int32_t (*real)(const void *, void *, size_t) = (int32_t (*)(const void *, void *, size_t))dlsym(RTLD_NEXT, "tllm_engine_counters");
    const char *release = getenv("TLLM_SHIM_RELEASE");
    if (is("hold") && release && access(release, F_OK) == 0)
        tllm_fault_hold(engine, UINT64_MAX);
    return real(asked, counters, size);
}

uint32_t tllm_abi_version(void)
{
    uint32_t (*real)(void) = (uint32_t (*)(void))dlsym(RTLD_NEXT, "tllm_abi_version");
    return real() + (is("abi") ? 1000 : 0);
}

int32_t tllm_engine_new(const void *model, const void *config, void **made)
{
    int32_t (*real)(const void *, const void *, void **) = (int32_t (*)(const void *, const void *, void **))dlsym(RTLD_NEXT, "tllm_engine_new");
    int32_t status = real(model, config, made);
    engine = *made;
    return status;
}

static void prepare(uint64_t id)
{
    unsigned number = atomic_fetch_add(&submissions, 1);
    if (is("hold") && number == 0) {
        tllm_fault_hold(engine, id);
    } else if (is("poison") && number % 100 == 1) {
        tllm_fault_poison(engine, id);
    }
}

int32_t tllm_session_submit(void *session, const void *flow, uint64_t id)
{
    int32_t (*real)(void *, const void *, uint64_t) = (int32_t (*)(void *, const void *, uint64_t))dlsym(RTLD_NEXT, "tllm_session_submit");
    prepare(id);
    return real(session, flow, id);
}

int32_t tllm_session_submit_last(void *session, const void *flow, uint64_t id)
{
    int32_t (*real)(void *, const void *, uint64_t) = (int32_t (*)(void *, const void *, uint64_t))dlsym(RTLD_NEXT, "tllm_session_submit_last");
    prepare(id);
    return real(session, flow, id);
}
