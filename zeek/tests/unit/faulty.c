/* See the file "COPYING" in the main distribution directory for copyright. */

/* libtrafficllm with defects on order: stands in its place, forwards to the real one, and misbehaves as the environment says:
 *
 *   FAULTY_LIBRARY=PATH     the real one
 *   FAULTY_SESSION=N        a session breaks when answers are taken from it for the N-th time, and stays broken
 *   FAULTY_SUBMIT=N         the N-th submission breaks its session and its flow, and both stay broken
 *   FAULTY_EMPTY=1          a session breaks when answers are looked for and none are there
 *   FAULTY_SHED=1           the same, once a submission has found the queue full
 *   FAULTY_SILENT=MS        for so long, from the first wait for an answer on, there are none
 *   FAULTY_STOP=1           engines do not end while there is time
 *
 * functions.inc, made by faulty_library.sh, has FORWARD(name) for each function that is only forwarded. All parameters are integers and
 * pointers, at most six, so that one type does for all. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "trafficllm.h"

typedef intptr_t (*function)(intptr_t, intptr_t, intptr_t, intptr_t, intptr_t, intptr_t);

static void *library(void) {
    static void *found;

    if ( ! found && ! (found = dlopen(getenv("FAULTY_LIBRARY"), RTLD_NOW | RTLD_LOCAL)) ) {
        fprintf(stderr, "faulty: %s\n", dlerror());
        abort();
    }

    return found;
}

static function find(const char *name) {
    function found = (function)dlsym(library(), name);

    if ( ! found )
        abort();

    return found;
}

#define FORWARD(name)                                                                                                                      \
    intptr_t tllm_##name(intptr_t a, intptr_t b, intptr_t c, intptr_t d, intptr_t e, intptr_t f) {                                         \
        static function real;                                                                                                              \
        if ( ! real )                                                                                                                      \
            real = find("tllm_" #name);                                                                                                    \
        return real(a, b, c, d, e, f);                                                                                                     \
    }
#include "functions.inc"
#undef FORWARD

static long setting(const char *name) {
    const char *value = getenv(name);
    return value ? atol(value) : 0;
}

/* How often answers were taken from each session; -1 where it is broken. Only the host's thread comes here. */
enum { sessions_max = 64 };
static intptr_t sessions[sessions_max];
static long taken[sessions_max];
static int has_shed;

static long *takes(intptr_t session) {
    for ( int i = 0; i < sessions_max; i++ )
        if ( sessions[i] == session )
            return &taken[i];

    for ( int i = 0; i < sessions_max; i++ )
        if ( ! sessions[i] ) {
            sessions[i] = session;
            taken[i] = 0;
            return &taken[i];
        }

    abort();
}

static int is_broken(intptr_t session) { return *takes(session) < 0; }

static intptr_t take(intptr_t session, intptr_t status) {
    long *count = takes(session);

    if ( (int32_t)status == TLLM_PENDING && (setting("FAULTY_EMPTY") || (has_shed && setting("FAULTY_SHED"))) ) {
        *count = -1;
        return TLLM_ERR_PANIC;
    }

    if ( (int32_t)status != TLLM_OK || ++*count != setting("FAULTY_SESSION") )
        return status;

    *count = -1;
    return TLLM_ERR_PANIC;
}

/* Microseconds that there is still silence for. */
static long silence_us(int begins) {
    static struct timespec begin;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);

    if ( ! begin.tv_sec && begins )
        begin = now;

    long passed_us = begin.tv_sec ? (now.tv_sec - begin.tv_sec) * 1000000 + (now.tv_nsec - begin.tv_nsec) / 1000 : 0;
    long left_us = setting("FAULTY_SILENT") * 1000 - passed_us;
    return left_us > 0 ? left_us : 0;
}

intptr_t tllm_session_poll(intptr_t session, intptr_t b, intptr_t c, intptr_t d, intptr_t count) {
    if ( is_broken(session) )
        return TLLM_ERR_PANIC;

    if ( silence_us(0) > 0 ) {
        *(size_t *)count = 0;
        return TLLM_PENDING;
    }

    return take(session, find("tllm_session_poll")(session, b, c, d, count, 0));
}

intptr_t tllm_session_wait(intptr_t session, intptr_t timeout_us, intptr_t c, intptr_t d, intptr_t e, intptr_t count) {
    if ( is_broken(session) )
        return TLLM_ERR_PANIC;

    long left_us = silence_us(1);

    if ( left_us > 0 ) {
        usleep((useconds_t)(timeout_us < left_us ? timeout_us : left_us));
        *(size_t *)count = 0;
        return TLLM_PENDING;
    }

    return take(session, find("tllm_session_wait")(session, timeout_us, c, d, e, count));
}

intptr_t tllm_session_in_flight(intptr_t session, intptr_t flows) {
    return is_broken(session) ? TLLM_ERR_PANIC : find("tllm_session_in_flight")(session, flows, 0, 0, 0, 0);
}

intptr_t tllm_session_submit_last(intptr_t session, intptr_t flow, intptr_t id) {
    static long submissions;
    static intptr_t broken_flow;

    if ( is_broken(session) || flow == broken_flow )
        return TLLM_ERR_PANIC;

    if ( setting("FAULTY_SUBMIT") && ++submissions == setting("FAULTY_SUBMIT") ) {
        *takes(session) = -1;
        broken_flow = flow;
        return TLLM_ERR_PANIC;
    }

    intptr_t status = find("tllm_session_submit_last")(session, flow, id, 0, 0, 0);
    has_shed |= (int32_t)status == TLLM_QUEUE_FULL;
    return status;
}

intptr_t tllm_session_free(intptr_t session) {
    /* Threads that end engines come here too, with sessions that were never broken. */
    for ( int i = 0; session && i < sessions_max; i++ )
        if ( sessions[i] == session )
            sessions[i] = 0;

    return find("tllm_session_free")(session, 0, 0, 0, 0, 0);
}

intptr_t tllm_engine_stop(intptr_t engine, intptr_t timeout_us) {
    if ( setting("FAULTY_STOP") && timeout_us > 0 ) {
        usleep((useconds_t)timeout_us);
        return TLLM_RUNNING;
    }

    return find("tllm_engine_stop")(engine, timeout_us, 0, 0, 0, 0);
}
