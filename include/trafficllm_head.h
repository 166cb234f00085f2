/* libtrafficllm: what a task head gets and what it gives.
 *
 * Licence: MIT OR Apache-2.0.
 *
 * A head takes what the model knows about a flow and returns a verdict of its own. It is a WebAssembly module (untrusted: it can
 * compute, and nothing else) or a native library (trusted: it can do what the process can). Both export the same functions and see the
 * same bytes, so that one C or Rust source makes either. plugins/sdk-c and plugins/sdk-rust have the reading and writing done.
 *
 * CONVENTIONS
 *
 * All numbers are little-endian, f32 is IEEE 754 binary32. Offsets and sizes are in bytes. A block begins on a multiple of 8. Fields
 * called `reserved` are zero, and are not looked at. A block says how long its fixed parts are (`..._size`): later minor versions append to
 * them, so step by the size that the block says, not by the one that you know.
 *
 * VERSIONS
 *
 * tllm_head_abi() gives the version that the head was made for, TLLM_HEAD_ABI. The host takes a head of its own major version whose minor is
 * not above its own; it then writes blocks of its own minor version. A head never meets a host that is older than itself.
 *
 * WHAT A HEAD EXPORTS
 *
 *     uint32_t tllm_head_abi(void);
 *     const void *tllm_head_about(void);
 *     void *tllm_head_new(uint32_t input_bytes_max, uint32_t output_bytes_max);
 *     void *tllm_head_input(void *head);
 *     void *tllm_head_output(void *head);
 *     int32_t tllm_head_begin(void *head, uint32_t input_bytes);
 *     int32_t tllm_head_judge(void *head, uint32_t input_bytes);
 *     void tllm_head_free(void *head);                               (native libraries only)
 *     memory                                                         (modules only: 32-bit, not shared)
 *
 * In a module pointers are i32 offsets in `memory`, uint32_t and int32_t are i32. Other exports are allowed, to TLLM_HEAD_EXPORTS_MAX.
 *
 * abi     The version. Called first; nothing else is called if it does not fit.
 * about   The head's "about" block, which stays as it is. Called once after the head was loaded.
 * new     A head with room for input and output of that many bytes; NULL if it cannot: the head is then not used. The host makes one for
 *         each thread that judges, and one only if the head says TLLM_HEAD_STATEFUL.
 * input   Where the host writes, on a multiple of 8. Asked once after `new`.
 * output  Where the host reads, on a multiple of 8, apart from the input. Asked once after `new`.
 * begin   A "model" block is in the input: the names that the numbers of later blocks stand for. 0 or positive: ready. Negative: the head
 *         has no use for this model (say why with the log). Called once, before the first judge.
 * judge   A "flows" block is in the input. Write a "verdicts" block with one verdict for each flow, in the same order, to the output and
 *         return its bytes. Negative: the head could not, and the number is in the host's log.
 * free    The end of a head.
 *
 * No function is called by two threads at the same time for the same head; native libraries are called by several threads for different ones.
 *
 * WHAT A HEAD MAY IMPORT
 *
 * A module one function at most, and nothing else:
 *
 *     (import "trafficllm" "tllm_head_log" (func (param i32 i32 i32)))
 *     void tllm_head_log(uint32_t level, const char *text, uint32_t text_bytes);
 *
 * level: 1 error, 2 warning, 3 information, 4 detail. A call's first TLLM_HEAD_LOG_LINES_MAX lines are kept, each cut at
 * TLLM_HEAD_LOG_BYTES_MAX bytes; the others are counted. Each costs 1,000 units of fuel. Of all
 * calls of a head a hundred lines a second are kept. A native library that wants to log exports
 *
 *     void tllm_head_log_to(void (*log)(uint32_t level, const char *text, uint32_t text_bytes));
 *
 * which is called once, after abi. `log` may be called inside the functions above only, on their thread.
 *
 * WHAT BECOMES OF FAULTS
 *
 * A head that traps, uses up its fuel, returns a negative number, or writes a block that breaks a rule below gives no verdict: the flows of that
 * call are said to be abstained, with the reason. After a number of faults in a row that the operator sets the head is switched off until the
 * operator switches it on. A flow that comes when there is no time left, or no room for a head, has no verdict of it either, which is not held
 * against it. The verdicts of the model itself go out in any case.
 *
 * WHAT IS KEPT BETWEEN CALLS
 *
 * Nothing, in a module: after each call its memory and its globals are put back to what they were after `begin`. A head that says
 * TLLM_HEAD_STATEFUL keeps them, if the operator allows it: there is one of it for the flows that a host submits, which it sees in the order in
 * which they are judged, and one for each detection, which it sees in the order in which they end; each begins anew with other heads or another
 * model. Native heads keep what they keep. After a fault a module begins anew, and after a call in which its memory has grown, unless it keeps
 * what it knows. A head that begins anew far more often than it answers 16 flows is switched off as after faults in a row.
 *
 * WHAT A MODULE MAY CONSIST OF
 *
 * WebAssembly 2.0 with fixed-width SIMD, bulk memory, and memories of any page size; without reference types, threads, exceptions, tail calls
 * and 64-bit or further memories; without table.init, table.copy, elem.drop and data.drop, which would be state that cannot be put back. NaNs are
 * canonical. Limits are those at the end of this file and the operator's: memory, fuel per flow, bytes of stack. Where the host puts the memory
 * back after each flow, that costs a unit of fuel for each 64 bytes; a head whose memory costs more than a flow's fuel does not begin.
 *
 * BLOCKS
 *
 * "About", of the head:
 *
 *      0  u32  magic            TLLM_HEAD_MAGIC_ABOUT
 *      4  u32  bytes            of the block, texts included; at most TLLM_HEAD_ABOUT_BYTES_MAX
 *      8  u32  abi              as tllm_head_abi()
 *     12  u32  needs            TLLM_HEAD_NEEDS_* and TLLM_HEAD_STATEFUL; what is not asked for is left out of the flows block
 *     16  u32  hidden           values of the hidden vector that the head was made for; 0: any. Another model is refused before `begin`
 *     20  u16  labels           1 to TLLM_HEAD_LABELS_MAX
 *     22  u16  reserved
 *     24  u64  reserved
 *     32  texts: name, version, then the labels. A text is a u16 with its bytes, then UTF-8 without control characters. The name is what the
 *         head's verdicts are called, as a task: 1 to 63 of a-z, 0-9 and _. The version has at most 63 bytes, a label 1 to 127.
 *
 * "Model", for the head:
 *
 *      0  u32  magic            TLLM_HEAD_MAGIC_MODEL
 *      4  u32  bytes            of the block
 *      8  u32  abi              the host's version
 *     12  u32  hidden           values of the hidden vector; 0: the host has none to give
 *     16  u16  tasks            of the model
 *     18  u16  model_size       32: where the texts begin
 *     20  u32  reserved
 *     24  u64  reserved
 *     32  for each task: f32 threshold (a score below it abstains), u16 labels, text name, texts of the labels. Not aligned.
 *
 * "Flows", for the head:
 *
 *      0  u32  magic            TLLM_HEAD_MAGIC_FLOWS
 *      4  u32  bytes            of the block
 *      8  u32  abi              the host's version
 *     12  u32  flows            1 to TLLM_HEAD_FLOWS_MAX
 *     16  u16  flows_size       32: where the first flow begins
 *     18  u16  flow_size        96: the fixed part of a flow
 *     20  u16  task_size        16: one task's answer
 *     22  u16  packet_size      12: one packet
 *     24  u64  reserved
 *
 * A flow. It begins on a multiple of 8; its offsets count from its own beginning, are multiples of 4, and are 0 where there is nothing:
 *
 *      0  u32  bytes            of the flow, a multiple of 8: the next one begins there
 *      4  u32  flags            TLLM_HEAD_FLOW_*
 *      8  u64  pair             the two hosts, in either direction: equal for equal hosts, else an opaque number; 0: not known
 *     16  u64  start_us         first packet, in microseconds since some moment that is the same for all flows of a run
 *     24  u64  duration_us      from the first packet to the last
 *     32  u64  packets_total    all packets, also those that are not listed
 *     40  u64  bytes_total      sum of the IP lengths of all packets
 *     48  u8   protocol         of IP: 6 TCP, 17 UDP, ...
 *     49  u8   reserved
 *     50  u16  packets          that are listed: the flow's first ones, at most TLLM_HEAD_PACKETS_MAX
 *     52  u32  packets_offset
 *     56  u32  hidden           values of the hidden vector; 0 if not asked for. It is the state of one of the model's tasks, the head's source
 *                               task, which reads the flow with its query rows behind the flow's last token: of the last of these rows, in the
 *                               last layer, after the last norm. What the first word of that task's label is decided from
 *     60  u32  hidden_offset    f32[hidden], no unit
 *     64  u16  tasks            answers of the model's tasks to this flow, by ascending task
 *     66  u16  reserved
 *     68  u32  tasks_offset
 *     72  u32  payload_bytes    first bytes of the listed packets' transport payload, one after the other; 0 if not asked for or not allowed
 *     76  u32  payload_offset
 *     80  u64  reserved
 *     88  u64  reserved
 *
 * A packet:
 *
 *      0  u32  payload_size     bytes of the transport payload, as the headers say
 *      4  u32  gap_us           microseconds since the packet before it; 0 for the first, 4,294,967,295: that or more
 *      8  u16  payload_kept     bytes of it in the payload
 *     10  u8   direction        0: from the side that sent the flow's first packet, 1: from the other
 *     11  u8   tcp_flags        byte 13 of the TCP header (RFC 9293, 3.1); 0 if not TCP
 *
 * A task's answer:
 *
 *      0  u16  task             its number in the model block
 *      2  u16  label            the best label, by its number in the model block
 *      4  f32  score            calibrated probability of that label, 0 to 1
 *      8  u16  flags            TLLM_HEAD_TASK_*
 *     10  u16  scores           0, or the labels of the task
 *     12  u32  scores_offset    f32[scores]: probabilities of all labels, 0 to 1; counts from the beginning of the flow
 *
 * "Verdicts", of the head:
 *
 *      0  u32  magic            TLLM_HEAD_MAGIC_VERDICTS
 *      4  u32  bytes            of the block, which is what judge returns
 *      8  u32  verdicts         as many as there were flows
 *     12  u32  reserved
 *     16  the verdicts
 *
 * A verdict, on a multiple of 4:
 *
 *      0  u32  bytes            of the verdict, a multiple of 4
 *      4  u16  label            by its number in the about block; the best one also where the head abstains
 *      6  u16  flags            TLLM_HEAD_VERDICT_*; other bits are zero
 *      8  f32  score            of that label, 0 to 1; no NaN
 *     12  u16  scores           0, or the labels of the head
 *     14  u16  evidence_bytes   at most TLLM_HEAD_EVIDENCE_BYTES_MAX
 *     16  f32[scores]: one for each label, 0 to 1
 *         evidence: UTF-8 without control characters, for people; then zeros up to `bytes`, at most three
 */

