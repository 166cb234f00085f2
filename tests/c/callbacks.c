/* What a callback of tllm_session_each and of tllm_capture_detect may do, and how it ends them. */
#include "check.h"

static tllm_engine *engine;
static tllm_session *session;
static tllm_flow *flow;
static const char *some_capture = "captures/http.pcap";

static struct {
    unsigned answers;
    unsigned stop_after;
    pthread_t thread;
} given;

static int32_t count_answers(void *user, const tllm_verdict *verdicts, size_t count)
{
    CHECK(user == &given && verdicts != NULL && count == verdicts[0].entries);
    CHECK(pthread_equal(pthread_self(), given.thread));
    for (size_t at = 0; at < count; at++) {
        CHECK(verdicts[at].position == at && verdicts[at].id == verdicts[0].id);
    }
    given.answers++;
    return given.answers == given.stop_after ? 7 : 0;
}

static void submit(unsigned flows)
{
    for (uint64_t id = 0; id < flows; id++) {
        OK(tllm_session_submit(session, flow, id));
    }
}

static void each(void)
{
    size_t answers = 88;
    given.thread = pthread_self();
    STATUS(TLLM_PENDING, tllm_session_each(session, 0, sizeof(tllm_verdict), count_answers, &given, &answers));
    CHECK(answers == 0);
    STATUS(TLLM_PENDING, tllm_session_each(session, UINT64_MAX, sizeof(tllm_verdict), count_answers, &given, NULL));
    submit(10);
    OK(tllm_session_each(session, 1000000, sizeof(tllm_verdict), count_answers, &given, &answers));
    CHECK(answers == 10 && given.answers == 10);
    /* Cancelled: the answer at which it was counts as taken, the others stay. */
    submit(10);
    given.answers = 0;
    given.stop_after = 4;
    STATUS(TLLM_CANCELLED, tllm_session_each(session, 1000000, sizeof(tllm_verdict), count_answers, &given, &answers));
    CHECK(answers == 4 && given.answers == 4);
    OK(tllm_session_in_flight(session, &answers));
    CHECK(answers == 6);
    given.stop_after = 0;
    OK(tllm_session_each(session, 0, sizeof(tllm_verdict), count_answers, &given, &answers));
    CHECK(answers == 6 && given.answers == 10);
    /* Cancelled at the last one. */
    submit(1);
    given.answers = 0;
    given.stop_after = 1;
    STATUS(TLLM_CANCELLED, tllm_session_each(session, 1000000, sizeof(tllm_verdict), count_answers, &given, &answers));
    CHECK(answers == 1);
    STATUS(TLLM_PENDING, tllm_session_each(session, 1000000, sizeof(tllm_verdict), count_answers, &given, &answers));
}

/* A program of a newer header: its structs are longer, and lie further apart. */
struct newer_verdict {
    tllm_verdict known;
    uint64_t later[3];
};
struct newer_subject {
    tllm_subject known;
    uint64_t later;
};

static int32_t newer_answer(void *user, const tllm_verdict *verdicts, size_t count)
{
    const struct newer_verdict *entries = (const struct newer_verdict *)(const void *)verdicts;
    (void)user;
    CHECK(count == entries[0].known.entries);
    for (size_t at = 0; at < count; at++) {
        CHECK(entries[at].known.position == at && entries[at].known.id == entries[0].known.id);
        CHECK(strlen(entries[at].known.task_name) > 0 && strlen(entries[at].known.model_id) == 16);
        CHECK(entries[at].later[0] == 0 && entries[at].later[2] == 0);
    }
    given.answers += count > 1;
    return 0;
}

static int32_t newer_outcome(void *user, const tllm_subject *subject, const tllm_verdict *verdicts, size_t count)
{
    const struct newer_subject *newer = (const struct newer_subject *)(const void *)subject;
    CHECK(newer->later == 0 && newer->known.packets > 0 && strlen(newer->known.model_id) == 16);
    return newer_answer(user, verdicts, count);
}

