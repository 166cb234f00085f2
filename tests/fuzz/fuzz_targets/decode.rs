//! Any bytes as a row of packets of any link type, through a small flow table: no panic, and nothing is lost uncounted.
//!
//! The input is a row of records: link type (an index), length, time step, then the packet's bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trafficllm_traffic::{Flow, FlowConfig, FlowTable, LinkType, decode};

const LINK_TYPES: [LinkType; 14] = [
    LinkType::NULL,
    LinkType::ETHERNET,
    LinkType::PPP,
    LinkType::RAW_BSD,
    LinkType::RAW_OPENBSD,
    LinkType::PPP_HDLC,
    LinkType::PPP_ETHER,
    LinkType::RAW,
    LinkType::LOOP,
    LinkType::LINUX_SLL,
    LinkType::IPV4,
    LinkType::IPV6,
    LinkType::LINUX_SLL2,
    LinkType(9999),
];

const CONFIG: FlowConfig = FlowConfig {
    max_flows: 3,
    max_packets: 4,
    max_payload_bytes: 16,
    max_payloads: 2,
    tcp_idle_timeout_us: 3_000_000,
    other_idle_timeout_us: 2_000_000,
    active_timeout_us: 10_000_000,
    closed_timeout_us: 1_000_000,
};

fn check(flow: &Flow) {
    assert!(flow.packets >= flow.records.len() as u64 && !flow.records.is_empty());
    assert!(flow.records.len() <= CONFIG.max_packets && flow.end_ns >= flow.start_ns);
    let mut kept = 0;
    for (record, payload) in flow.kept() {
        assert!(u32::from(record.payload_kept) <= record.payload_bytes);
        assert_eq!(payload.len(), usize::from(record.payload_kept));
        assert!(payload.len() <= CONFIG.max_payload_bytes);
        kept += payload.len();
    }
    assert!(kept <= CONFIG.max_payloads * CONFIG.max_payload_bytes);
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(mut table) = FlowTable::new(CONFIG) else {
        return;
    };
    let (mut rest, mut flows, mut packets, mut pushed) = (bytes, 0, 0, 0);
    while let [link, length, step, tail @ ..] = rest {
        let (packet, after) = tail.split_at(tail.len().min(usize::from(*length)));
        rest = after;
        // Mostly small steps, some of them back, and the extreme ones.
        let time_ns = match step {
            0 => 0,
            255 => u64::MAX,
            step => (1_u64 << 62).wrapping_add_signed((i64::from(*step) - 100) * 200_000_000),
        };
        let link_type = LINK_TYPES[usize::from(*link) % LINK_TYPES.len()];
        if let Ok(packet) = decode(link_type, packet, u32::from(*length), time_ns) {
            assert!(packet.payload.len() as u64 <= u64::from(packet.payload_bytes));
            assert!(packet.payload_bytes <= packet.ip_bytes);
            pushed += 1;
            table.push(&packet, &mut |flow| {
                check(&flow);
                flows += 1;
                packets += flow.packets;
            });
            assert!(table.len() <= CONFIG.max_flows);
        }
    }
    table.flush(&mut |flow| {
        check(&flow);
        flows += 1;
        packets += flow.packets;
    });
    let counters = table.counters();
    assert!(table.is_empty());
    assert_eq!((counters.packets, counters.flows), (pushed, flows));
    assert_eq!(packets, pushed);
    let ended = counters.tcp_end + counters.idle + counters.active;
    assert_eq!(
        counters.flows,
        ended + counters.port_reuse + counters.evicted + counters.flushed
    );
});
