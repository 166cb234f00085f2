//! A network of the test's own: a namespace, pairs of virtual interfaces, and a sender.

use std::ffi::CString;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::traffic::Packet;

/// Runs a test on a thread that has a network namespace of its own, as have the processes that it starts. Where the system allows none,
/// says so; as root that is required with `TLLM_REQUIRE_SURICATA=1`.
pub(crate) fn apart(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: it concerns this thread alone.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                let error = std::io::Error::last_os_error();
                // SAFETY: it takes nothing.
                let is_root = unsafe { libc::geteuid() } == 0;
                let is_required = is_root
                    && std::env::var_os("TLLM_REQUIRE_SURICATA").is_some_and(|value| value == "1");
                assert!(!is_required, "no network namespace: {error}");
                eprintln!("SKIPPED: no network namespace: {error}");
                return;
            }
            test();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn ip(arguments: &str) {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Makes two interfaces that are connected to each other. The system itself sends nothing on them.
pub(crate) fn pair(one: &str, other: &str) {
    ip(&format!("link add {one} type veth peer name {other}"));
    for name in [one, other] {
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1").unwrap();
        ip(&format!("link set {name} mtu 9000"));
        ip(&format!("link set {name} up"));
    }
}

/// A way to send packets as they are, and to see those that come.
pub(crate) struct Wire {
    socket: i32,
}

impl Wire {
    pub(crate) fn on(interface: &str) -> Self {
        let name = CString::new(interface).unwrap();
        // SAFETY: plain calls with numbers, a C text, and a structure on the stack that is whole.
        unsafe {
            let all = i32::from((libc::ETH_P_ALL as u16).to_be());
            let socket = libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
                all,
            );
            assert!(socket >= 0, "{}", std::io::Error::last_os_error());
            // Room for what comes while nobody takes it.
            let room = 64_i32 << 20;
            let room_bytes = size_of::<i32>() as u32;
            let set = libc::setsockopt(
                socket,
                libc::SOL_SOCKET,
                libc::SO_RCVBUFFORCE,
                (&raw const room).cast(),
                room_bytes,
            );
            assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = all as u16;
            address.sll_ifindex = libc::if_nametoindex(name.as_ptr()) as i32;
            let size = size_of::<libc::sockaddr_ll>() as u32;
            assert_eq!(
                libc::bind(socket, (&raw const address).cast(), size),
                0,
                "{}",
                std::io::Error::last_os_error()
            );
            Self { socket }
        }
    }

    pub(crate) fn send(&self, packet: &Packet) {
        loop {
            // SAFETY: the bytes are there for the call.
            let sent = unsafe {
                libc::send(
                    self.socket,
                    packet.bytes.as_ptr().cast(),
                    packet.bytes.len(),
                    0,
                )
            };
            if sent == packet.bytes.len() as isize {
                return;
            }
            let error = std::io::Error::last_os_error();
            let is_full = matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN));
            assert!(is_full, "{error}");
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Sends packets, so many in a second.
    pub(crate) fn send_at(&self, packets: &[Packet], per_second: u64) {
        let start = Instant::now();
        for (number, packet) in packets.iter().enumerate() {
            let due = Duration::from_micros(number as u64 * 1_000_000 / per_second);
            let ahead = due.saturating_sub(start.elapsed());
            if ahead > Duration::from_millis(1) {
                std::thread::sleep(ahead);
            }
            self.send(packet);
        }
    }

    /// Takes what has come: the packets that others sent.
    pub(crate) fn received(&self) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        let mut buffer = vec![0_u8; 65_536];
        loop {
            // SAFETY: an empty address that the call fills.
            let (size, is_own) = unsafe {
                let mut from: libc::sockaddr_ll = std::mem::zeroed();
                let mut from_size = size_of::<libc::sockaddr_ll>() as u32;
                let size = libc::recvfrom(
                    self.socket,
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    0,
                    (&raw mut from).cast(),
                    &raw mut from_size,
                );
                (size, from.sll_pkttype == libc::PACKET_OUTGOING)
            };
            if size < 0 {
                return found;
            }
            if !is_own {
                found.push(buffer[..size as usize].to_vec());
            }
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // SAFETY: it is this value's own.
        unsafe { libc::close(self.socket) };
    }
}