static void newer_header(void)
{
    tllm_capture_report report;
    given.answers = 0;
    OK(tllm_session_submit(session, flow, 1));
    OK(tllm_session_each(session, 1000000, sizeof(struct newer_verdict), newer_answer, NULL, NULL));
    CHECK(given.answers == 1);
    OK(tllm_capture_detect(engine, path_of("captures/smtp.pcap"), sizeof(struct newer_subject), sizeof(struct newer_verdict), newer_outcome, NULL, &report, sizeof report));
    CHECK(given.answers == 1 + report.flows);
    STATUS(TLLM_ERR_STRUCT, tllm_session_each(session, 0, FIRST_VERDICT_BYTES - 1, newer_answer, NULL, NULL));
    STATUS(TLLM_ERR_STRUCT, tllm_session_each(session, 0, 4104, newer_answer, NULL, NULL));
    STATUS(TLLM_ERR_ARGUMENT, tllm_session_each(session, 0, sizeof(tllm_verdict) + 4, newer_answer, NULL, NULL));
    STATUS(TLLM_ERR_STRUCT, tllm_capture_detect(engine, path_of(some_capture), sizeof(tllm_subject) - 1, sizeof(tllm_verdict), newer_outcome, NULL, NULL, 0));
    STATUS(TLLM_ERR_STRUCT, tllm_capture_detect(engine, path_of(some_capture), sizeof(tllm_subject), 0, newer_outcome, NULL, NULL, 0));
}

/* A program of the first header: its entries end behind the reserved words, which stay zero. */

static int32_t first_answer(void *user, const tllm_verdict *verdicts, size_t count)
{
    const char *entries = (const char *)(const void *)verdicts;
    (void)user;
    for (size_t at = 0; at < count; at++) {
        tllm_verdict entry;
        memset(&entry, 0, sizeof entry);
        memcpy(&entry, entries + at * FIRST_VERDICT_BYTES, FIRST_VERDICT_BYTES);
        CHECK(entry.entries == count && entry.position == at && entry.status <= TLLM_ABSTAINED);
        CHECK(strlen(entry.task_name) > 0 && strlen(entry.model_id) == 16);
        CHECK(entry.reserved[0] == 0 && entry.reserved[1] == 0);
    }
    given.answers += count > 1;
    return 0;
}

static void first_header(void)
{
    static uint64_t entries[ENTRIES][FIRST_VERDICT_BYTES / sizeof(uint64_t)];
    size_t count = 0;
    CHECK(offsetof(tllm_verdict, reserved) + sizeof(uint64_t[2]) == FIRST_VERDICT_BYTES);
    given.answers = 0;
    OK(tllm_session_submit(session, flow, 1));
    OK(tllm_session_each(session, 1000000, FIRST_VERDICT_BYTES, first_answer, NULL, NULL));
    OK(tllm_session_submit(session, flow, 2));
    memset(entries, 0xee, sizeof entries);
    OK(tllm_session_wait(session, 10000000, (tllm_verdict *)(void *)entries, FIRST_VERDICT_BYTES, ENTRIES - 1, &count));
    first_answer(NULL, (const tllm_verdict *)(const void *)entries, count);
    CHECK(given.answers == 2);
    CHECK(entries[count][0] == 0xeeeeeeeeeeeeeeeeu);
}

/* A callback frees the session that it is called from: the handle ends at once, the session with the call, and there is no further
 * callback. */
static int32_t free_session(void *user, const tllm_verdict *verdicts, size_t count)
{
    tllm_verdict before = verdicts[0];
    (void)count;
    given.answers++;
    STATUS(TLLM_RUNNING, tllm_session_free(user));
    STATUS(TLLM_ERR_HANDLE, tllm_session_free(user));
    STATUS(TLLM_ERR_HANDLE, tllm_session_submit(user, flow, 1));
    CHECK(memcmp(&before, &verdicts[0], sizeof before) == 0);
    return 0;
}

