/* See the file "COPYING" in the main distribution directory for copyright. */

/* To be preloaded: the system gives the plugin, and what it calls, no threads while NO_THREADS is 1 in the environment. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static int is_for_plugin(void) {
    void *frames[32];
    int count = backtrace(frames, 32);

    for ( int i = 0; i < count; i++ ) {
        Dl_info info;

        if ( dladdr(frames[i], &info) && info.dli_fname && strstr(info.dli_fname, "TrafficLLM-Detector") )
            return 1;
    }

    return 0;
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument) {
    int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *) = dlsym(RTLD_NEXT, "pthread_create");
    const char *told = getenv("NO_THREADS");
    return told && strcmp(told, "1") == 0 && is_for_plugin() ? EAGAIN : real(thread, attributes, start, argument);
}
