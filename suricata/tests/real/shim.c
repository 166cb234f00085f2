/* Stands in front of libtrafficllm and has it misbehave as TLLM_SHIM says; everything else goes on to the library, which is built with
 * its feature `faults`. The plugin loads this as its library: functions that are not here are found in what it is linked with.
 *
 *   abi          another ABI number
 *   hold         the first flow that is run stands still in its batch, until the file TLLM_SHIM_RELEASE is there
 *   poison       every hundredth flow, from the second on, makes its worker panic
 *   end-submit   the fiftieth submission is a defect that ends its session
 *   end-poll     the first look for answers after fifty submissions is one
 *   end-flow     the fiftieth submission is one that ends its flow, and not its session
 *   hang         the metrics are never made once the engine was stopped
 *
 * A session that has ended is used no more, only freed: a program that does ends at once. It may only be asked whether it has, by a look
 * for answers with room for none.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ERR_PANIC (-17)
#define DEFECT_AFTER 50

extern int32_t tllm_fault_hold(void *engine, uint64_t id);
extern int32_t tllm_fault_poison(void *engine, uint64_t id);

/* Found once: what the tests measure is not to be this. */
static uint32_t (*real_abi_version)(void);
static int32_t (*real_counters)(const void *, void *, size_t);
static int32_t (*real_metrics)(const void *, char *, size_t, size_t *);
static int32_t (*real_engine_new)(const void *, const void *, void **);
static int32_t (*real_engine_stop)(void *, uint64_t);
static int32_t (*real_submit)(void *, const void *, uint64_t);
static int32_t (*real_submit_last)(void *, const void *, uint64_t);
static int32_t (*real_poll)(void *, void *, size_t, size_t, size_t *);
static int is_abi, is_hold, is_poison, is_end_submit, is_end_poll, is_end_flow, is_hang;
static const char *release;

static void *engine;
static atomic_uint submissions;
static atomic_int is_stopped;
/* The session that has ended. */
static void *_Atomic ended;
/* The flow that has. */
static const void *_Atomic ended_flow;

static void *next(const char *name)
{
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) {
        fprintf(stderr, "shim: no %s\n", name);
        abort();
    }
    return found;
}

__attribute__((constructor)) static void prepare(void)
{
    const char *mode = getenv("TLLM_SHIM");
    mode = mode ? mode : "";
    is_abi = !strcmp(mode, "abi");
    is_hold = !strcmp(mode, "hold");
    is_poison = !strcmp(mode, "poison");
    is_end_submit = !strcmp(mode, "end-submit");
    is_end_poll = !strcmp(mode, "end-poll");
    is_end_flow = !strcmp(mode, "end-flow");
    is_hang = !strcmp(mode, "hang");
    release = getenv("TLLM_SHIM_RELEASE");
    real_abi_version = (uint32_t (*)(void))next("tllm_abi_version");
    real_counters = (int32_t (*)(const void *, void *, size_t))next("tllm_engine_counters");
    real_metrics = (int32_t (*)(const void *, char *, size_t, size_t *))next("tllm_engine_metrics");
    real_engine_new = (int32_t (*)(const void *, const void *, void **))next("tllm_engine_new");
    real_engine_stop = (int32_t (*)(void *, uint64_t))next("tllm_engine_stop");
    real_submit = (int32_t (*)(void *, const void *, uint64_t))next("tllm_session_submit");
    real_submit_last = (int32_t (*)(void *, const void *, uint64_t))next("tllm_session_submit_last");
    real_poll = (int32_t (*)(void *, void *, size_t, size_t, size_t *))next("tllm_session_poll");
}

/* Suricata's statistics and the plugin's thread ask for these now and then, whatever becomes of flows. */
int32_t tllm_engine_counters(const void *asked, void *counters, size_t size)
{
    if (is_hold && release && access(release, F_OK) == 0)
        tllm_fault_hold(engine, UINT64_MAX);
    return real_counters(asked, counters, size);
}

int32_t tllm_engine_metrics(const void *asked, char *buffer, size_t size, size_t *needed)
{
    if (is_hang && atomic_load(&is_stopped)) {
        fprintf(stderr, "shim: it hangs\n");
        for (;;)
            pause();
    }
    return real_metrics(asked, buffer, size, needed);
}

uint32_t tllm_abi_version(void)
{
    return real_abi_version() + (is_abi ? 1000 : 0);
}

int32_t tllm_engine_new(const void *model, const void *config, void **made)
{
    int32_t status = real_engine_new(model, config, made);
    engine = *made;
    return status;
}

int32_t tllm_engine_stop(void *asked, uint64_t timeout_us)
{
    atomic_store(&is_stopped, 1);
    return real_engine_stop(asked, timeout_us);
}

static void hold_to_its_end(void *session)
{
    if (session == atomic_load(&ended)) {
        fprintf(stderr, "shim: a session is used that has ended\n");
        abort();
    }
}

static int ends(void *session)
{
    void *none = NULL;
    return atomic_compare_exchange_strong(&ended, &none, session);
}

/* Whether this submission is a defect. */
static int before_submission(void *session, const void *flow, uint64_t id)
{
    unsigned number = atomic_fetch_add(&submissions, 1);
    hold_to_its_end(session);
    if (is_hold && number == 0)
        tllm_fault_hold(engine, id);
    else if (is_poison && number % 100 == 1)
        tllm_fault_poison(engine, id);
    if (is_end_flow && number >= DEFECT_AFTER) {
        const void *none = NULL;
        atomic_compare_exchange_strong(&ended_flow, &none, flow);
        return flow == atomic_load(&ended_flow);
    }
    return is_end_submit && number >= DEFECT_AFTER && ends(session);
}

int32_t tllm_session_submit(void *session, const void *flow, uint64_t id)
{
    return before_submission(session, flow, id) ? ERR_PANIC : real_submit(session, flow, id);
}

int32_t tllm_session_submit_last(void *session, const void *flow, uint64_t id)
{
    return before_submission(session, flow, id) ? ERR_PANIC : real_submit_last(session, flow, id);
}

int32_t tllm_session_poll(void *session, void *verdicts, size_t size, size_t capacity, size_t *count)
{
    if (capacity == 0 && session == atomic_load(&ended))
        return ERR_PANIC;
    hold_to_its_end(session);
    if (is_end_poll && atomic_load(&submissions) >= DEFECT_AFTER && ends(session))
        return ERR_PANIC;
    return real_poll(session, verdicts, size, capacity, count);
}