static void freed_inside(void)
{
    tllm_session *ending = session_of(engine);
    tllm_counters before = counters_of(engine);
    size_t answers = 0;
    for (uint64_t id = 0; id < 3; id++) {
        OK(tllm_session_submit(ending, flow, id));
    }
    given.answers = 0;
    OK(tllm_session_each(ending, 1000000, sizeof(tllm_verdict), free_session, ending, &answers));
    CHECK(answers == 1 && given.answers == 1);
    STATUS(TLLM_ERR_HANDLE, tllm_session_free(ending));
    tllm_counters after = counters_of(engine);
    CHECK(after.done == before.done + 1 && after.abandoned == before.abandoned + 2 && after.in_flight == before.in_flight);
}

/* Everything that a callback may call; the calls on its own session are refused. */
static int32_t call_back(void *user, const tllm_verdict *verdicts, size_t count)
{
    tllm_verdict own[8];
    size_t entries = 0;
    int32_t descriptor = 0;
    const tllm_flow *flows[1] = {flow};
    tllm_verdict before = verdicts[0];
    (void)user, (void)count;
    FAILS(TLLM_ERR_BUSY, "session", tllm_session_submit(session, flow, 5));
    STATUS(TLLM_ERR_BUSY, tllm_session_poll(session, own, sizeof own[0], 8, &entries));
    STATUS(TLLM_ERR_BUSY, tllm_session_wait(session, UINT64_MAX, own, sizeof own[0], 8, &entries));
    STATUS(TLLM_ERR_BUSY, tllm_session_each(session, UINT64_MAX, sizeof(tllm_verdict), call_back, NULL, &entries));
    STATUS(TLLM_ERR_BUSY, tllm_session_classify(session, flows, 1, own, sizeof own[0], 8, &entries));
    STATUS(TLLM_ERR_BUSY, tllm_session_fd(session, &descriptor));
    STATUS(TLLM_ERR_BUSY, tllm_session_in_flight(session, &entries));
    /* Another session of the same engine, with a callback inside. */
    tllm_session *other = session_of(engine);
    given.answers = given.stop_after = 0;
    OK(tllm_session_submit(other, flow, 1));
    OK(tllm_session_each(other, 10000000, sizeof(tllm_verdict), count_answers, &given, &entries));
    CHECK(entries == 1);
    OK(tllm_session_classify(other, flows, 1, own, sizeof own[0], 8, &entries));
    OK(tllm_session_free(other));
    feed(flow, 1, 2);
    tllm_flow *another = flow_of(engine, 2, 2);
    OK(tllm_flow_free(another));
    (void)counters_of(engine);
    OK(tllm_engine_activate(engine, path_of(OTHER)));
    OK(tllm_engine_activate(engine, path_of(SMALL)));
    OK(tllm_engine_run_pending(engine, NULL));
    CHECK(memcmp(&before, &verdicts[0], sizeof before) == 0);
    return 0;
}

static void reentrant(void)
{
    size_t answers = 0;
    submit(2);
    while (answers < 2) {
        size_t some = 0;
        int32_t status = tllm_session_each(session, 1000000, sizeof(tllm_verdict), call_back, NULL, &some);
        CHECK(status == TLLM_OK || status == TLLM_PENDING);
        answers += some;
    }
    /* The session is whole. */
    submit(3);
    take_answers(session, 3, NULL, 0);
}

static struct {
    unsigned subjects;
    unsigned stop_after;
    unsigned depth;
} read_;

