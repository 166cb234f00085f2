#!/usr/bin/env bash
# Records the captures in tests/captures: real programs talking across a veth pair between two network namespaces.
#
#   sudo tests/record_captures.sh [OUTPUT FOLDER]
#
# Needs root and these Debian packages:
#   bind9-dnsutils curl dns2tcp dnsmasq-base ethtool iproute2 iputils-ping nginx-light openssh-client openssh-server openssl
#   python3-aiosmtpd swaks tcpdump tshark wireshark-common
#
# Nothing leaves the machine: both namespaces have only the pair and loopback, with no route to anywhere else. Keys are made for the run
# and thrown away with the work folder. Two runs differ (ports, random numbers, times), so a new recording needs the flow
# counts in runtime/tests to be looked at again.
set -euo pipefail

output=$(realpath "${1:-$(dirname "$0")/captures}")
work=$(mktemp -d)
client="tllm-client-$$"
server="tllm-server-$$"
capture_pid=""
server_pids=()

cleanup() {
    local pid
    for pid in "${server_pids[@]}" ${capture_pid:+"$capture_pid"}; do kill "$pid" 2>/dev/null || true; done
    ip netns del "$client" 2>/dev/null || true
    ip netns del "$server" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT

in_client() { ip netns exec "$client" "$@"; }
in_server() { ip netns exec "$server" "$@"; }

serve() { # COMMAND...: starts a server in the server's namespace
    ip netns exec "$server" "$@" >"$work/server.log" 2>&1 &
    server_pids+=("$!")
}

stop_servers() {
    local pid
    for pid in "${server_pids[@]}"; do
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    server_pids=()
}

wait_for_port() { # PORT [4|6]: until something listens on the TCP port
    local tries
    for tries in $(seq 100); do
        if in_server ss -Hltn "sport = :$1" | grep -q .; then return 0; fi
        sleep 0.05
    done
    echo "nothing listens on port $1 after $tries tries" >&2
    cat "$work/server.log" >&2
    exit 1
}

start_capture() { # FILE [INTERFACE]: tcpdump in the server's namespace
    ip netns exec "$server" tcpdump -i "${2:-veth-s}" -s 0 -U -w "$1" "not (icmp6 and ip6[40] >= 130 and ip6[40] <= 143)" 2>"$work/tcpdump.log" &
    capture_pid=$!
    until grep -q "listening on" "$work/tcpdump.log"; do sleep 0.05; done
}

start_capture_pcapng() { # FILE
    ip netns exec "$server" dumpcap -q -i veth-s -f "not icmp6" -w "$1" 2>"$work/dumpcap.log" &
    capture_pid=$!
    until grep -q "^File:" "$work/dumpcap.log"; do sleep 0.05; done
    sleep 0.3
}

stop_capture() {
    sleep 1
    kill -TERM "$capture_pid"
    wait "$capture_pid" || true
    capture_pid=""
}

ip netns add "$client"
ip netns add "$server"
ip link add veth-c netns "$client" mtu 1500 type veth peer name veth-s netns "$server"
for side in "$client veth-c 1" "$server veth-s 2"; do
    read -r namespace device host <<<"$side"
    ip -n "$namespace" link set lo up
    ip -n "$namespace" addr add "192.0.2.$host/24" dev "$device"
    ip -n "$namespace" addr add "2001:db8::$host/64" dev "$device" nodad
    ip netns exec "$namespace" ethtool -K "$device" tx off gso off gro off tso off >/dev/null 2>&1
    ip -n "$namespace" link set "$device" up
done
sleep 1
in_client ping -c 1 -q 192.0.2.2 >/dev/null
in_client ping -c 1 -q 2001:db8::2 >/dev/null

# --- HTTP: Python's http.server and a form handler, read by curl -----------------------------------------------
cat >"$work/web.py" <<'PYTHON'
import http.server
import socket

class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer = b"received %d bytes\n" % len(body)
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6

    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

Server(("::", 8080), Handler).serve_forever()
PYTHON
mkdir -p "$work/site/shop"
printf '<html><body><h1>Shop</h1><p>%s</p></body></html>\n' "$(seq -s ' ' 1 300)" >"$work/site/shop/index.html"
printf 'body { color: #222; }\n' >"$work/site/style.css"
serve env -C "$work/site" python3 "$work/web.py"
wait_for_port 8080
start_capture "$work/http.pcap"
v4=http://192.0.2.2:8080
v6='http://[2001:db8::2]:8080'
for url in "$v4/shop/index.html" "$v4/style.css" "$v4/missing.html" "$v4/shop/?page=2&sort=price&q=red+shoes" \
    "$v6/shop/index.html?id=17" "$v6/style.css" \
    "$v4/shop/?id=1%27%20OR%20%271%27=%271%27--%20" "$v4/shop/?file=../../../../etc/hostname" "$v4/shop/?q=%3Cscript%3Ealert(1)%3C/script%3E"; do
    in_client curl -gs -o /dev/null "$url"
done
in_client curl -gs -o /dev/null -d 'name=Ada+Lovelace&email=ada%40example.org&amount=3' "$v4/shop/order"
in_client curl -gs -o /dev/null -d 'user=admin&password=x%27+OR+1%3D1%3B--' "$v6/login?next=%2Fshop"
in_client curl -gs -o /dev/null -H 'Content-Type: application/json' -d '{"item":7,"note":"gift"}' "$v4/api/cart?session=42"
stop_capture
stop_servers

# --- TLS: nginx and openssl s_server, read by curl and openssl s_client; pcapng --------------------------------
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=www.example.org \
    -keyout "$work/key.pem" -out "$work/certificate.pem" 2>/dev/null
cat >"$work/nginx.conf" <<NGINX
pid $work/nginx.pid;
error_log $work/nginx-error.log;
daemon off;
user root;
events { worker_connections 64; }
http {
    access_log off;
    server {
        listen 0.0.0.0:8443 ssl;
        listen [::]:8443 ssl;
        ssl_certificate $work/certificate.pem;
        ssl_certificate_key $work/key.pem;
        root $work/site;
    }
}
NGINX
serve nginx -c "$work/nginx.conf"
serve openssl s_server -quiet -accept 4433 -cert "$work/certificate.pem" -key "$work/key.pem" -tls1_2 -www
wait_for_port 8443
wait_for_port 4433
start_capture_pcapng "$work/tls.pcapng"
resolve4="www.example.org:8443:192.0.2.2"
resolve6="shop.example.org:8443:[2001:db8::2]"
for path in / /shop/index.html /style.css; do
    in_client curl -ks -o /dev/null --resolve "$resolve4" "https://www.example.org:8443$path"
    in_client curl -ks -o /dev/null --resolve "$resolve6" "https://shop.example.org:8443$path"
done
in_client curl -ks -o /dev/null --tls-max 1.2 --resolve "$resolve4" https://www.example.org:8443/shop/
for _ in 1 2; do
    printf 'GET / HTTP/1.0\r\n\r\n' | in_client timeout 5 openssl s_client -quiet -connect 192.0.2.2:4433 -servername old.example.org >/dev/null 2>&1 || true
done
stop_capture
stop_servers

# --- DNS: dnsmasq asked by dig; gzip ---------------------------------------------------------------------------
serve dnsmasq --keep-in-foreground --no-resolv --no-hosts --no-daemon --conf-file=/dev/null --port=5353 --bind-interfaces \
    --listen-address=192.0.2.2,2001:db8::2 --pid-file="$work/dnsmasq.pid" \
    --address=/www.example.org/192.0.2.80 --address=/www.example.org/2001:db8::80 --mx-host=example.org,mail.example.org,10 \
    --txt-record=example.org,"v=spf1 -all" --local=/example.org/
wait_for_port 5353
start_capture "$work/dns.pcap"
for query in "A www.example.org" "AAAA www.example.org" "MX example.org" "TXT example.org" "A nowhere.example.org"; do
    read -r type name <<<"$query"
    in_client dig +tries=1 +time=2 -p 5353 @192.0.2.2 "$name" "$type" >/dev/null
    in_client dig +tries=1 +time=2 -p 5353 @2001:db8::2 "$name" "$type" >/dev/null
done
in_client dig +tcp +tries=1 +time=2 -p 5353 @192.0.2.2 www.example.org A >/dev/null
stop_capture
stop_servers

# --- SSH: OpenSSH with throw-away keys -------------------------------------------------------------------------
ssh-keygen -q -t ed25519 -N '' -f "$work/host_key"
ssh-keygen -q -t ed25519 -N '' -f "$work/client_key"
mkdir -p "$work/ssh" /run/sshd
cp "$work/client_key.pub" "$work/ssh/authorized_keys"
chmod 700 "$work/ssh"
chmod 600 "$work/ssh/authorized_keys"
serve /usr/sbin/sshd -D -e -f /dev/null -p 2222 -h "$work/host_key" -o PidFile=none -o UsePAM=no -o StrictModes=no \
    -o PermitRootLogin=yes -o PasswordAuthentication=no -o "AuthorizedKeysFile=$work/ssh/authorized_keys"
wait_for_port 2222
start_capture "$work/ssh.pcap"
ssh_options=(-F none -p 2222 -i "$work/client_key" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o BatchMode=yes -o LogLevel=ERROR)
in_client ssh "${ssh_options[@]}" root@192.0.2.2 'seq 1 200' >/dev/null
in_client ssh "${ssh_options[@]}" root@2001:db8::2 'uname; sleep 1; date' >/dev/null
stop_capture
stop_servers

# --- SMTP: aiosmtpd, sent to by swaks ---------------------------------------------------------------------------
serve aiosmtpd -n -l 0.0.0.0:2525 -c aiosmtpd.handlers.Sink
wait_for_port 2525
start_capture "$work/smtp.pcap"
for number in 1 2 3; do
    in_client swaks --silent 3 --server 192.0.2.2 --port 2525 --helo client.example.org --from ada@example.org \
        --to "grace$number@example.net" --header "Subject: report $number" --body "Dear Grace, this is report number $number."
done
stop_capture
stop_servers

# --- A DNS tunnel: dns2tcp carrying an HTTP session ------------------------------------------------------------
serve env -C "$work/site" python3 "$work/web.py"
wait_for_port 8080
mkdir -p "$work/chroot"
cat >"$work/dns2tcpd.conf" <<DNS2TCP
listen = 192.0.2.2
port = 53
user = nobody
chroot = $work/chroot
domain = tunnel.example.org
resources = web:127.0.0.1:8080
DNS2TCP
chmod 755 "$work"
serve dns2tcpd -F -d 1 -f "$work/dns2tcpd.conf"
for _ in $(seq 100); do
    if in_server ss -Hlun "sport = :53" | grep -q .; then break; fi
    sleep 0.05
done
start_capture "$work/dns-tunnel.pcap"
ip netns exec "$client" dns2tcpc -T TXT -z tunnel.example.org -r web -l 9999 192.0.2.2 >"$work/dns2tcpc.log" 2>&1 &
server_pids+=("$!")
for _ in $(seq 100); do
    if in_client ss -Hltn "sport = :9999" | grep -q .; then break; fi
    sleep 0.05
done
in_client curl -s -m 20 -o /dev/null http://127.0.0.1:9999/shop/index.html
in_client curl -s -m 20 -o /dev/null -d 'secret=the+report+leaves+by+name+server' http://127.0.0.1:9999/shop/order
stop_capture
stop_servers

# --- ICMP, and everything at once on all interfaces (Linux cooked capture) --------------------------------------
serve env -C "$work/site" python3 "$work/web.py"
wait_for_port 8080
start_capture "$work/cooked.pcap" any
in_client ping -q -c 3 -i 0.3 192.0.2.2 >/dev/null
in_client ping -q -c 3 -i 0.3 2001:db8::2 >/dev/null
in_client curl -gs -o /dev/null "$v4/style.css?v=3"
in_server curl -gs -o /dev/null "http://[::1]:8080/style.css?v=4"
stop_capture
stop_servers

gzip -9nc "$work/dns.pcap" >"$output/dns.pcap.gz"
cp "$work"/{http,ssh,smtp,dns-tunnel,cooked}.pcap "$work/tls.pcapng" "$output/"
chmod 644 "$output"/*.pcap "$output"/*.pcapng "$output"/*.gz
ls -l "$output"
