# @TEST-DOC: The scripts of the README work.
# @TEST-EXEC: readme_scripts.py $SCRIPTS/../../README.md >output
# @TEST-EXEC: make_capture.py mixed 300 in.pcap
# @TEST-EXEC: make_capture.py fan 50 fan.pcap
# @TEST-EXEC: sed 's/< 0\.9/< 0.5/' 1.zeek >bots.zeek
# @TEST-EXEC: zeek -C -r fan.pcap bots.zeek 2>messages
# @TEST-EXEC: zeek-cut note msg <notice.log >>output
# @TEST-EXEC: sed 's/\^(dns|doh)-tunnel/^benign-dns/' 2.zeek >tunnels.zeek
# @TEST-EXEC: zeek -C -r in.pcap tunnels.zeek 2>>messages
# @TEST-EXEC: zeek-cut client server label names <tunnels.log | head -2 >>output
# @TEST-EXEC: zeek -C -r in.pcap 2.zeek 2>>messages
# @TEST-EXEC: zeek -C -r in.pcap 3.zeek Devices::agreeing=1 2>>messages
# @TEST-EXEC: test $(zeek-cut host <devices.log | wc -l) -gt 0
# @TEST-EXEC: zeek -C -r in.pcap 4.zeek 2>>messages
# @TEST-EXEC: ! grep -v "is active$" messages
# @TEST-EXEC: btest-diff output
