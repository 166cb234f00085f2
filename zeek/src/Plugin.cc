// See the file "COPYING" in the main distribution directory for copyright.

#include "Plugin.h"

#include "zeek/Conn.h"
#include "zeek/packet_analysis/protocol/ip/SessionAdapter.h"

#include "Tap.h"

namespace plugin::TrafficLLM_Detector {

Plugin plugin;

zeek::plugin::Configuration Plugin::Configure() {
    zeek::plugin::Configuration config;
    config.name = "TrafficLLM::Detector";
    config.description = "Verdicts of a language model on connections";
    config.version.major = TRAFFICLLM_PLUGIN_MAJOR;
    config.version.minor = TRAFFICLLM_PLUGIN_MINOR;
    config.version.patch = TRAFFICLLM_PLUGIN_PATCH;

    // Of the hooks one costs something only where connections begin; the other is taken at the very end.
    EnableHook(zeek::plugin::HOOK_SETUP_ANALYZER_TREE);
    return config;
}

void Plugin::InitPostScript() {
    zeek::plugin::Plugin::InitPostScript();
    judge = std::make_unique<Judge>();
    judge->InitPostScript();
}

void Plugin::HookSetupAnalyzerTree(zeek::Connection* conn) {
    if ( judge->IsLooking() )
        conn->GetSessionAdapter()->AddTapAnalyzer(std::make_unique<Tap>(*judge, conn));
}

void Plugin::Finish() { EnableHook(zeek::plugin::HOOK_DRAIN_EVENTS); }

void Plugin::HookDrainEvents() { judge->Finish(); }

void Plugin::Done() {
    if ( judge )
        judge->Stop();

    zeek::plugin::Plugin::Done();
}

} // namespace plugin::TrafficLLM_Detector
