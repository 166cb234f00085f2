/* libtrafficllm: verdicts of a language model on network flows, inline.
 *
 * Licence: MIT OR Apache-2.0. This file is made from ffi/src; change that instead.
 *
 * CONVENTIONS
 *
 * Results. A function that can fail returns an int32_t: 0 (TLLM_OK) is done, positive is a state that is no failure (nothing has come
 * yet, the queue is full), negative is an error. Numbers never change their meaning. tllm_status_string() has a text for each;
 * tllm_last_error() has this thread's last error in words: where, what was expected, what was found.
 *
 * Arguments. What goes in comes first, what comes out last. Results are written only if the status is not negative, unless a function
 * says otherwise. NULL is an error where it is not said to be allowed. A buffer is followed by its size; with size 0 the pointer is not
 * looked at. Texts that go in are UTF-8 with a NUL, at most 4,096 bytes. The lists of errors leave out what any call can meet:
 * TLLM_ERR_PANIC, and TLLM_ERR_ARGUMENT for a pointer that is not aligned. The library may change errno.
 *
 * Texts that come out are written with a NUL into `buffer` of `size` bytes. `needed` may be NULL; else it gets the bytes that the text
 * takes, in any case. If `size` is less, the buffer stays as it is and the status is TLLM_ERR_BUFFER: so ask with size 0, then again.
 *
 * Handles (tllm_model *, tllm_engine *, ...) are numbers that the library looks up, not addresses: never dereference or copy what is
 * behind them. A handle that was freed, one of another kind, and any other pointer are answered with TLLM_ERR_HANDLE, a second thread
 * in a config, flow or session with TLLM_ERR_BUSY: misuse is told, it does not crash. (Where pointers have 32 bits, a freed handle can
 * name a new thing of its kind after 4,096 others had its place.) What tllm_*_new or tllm_*_open gives is yours; free each once with the
 * tllm_*_free of its kind, in any order, on any thread. Freeing always succeeds: what a call of another thread, or the caller of this
 * callback, is using ends for everybody else at once, and goes when that call returns. Then the status is TLLM_RUNNING: that call ends
 * soon, and until it has, it can be in its callback.
 *
 * Structs that come out, or into a callback, have their size with them, sizeof as the program knows it; those that go in carry it, set
 * by their tllm_*_init. Fields called `reserved` are zero. So structs can grow without a new ABI number: programs of an older header see
 * the fields that they know, those of a newer one zero in the fields that the library does not know.
 *
 * Threads. Models and engines can be used by any number of threads at the same time; a config, a flow and a session by one at a time.
 * Opening a model and making an engine start no thread; tllm_engine_start does. Signals are blocked on the library's threads.
 * No function of the packet path (tllm_flow_*, tllm_session_submit*, tllm_session_poll) waits for another thread. Do not cancel a
 * thread that is in the library (pthread_cancel), nor jump out of it from a signal handler; no function may be called by one.
 *
 * Forks. A model, and an engine that was not started, can be used by a child. After tllm_engine_start the threads are in one process
 * only: in a child of it, calls on that engine, its sessions and tllm_flow_new answer TLLM_ERR_FORKED, freeing works, and nothing hangs.
 * Fork while no other thread of the host is in the library. A child made by vfork(), or by clone() with the memory shared, may call
 * nothing; one made by a bare clone() system call is not noticed.
 *
 * Lifetimes. An engine keeps its model, a session and a flow keep their engine. Verdicts hold their texts themselves. Texts that a
 * function returns as const char * are static. The library stays in memory after dlclose(); its threads end with
 * tllm_engine_stop or tllm_engine_free.
 *
 * Callbacks say on which thread they are called, how long their pointers are valid, and what they may call.
 *
 * Panics. A defect of the library is caught at the border: TLLM_ERR_PANIC. A config, flow or session that the call was using can then
 * only be freed; everything else goes on. A defect in a worker costs the flows of its batch (TLLM_ERR_WORKER), and the worker goes on.
 *
 * Silence. The library writes to neither standard output nor standard error; it logs to tllm_log_set's callback.
 *
 * Limits. Texts 4,096 bytes; 4,096 configs, models and sessions, 1,024 engines, 4,194,304 flows (65,536 where pointers have 32 bits) at a
 * time; of one engine 1,024 sessions and "engine.flows_max" flows. Further limits are those of the keys that tllm_config_option lists.
 * At a limit: TLLM_ERR_LIMIT. Models, buffers, queue, sessions and flows of an engine take at most "engine.memory_bytes_max" together,
 * where that is set: TLLM_ERR_BUDGET.
 *
 * Begin with: if (tllm_abi_version() != TLLM_ABI_VERSION) refuse the library.
 */