static int32_t count_subjects(void *user, const tllm_subject *subject, const tllm_verdict *verdicts, size_t count)
{
    CHECK(user == &read_ && subject != NULL && verdicts != NULL && count == verdicts[0].entries);
    CHECK(subject->kind == TLLM_SUBJECT_FLOW && subject->packets > 0 && subject->bytes > 0);
    CHECK(subject->ip_version == 4 || subject->ip_version == 6);
    CHECK(strlen(subject->model_id) == 16 && strcmp(subject->model_id, verdicts[0].model_id) == 0);
    CHECK(subject->reserved0 == 0 && subject->reserved1 == 0 && subject->reserved[1] == 0);
    CHECK(strncmp(subject->profile, "clean", 5) == 0);
    read_.subjects++;
    return read_.subjects == read_.stop_after ? -1 : 0;
}

static void capture(void)
{
    tllm_capture_report report, whole;
    memset(&report, 0xee, sizeof report);
    OK(tllm_capture_detect(engine, path_of(some_capture), SIZES, count_subjects, &read_, &report, sizeof report));
    CHECK(report.flows >= 3 && read_.subjects == report.flows && report.packets > report.flows);
    CHECK(report.packet_bytes > 0 && report.verdicts >= report.flows && report.abstained <= report.verdicts);
    CHECK(report.lines == 0 && report.bad_lines == 0 && report.reserved[3] == 0);
    whole = report;
    read_.subjects = 0;
    OK(tllm_capture_detect(engine, path_of(some_capture), SIZES, count_subjects, &read_, NULL, 0));
    CHECK(read_.subjects == whole.flows);
    read_.subjects = 0;
    read_.stop_after = 2;
    STATUS(TLLM_CANCELLED, tllm_capture_detect(engine, path_of(some_capture), SIZES, count_subjects, &read_, &report, sizeof report));
    CHECK(read_.subjects == 2);
    read_.stop_after = 0;
    /* A capture that ends in the middle: what was read is judged and reported. */
    read_.subjects = 0;
    memset(&report, 0xee, sizeof report);
    FAILS(TLLM_ERR_CAPTURE, "record-cut", tllm_capture_detect(engine, path_of("hostile/captures/record-cut.pcap"), SIZES, count_subjects, &read_, &report, sizeof report));
    CHECK(report.packets < 100 && report.flows == read_.subjects);
    STATUS(TLLM_ERR_CAPTURE, tllm_capture_detect(engine, path_of("hostile/captures/text.pcap"), SIZES, count_subjects, &read_, &report, sizeof report));
    STATUS(TLLM_ERR_CAPTURE, tllm_capture_detect(engine, path_of("captures"), SIZES, count_subjects, &read_, NULL, 0));
    memset(&report, 0xee, sizeof report);
    FAILS(TLLM_ERR_IO, "no-such-file", tllm_capture_detect(engine, path_of("no-such-file"), SIZES, count_subjects, &read_, &report, sizeof report));
    STATUS(TLLM_ERR_STRUCT, tllm_capture_detect(engine, path_of(some_capture), SIZES, count_subjects, &read_, &report, 8));
    CHECK(((uint8_t *)&report)[0] == 0xee);
}

static int32_t count_requests(void *user, const tllm_subject *subject, const tllm_verdict *verdicts, size_t count)
{
    CHECK(user == &read_ && subject->kind == TLLM_SUBJECT_REQUEST && subject->packets == 0 && subject->protocol == 0);
    CHECK(count == 1 && strcmp(verdicts[0].task_name, "request_task") == 0);
    read_.subjects++;
    return 0;
}

static void request_file(void)
{
    tllm_capture_report report;
    read_.subjects = 0;
    OK(tllm_capture_detect(engine, path_of("captures/requests.jsonl"), SIZES, count_requests, &read_, &report, sizeof report));
    CHECK(report.lines > 2 && read_.subjects + report.bad_lines == report.lines && report.flows == 0);
}

