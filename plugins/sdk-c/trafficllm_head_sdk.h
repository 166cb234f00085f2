/* Everything around a head that is written in C: define what is asked for below, include this, and write one function.
 *
 * Licence: MIT OR Apache-2.0.
 *
 *     #define HEAD_NAME "long_flows"
 *     #define HEAD_VERSION "1"
 *     #define HEAD_LABELS "short", "long"
 *     #define HEAD_NEEDS 0
 *     #include "trafficllm_head_sdk.h"
 *
 *     static int32_t head_judge(const struct head_flow *flow, struct head_verdict *verdict)
 *     {
 *         verdict->label = flow->packets_total > 100;
 *         verdict->score = 1.0f;
 *         return 0;
 *     }
 *
 * A module, or a library:
 *
 *     clang --target=wasm32 -O2 -nostdlib -ffreestanding -Wl,--no-entry -Wl,--strip-all -Wl,-z,stack-size=8192 -o head.wasm head.c
 *     cc -O2 -shared -fPIC -o head.so head.c
 *
 * Can be defined as well: HEAD_HIDDEN (values of the hidden vector; 0: any), HEAD_INPUT_BYTES and HEAD_OUTPUT_BYTES (room for what goes in
 * and out; a host that promises larger flows does not use the head), HEAD_STATE (a struct whose one object `head_state` is there for the head;
 * zeros at first), HEAD_BEGIN (a function that is given the model block), HEAD_ABOUT_BYTES (room for name, version and labels). A library made with this holds HEAD_HEADS_MAX heads at a time.
 */

#ifndef TRAFFICLLM_HEAD_SDK_H
#define TRAFFICLLM_HEAD_SDK_H

#include <stddef.h>
#include <stdint.h>

#if __has_include("trafficllm_head.h")
#include "trafficllm_head.h"
#else
#include "../../include/trafficllm_head.h"
#endif

#if !defined(HEAD_NAME) || !defined(HEAD_VERSION) || !defined(HEAD_LABELS) || !defined(HEAD_NEEDS)
#error "define HEAD_NAME, HEAD_VERSION, HEAD_LABELS and HEAD_NEEDS first"
#endif
#ifndef HEAD_HIDDEN
#define HEAD_HIDDEN 0
#endif
#ifndef HEAD_INPUT_BYTES
#define HEAD_INPUT_BYTES 16384
#endif
#ifndef HEAD_OUTPUT_BYTES
#define HEAD_OUTPUT_BYTES 4096
#endif
#ifndef HEAD_ABOUT_BYTES
#define HEAD_ABOUT_BYTES 2048
#endif
#ifndef HEAD_HEADS_MAX
#define HEAD_HEADS_MAX 64
#endif

#if defined(__wasm__)
#define HEAD_EXPORT(name) __attribute__((export_name(#name), visibility("default")))
/* Of a module there is one instance for each head. */
#undef HEAD_HEADS_MAX
#define HEAD_HEADS_MAX 1
#else
#define HEAD_EXPORT(name) __attribute__((visibility("default")))
#endif

/* Numbers of a block lie on multiples of their size, but for the model block. */
static inline uint16_t head_u16(const uint8_t *at) { return (uint16_t)(at[0] | at[1] << 8); }
static inline uint32_t head_u32(const uint8_t *at)
{
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}
static inline uint64_t head_u64(const uint8_t *at) { return head_u32(at) | (uint64_t)head_u32(at + 4) << 32; }
static inline float head_f32(const uint8_t *at)
{
    union { uint32_t bits; float value; } number;
    number.bits = head_u32(at);
    return number.value;
}
static inline void head_put_u16(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)value;
    at[1] = (uint8_t)(value >> 8);
}
static inline void head_put_u32(uint8_t *at, uint32_t value)
{
    head_put_u16(at, value);
    head_put_u16(at + 2, value >> 16);
}
static inline void head_put_f32(uint8_t *at, float value)
{
    union { uint32_t bits; float value; } number;
    number.value = value;
    head_put_u32(at, number.bits);
}

/* A flow; the ABI's header says what the fields mean. */
struct head_flow {
    uint64_t pair, start_us, duration_us, packets_total, bytes_total;
    uint32_t flags;
    uint8_t protocol;
    uint32_t packets, hidden, tasks, payload_bytes;
    const uint8_t *payload;
    /* For the functions below. */
    const uint8_t *block, *packet_list, *hidden_list, *task_list;
    uint32_t task_size, packet_size;
};

struct head_packet {
    uint32_t payload_size, gap_us;
    uint16_t payload_kept;
    uint8_t direction, tcp_flags;
};

struct head_task {
    uint16_t task, label, flags, scores;
    float score;
    const uint8_t *score_list;
};

/* What to fill in; zeros at first. */
struct head_verdict {
    uint16_t label;
    uint16_t flags;
    float score;
    uint32_t evidence_bytes;
    char evidence[TLLM_HEAD_EVIDENCE_BYTES_MAX];
};

