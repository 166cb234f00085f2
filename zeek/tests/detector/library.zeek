# @TEST-DOC: Without the library, and with one that is not what the plugin was made for, Zeek warns and works without verdicts.
# @TEST-EXEC: make_capture.py http 10 in.pcap
# @TEST-EXEC: mkdir missing && without_library.py "$ZEEK_PLUGIN_PATH" missing
# @TEST-EXEC: ZEEK_PLUGIN_PATH=missing zeek -C -r in.pcap %INPUT >output 2>messages
# @TEST-EXEC: grep -q "cannot load libtrafficllm: libtrafficllm.so.*No such file" messages
# @TEST-EXEC: mkdir broken other
# @TEST-EXEC: echo "no library" >broken/$(library_name.sh)
# @TEST-EXEC: LD_LIBRARY_PATH=broken zeek -C -r in.pcap %INPUT >>output 2>messages
# @TEST-EXEC: grep -q "cannot load libtrafficllm: .*broken" messages
# @TEST-EXEC: echo "unsigned tllm_abi_version(void) { return 12345; }" >other.c
# @TEST-EXEC: cc -shared -fPIC other.c -o other/$(library_name.sh)
# @TEST-EXEC: LD_LIBRARY_PATH=other zeek -C -r in.pcap %INPUT >>output 2>messages
# @TEST-EXEC: grep -q "has ABI number 12345, and this plugin was compiled for " messages
# @TEST-EXEC: btest-diff output

@load TrafficLLM

global connections = 0;

event connection_state_remove(c: connection)
	{
	++connections;
	}

event zeek_done()
	{
	print fmt("%d connections", connections);
	}