#ifndef TRAFFICLLM_HEAD_H
#define TRAFFICLLM_HEAD_H

#include <stdint.h>

/* Major version in the high half, minor in the low one. */
#define TLLM_HEAD_ABI 0x00010000u

/* "TLHA", "TLHM", "TLHF" and "TLHV". */
#define TLLM_HEAD_MAGIC_ABOUT 0x41484c54u
#define TLLM_HEAD_MAGIC_MODEL 0x4d484c54u
#define TLLM_HEAD_MAGIC_FLOWS 0x46484c54u
#define TLLM_HEAD_MAGIC_VERDICTS 0x56484c54u

/* The hidden vector. */
#define TLLM_HEAD_NEEDS_HIDDEN 1u
/* Answers of the model's tasks. */
#define TLLM_HEAD_NEEDS_TASKS 2u
/* The list of packets. */
#define TLLM_HEAD_NEEDS_PACKETS 4u
/* First payload bytes, where the bundle's profile and the operator allow them. */
#define TLLM_HEAD_NEEDS_PAYLOAD 8u
/* The number of the host pair. */
#define TLLM_HEAD_NEEDS_PAIR 16u
/* The head keeps what it knows between calls. */
#define TLLM_HEAD_STATEFUL 256u

/* The packets that can be listed are all there were, whether or not the head asks for them. */
#define TLLM_HEAD_FLOW_COMPLETE 1u
/* Payload was asked for and is not allowed. */
#define TLLM_HEAD_FLOW_NO_PAYLOAD 2u

/* The score is below the task's threshold. */
#define TLLM_HEAD_TASK_ABSTAINED 1u

/* The head does not know. */
#define TLLM_HEAD_VERDICT_ABSTAINED 1u

#define TLLM_HEAD_ABOUT_BYTES_MAX 65536u
#define TLLM_HEAD_LABELS_MAX 256u
#define TLLM_HEAD_NAME_BYTES_MAX 63u
#define TLLM_HEAD_LABEL_BYTES_MAX 127u
#define TLLM_HEAD_FLOWS_MAX 256u
#define TLLM_HEAD_HIDDEN_MAX 8192u
#define TLLM_HEAD_TASKS_MAX 64u
#define TLLM_HEAD_TASK_LABELS_MAX 4096u
#define TLLM_HEAD_PACKETS_MAX 1024u
#define TLLM_HEAD_PAYLOAD_BYTES_MAX 65536u
#define TLLM_HEAD_EVIDENCE_BYTES_MAX 240u
#define TLLM_HEAD_LOG_LINES_MAX 16u
#define TLLM_HEAD_LOG_BYTES_MAX 256u
#define TLLM_HEAD_EXPORTS_MAX 64u

#endif
