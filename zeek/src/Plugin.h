// See the file "COPYING" in the main distribution directory for copyright.

#pragma once

#include <memory>

#include "zeek/plugin/Plugin.h"

#include "Judge.h"

namespace plugin::TrafficLLM_Detector {

class Plugin : public zeek::plugin::Plugin {
public:
    /** Zeek is about to end: verdicts that are under way have to come now. */
    void Finish();

    /** There from InitPostScript() on. Zeek refers to it, as an IO source, for longer than to the plugin. */
    std::unique_ptr<Judge> judge;

protected:
    zeek::plugin::Configuration Configure() override;
    void InitPostScript() override;
    void HookSetupAnalyzerTree(zeek::Connection* conn) override;
    void HookDrainEvents() override;
    void Done() override;
};

extern Plugin plugin;

} // namespace plugin::TrafficLLM_Detector