/* A capture's callback may call everything, its own function included. */
static int32_t call_everything(void *user, const tllm_subject *subject, const tllm_verdict *verdicts, size_t count)
{
    tllm_subject before = *subject;
    tllm_verdict first = verdicts[0];
    char json[4096];
    (void)count;
    if (read_.depth == 0) {
        read_.depth++;
        read_.subjects = 0;
        OK(tllm_capture_detect(engine, path_of("captures/ssh.pcap"), SIZES, count_subjects, user, NULL, 0));
        CHECK(read_.subjects > 0);
        OK(tllm_engine_activate(engine, path_of(OTHER)));
        OK(tllm_engine_activate(engine, path_of(SMALL)));
    }
    OK(tllm_session_submit(session, flow, 1));
    take_answers(session, 1, NULL, 0);
    OK(tllm_subject_json("name", subject, sizeof *subject, verdicts, sizeof *verdicts, count, json, sizeof json, NULL));
    CHECK(memcmp(&before, subject, sizeof before) == 0 && memcmp(&first, verdicts, sizeof first) == 0);
    return 0;
}

/* Even the engine may go. */
static int32_t stop_all(void *user, const tllm_subject *subject, const tllm_verdict *verdicts, size_t count)
{
    (void)subject, (void)verdicts, (void)count;
    read_.subjects++;
    if (read_.subjects == 1) {
        int32_t status = tllm_engine_free(user);
        CHECK(status == TLLM_OK || status == TLLM_ABANDONED);
    }
    return 0;
}

static void capture_reentrant(void)
{
    tllm_capture_report report;
    read_.depth = 0;
    OK(tllm_capture_detect(engine, path_of(some_capture), SIZES, call_everything, &read_, &report, sizeof report));
    for (unsigned workers = 0; workers < 2; workers++) {
        static const char *const none[] = {"engine.workers=0", NULL};
        static const char *const one[] = {"engine.workers=1", NULL};
        tllm_engine *ending = engine_with(workers ? one : none);
        OK(tllm_engine_start(ending));
        read_.subjects = 0;
        int32_t status = tllm_capture_detect(ending, path_of(some_capture), SIZES, stop_all, ending, &report, sizeof report);
        CHECK(status == TLLM_ERR_STOPPED || (status == TLLM_OK && read_.subjects == report.flows));
        STATUS(TLLM_ERR_HANDLE, tllm_engine_free(ending));
    }
}

static void not_started(void)
{
    static const char *const settings[] = {"engine.workers=1", NULL};
    tllm_engine *idle = engine_with(settings);
    STATUS(TLLM_ERR_NOT_STARTED, tllm_capture_detect(idle, path_of(some_capture), SIZES, count_subjects, &read_, NULL, 0));
    OK(tllm_engine_start(idle));
    read_.subjects = 0;
    OK(tllm_capture_detect(idle, path_of(some_capture), SIZES, count_subjects, &read_, NULL, 0));
    OK(tllm_engine_stop(idle, 1000000));
    STATUS(TLLM_ERR_STOPPED, tllm_capture_detect(idle, path_of(some_capture), SIZES, count_subjects, &read_, NULL, 0));
    OK(tllm_engine_free(idle));
}

int main(int argc, char **argv)
{
    static const char *const settings[2][2] = {{"engine.workers=0", NULL}, {"engine.workers=2", NULL}};
    begin(argc, argv, 60);
    if (slower() > 10) {
        some_capture = "captures/smtp.pcap";
    }
    for (size_t at = 0; at < COUNT(settings); at++) {
        engine = engine_with(settings[at]);
        session = session_of(engine);
        flow = flow_of(engine, 3, 1);
        given.answers = given.stop_after = 0;
        read_.subjects = read_.stop_after = 0;
        if (at == 0) {
            /* With workers answers come one by one: how many at once is not known. */
            each();
            newer_header();
            first_header();
            freed_inside();
        }
        OK(tllm_engine_start(engine));
        given.thread = pthread_self();
        reentrant();
        capture();
        request_file();
        capture_reentrant();
        OK(tllm_flow_free(flow));
        OK(tllm_session_free(session));
        OK(tllm_engine_free(engine));
    }
    not_started();
    return 0;
}
