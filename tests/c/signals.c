/* The host's signals never run on the library's threads. */
#include "check.h"

#include <dirent.h>
#include <sys/syscall.h>

static volatile sig_atomic_t own_signals, foreign_signals;
static pthread_t own;

static void note(int signal)
{
    (void)signal;
    if (pthread_equal(pthread_self(), own)) {
        own_signals++;
    } else {
        foreign_signals++;
    }
}

/* Of each thread but this one: all signals are blocked but those that no program can block. */
static unsigned check_masks(void)
{
    DIR *tasks = opendir("/proc/self/task");
    struct dirent *entry;
    unsigned others = 0;
    CHECK(tasks != NULL);
    while ((entry = readdir(tasks)) != NULL) {
        char path[300], line[256];
        unsigned long long blocked = 0;
        if (entry->d_name[0] == '.' || atol(entry->d_name) == syscall(SYS_gettid)) {
            continue;
        }
        snprintf(path, sizeof path, "/proc/self/task/%.20s/status", entry->d_name);
        FILE *status = fopen(path, "r");
        CHECK(status != NULL);
        while (fgets(line, sizeof line, status) != NULL) {
            if (sscanf(line, "SigBlk: %llx", &blocked) == 1) {
                break;
            }
        }
        fclose(status);
        others++;
        for (int signal = 1; signal < 32; signal++) {
            if (signal != SIGKILL && signal != SIGSTOP) {
                CHECK((blocked >> (signal - 1) & 1) == 1);
            }
        }
    }
    closedir(tasks);
    return others;
}

int main(int argc, char **argv)
{
    static const char *const settings[] = {"engine.workers=3", NULL};
    static const int signals[] = {SIGUSR1, SIGUSR2, SIGHUP, SIGTERM, SIGCHLD, SIGPIPE, SIGWINCH};
    sigset_t before, after;
    struct sigaction action;
    begin(argc, argv, 30);
    struct sigaction at_start;
    CHECK(sigaction(SIGINT, NULL, &at_start) == 0);
    own = pthread_self();
    memset(&action, 0, sizeof action);
    action.sa_handler = note;
    action.sa_flags = SA_RESTART;
    for (size_t at = 0; at < COUNT(signals); at++) {
        CHECK(sigaction(signals[at], &action, NULL) == 0);
    }
    CHECK(pthread_sigmask(SIG_BLOCK, NULL, &before) == 0);
    tllm_engine *engine = engine_with(settings);
    OK(tllm_engine_start(engine));
    /* The host's own mask is as it was. */
    CHECK(pthread_sigmask(SIG_BLOCK, NULL, &after) == 0);
    for (int signal = 1; signal < 32; signal++) {
        CHECK(sigismember(&before, signal) == sigismember(&after, signal));
    }
    unsigned others = check_masks();
    CHECK(others >= 3);
    /* While this thread blocks them too, signals of the process wait for it. */
    sigset_t all;
    sigfillset(&all);
    CHECK(pthread_sigmask(SIG_SETMASK, &all, NULL) == 0);
    tllm_session *session = session_of(engine);
    tllm_flow *flow = flow_of(engine, 5, 1);
    for (unsigned round = 0; round < 20; round++) {
        OK(tllm_session_submit(session, flow, round));
        CHECK(kill(getpid(), signals[round % COUNT(signals)]) == 0);
        take_answers(session, 1, NULL, 0);
    }
    CHECK(own_signals == 0 && foreign_signals == 0);
    CHECK(pthread_sigmask(SIG_SETMASK, &before, NULL) == 0);
    CHECK(own_signals == (sig_atomic_t)COUNT(signals) && foreign_signals == 0);
    /* What was set stays set: the library installs no handlers. */
    OK(tllm_flow_free(flow));
    OK(tllm_session_free(session));
    OK(tllm_engine_free(engine));
    for (size_t at = 0; at < COUNT(signals); at++) {
        struct sigaction found;
        CHECK(sigaction(signals[at], NULL, &found) == 0 && found.sa_handler == note);
    }
    /* What nobody set is as the program found it: SIG_IGN where a shell runs it in the background. */
    struct sigaction unset;
    CHECK(sigaction(SIGINT, NULL, &unset) == 0 && unset.sa_handler == at_start.sa_handler);
    return 0;
}
