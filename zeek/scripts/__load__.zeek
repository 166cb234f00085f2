##! Loaded with the plugin. Nothing happens until a script loads TrafficLLM.