/* Value `number` of the hidden vector. */
static inline float head_hidden(const struct head_flow *flow, uint32_t number) { return head_f32(flow->hidden_list + 4 * number); }

static inline struct head_packet head_packet(const struct head_flow *flow, uint32_t number)
{
    const uint8_t *at = flow->packet_list + flow->packet_size * number;
    struct head_packet packet = {head_u32(at), head_u32(at + 4), head_u16(at + 8), at[10], at[11]};
    return packet;
}

static inline struct head_task head_task(const struct head_flow *flow, uint32_t number)
{
    const uint8_t *at = flow->task_list + flow->task_size * number;
    struct head_task task = {head_u16(at), head_u16(at + 2), head_u16(at + 8), head_u16(at + 10), head_f32(at + 4),
                             flow->block + head_u32(at + 12)};
    return task;
}

/* Appends to the evidence what there is room for. */
static inline void head_say(struct head_verdict *verdict, const char *text)
{
    for (; *text && verdict->evidence_bytes < TLLM_HEAD_EVIDENCE_BYTES_MAX; text++)
        verdict->evidence[verdict->evidence_bytes++] = *text;
}

static inline void head_say_number(struct head_verdict *verdict, uint64_t number)
{
    char digits[21];
    uint32_t at = sizeof digits - 1;
    digits[at] = 0;
    do {
        digits[--at] = (char)('0' + number % 10);
        number /= 10;
    } while (number);
    head_say(verdict, digits + at);
}

#ifdef HEAD_STATE
#define HEAD_STATE_PARAMETER , HEAD_STATE *state
#define HEAD_STATE_ARGUMENT(head) , &(head)->state
#else
#define HEAD_STATE_PARAMETER
#define HEAD_STATE_ARGUMENT(head)
#endif

/* Yours: 0 is done; a negative number: no verdicts for this call. */
static int32_t head_judge(const struct head_flow *flow, struct head_verdict *verdict HEAD_STATE_PARAMETER);
#ifdef HEAD_BEGIN
/* Yours: is given the model block; a negative number: no use for this model. */
static int32_t HEAD_BEGIN(const uint8_t *block, uint32_t bytes HEAD_STATE_PARAMETER);
#endif

struct head {
    _Alignas(8) uint8_t input[HEAD_INPUT_BYTES];
    _Alignas(8) uint8_t output[HEAD_OUTPUT_BYTES];
    uint32_t input_bytes_max, output_bytes_max;
#ifdef HEAD_STATE
    HEAD_STATE state;
#endif
    int32_t is_taken;
};

static struct head head_heads[HEAD_HEADS_MAX];
static _Alignas(8) uint8_t head_about_block[HEAD_ABOUT_BYTES];

HEAD_EXPORT(tllm_head_abi) uint32_t tllm_head_abi(void);
HEAD_EXPORT(tllm_head_about) const void *tllm_head_about(void);
HEAD_EXPORT(tllm_head_new) void *tllm_head_new(uint32_t input_bytes_max, uint32_t output_bytes_max);
HEAD_EXPORT(tllm_head_input) void *tllm_head_input(void *head);
HEAD_EXPORT(tllm_head_output) void *tllm_head_output(void *head);
HEAD_EXPORT(tllm_head_begin) int32_t tllm_head_begin(void *head, uint32_t input_bytes);
HEAD_EXPORT(tllm_head_judge) int32_t tllm_head_judge(void *head, uint32_t input_bytes);
HEAD_EXPORT(tllm_head_free) void tllm_head_free(void *head);

uint32_t tllm_head_abi(void) { return TLLM_HEAD_ABI; }

/* Where the text ends; what does not fit makes the block longer than its place, which the host refuses. */
static uint32_t head_put_text(uint8_t *block, uint32_t at, const char *text)
{
    uint32_t length = 0;
    while (text[length])
        length++;
    if (at > HEAD_ABOUT_BYTES || length + 2 > HEAD_ABOUT_BYTES - at)
        return TLLM_HEAD_ABOUT_BYTES_MAX + 1;
    head_put_u16(block + at, length);
    for (uint32_t byte = 0; byte < length; byte++)
        block[at + 2 + byte] = (uint8_t)text[byte];
    return at + 2 + length;
}

const void *tllm_head_about(void)
{
    static const char *const labels[] = {HEAD_LABELS};
    const uint32_t count = sizeof labels / sizeof labels[0];
    uint8_t *block = head_about_block;
    uint32_t at = 32;
    head_put_u32(block, TLLM_HEAD_MAGIC_ABOUT);
    head_put_u32(block + 8, TLLM_HEAD_ABI);
    head_put_u32(block + 12, HEAD_NEEDS);
    head_put_u32(block + 16, HEAD_HIDDEN);
    head_put_u16(block + 20, count);
    at = head_put_text(block, at, HEAD_NAME);
    at = head_put_text(block, at, HEAD_VERSION);
    for (uint32_t label = 0; label < count; label++)
        at = head_put_text(block, at, labels[label]);
    head_put_u32(block + 4, at);
    return block;
}

