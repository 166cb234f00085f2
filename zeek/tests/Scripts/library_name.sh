#!/bin/sh
# The name that the plugin loads the library by.
strings -a "$ZEEK_PLUGIN_PATH"/lib/*.so | grep -o -m 1 'libtrafficllm\.so\.[0-9]*'
