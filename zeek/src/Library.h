// See the file "COPYING" in the main distribution directory for copyright.

#pragma once

// libtrafficllm is loaded while Zeek runs, not by the dynamic linker together with the plugin: a Zeek whose libtrafficllm went missing
// must go on without verdicts, not refuse to start. Library.cc defines the functions that trafficllm.hpp calls, as forwards to the library.
// So include this instead of trafficllm.hpp, and extend the list there by what you use.
#include <trafficllm.hpp>

namespace trafficllm_feed {

/**
 * Loads libtrafficllm, once; call it before anything else of the library. Any thread may.
 *
 * @throws std::runtime_error saying what is wrong: it is not there, has another ABI number, or lacks a function. It can be tried again.
 */
void load_library();

} // namespace trafficllm_feed