void *tllm_head_new(uint32_t input_bytes_max, uint32_t output_bytes_max)
{
    if (input_bytes_max > HEAD_INPUT_BYTES || output_bytes_max > HEAD_OUTPUT_BYTES)
        return NULL;
    for (uint32_t number = 0; number < HEAD_HEADS_MAX; number++) {
        struct head *head = &head_heads[number];
        int32_t is_taken = 0;
        if (!__atomic_compare_exchange_n(&head->is_taken, &is_taken, 1, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
            continue;
        head->input_bytes_max = input_bytes_max;
        head->output_bytes_max = output_bytes_max;
#if defined(HEAD_STATE) && !defined(__wasm__)
        /* A module's memory is fresh; a library's place may have been another head's. */
        for (uint32_t byte = 0; byte < sizeof head->state; byte++)
            ((volatile uint8_t *)&head->state)[byte] = 0;
#endif
        return head;
    }
    return NULL;
}

void *tllm_head_input(void *head) { return ((struct head *)head)->input; }
void *tllm_head_output(void *head) { return ((struct head *)head)->output; }
void tllm_head_free(void *head) { __atomic_store_n(&((struct head *)head)->is_taken, 0, __ATOMIC_RELEASE); }

int32_t tllm_head_begin(void *head, uint32_t input_bytes)
{
#ifdef HEAD_BEGIN
    struct head *self = head;
    return HEAD_BEGIN(self->input, input_bytes HEAD_STATE_ARGUMENT(self));
#else
    (void)head;
    (void)input_bytes;
    return 0;
#endif
}

int32_t tllm_head_judge(void *head, uint32_t input_bytes)
{
    struct head *self = head;
    const uint8_t *input = self->input;
    uint8_t *output = self->output;
    uint32_t flows = head_u32(input + 12), in = head_u16(input + 16), out = 16;
    (void)input_bytes;
    for (uint32_t number = 0; number < flows; number++) {
        const uint8_t *at = input + in;
        struct head_flow flow = {
            .pair = head_u64(at + 8), .start_us = head_u64(at + 16), .duration_us = head_u64(at + 24),
            .packets_total = head_u64(at + 32), .bytes_total = head_u64(at + 40), .flags = head_u32(at + 4), .protocol = at[48],
            .packets = head_u16(at + 50), .hidden = head_u32(at + 56), .tasks = head_u16(at + 64), .payload_bytes = head_u32(at + 72),
            .payload = at + head_u32(at + 76), .block = at, .packet_list = at + head_u32(at + 52),
            .hidden_list = at + head_u32(at + 60), .task_list = at + head_u32(at + 68),
            .task_size = head_u16(input + 20), .packet_size = head_u16(input + 22)};
        struct head_verdict verdict;
        verdict.label = verdict.flags = 0;
        verdict.score = 0.0f;
        verdict.evidence_bytes = 0;
        int32_t status = head_judge(&flow, &verdict HEAD_STATE_ARGUMENT(self));
        if (status < 0)
            return status;
        uint32_t evidence = verdict.evidence_bytes, bytes = (16 + evidence + 3) & ~3u;
        if (out + bytes > self->output_bytes_max)
            return -1;
        head_put_u32(output + out, bytes);
        head_put_u16(output + out + 4, verdict.label);
        head_put_u16(output + out + 6, verdict.flags);
        head_put_f32(output + out + 8, verdict.score);
        head_put_u16(output + out + 12, 0);
        head_put_u16(output + out + 14, evidence);
        for (uint32_t byte = 0; byte < bytes - 16; byte++)
            ((volatile uint8_t *)output)[out + 16 + byte] = byte < evidence ? (uint8_t)verdict.evidence[byte] : 0;
        out += bytes;
        in += head_u32(at);
    }
    head_put_u32(output, TLLM_HEAD_MAGIC_VERDICTS);
    head_put_u32(output + 4, out);
    head_put_u32(output + 8, flows);
    head_put_u32(output + 12, 0);
    return (int32_t)out;
}

#if defined(__wasm__)
/* Compilers write calls of these by themselves, and a module has no C library. */
__attribute__((weak)) void *memset(void *to, int value, size_t bytes)
{
    volatile uint8_t *at = to;
    while (bytes--)
        *at++ = (uint8_t)value;
    return to;
}
__attribute__((weak)) void *memcpy(void *restrict to, const void *restrict from, size_t bytes)
{
    volatile uint8_t *at = to;
    const uint8_t *source = from;
    while (bytes--)
        *at++ = *source++;
    return to;
}
#endif

#endif
