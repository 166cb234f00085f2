//! What the profile `clean` hides never reaches a token: packets that differ only in hidden fields give the same ids, through
//! capture, decoding, flow table and encoder.
#![allow(clippy::unwrap_used, reason = "the helpers of a test fail the test")]

use etherparse::{
    IpHeaders, Ipv4Header, Ipv6Header, PacketBuilder, TcpHeader, TcpOptionElement, ip_number,
};
use proptest::prelude::*;
use trafficllm_traffic::token::{EncodeScratch, Encoder, Profile, Tokenizer, train_merges};
use trafficllm_traffic::{CaptureReader, Flow, FlowConfig, FlowTable, decode};

/// Everything about a connection that the profile hides.
#[derive(Clone, Debug)]
struct Hidden {
    client_mac: [u8; 6],
    server_mac: [u8; 6],
    client: [u8; 4],
    server: [u8; 4],
    client_port: u16,
    server_port: u16,
    time_to_live: u8,
    identification: u16,
    traffic_class: u8,
    sequence: (u32, u32),
    timestamp_options: (u32, u32),
    window: u16,
    checksums: u16,
    start_s: u32,
    host_name: Vec<u8>,
    random: u8,
}

const HOST_NAME_BYTES: usize = 18;

prop_compose! {
    fn hidden()(
        (client_mac, server_mac) in any::<([u8; 6], [u8; 6])>(),
        addresses in any::<([u8; 4], [u8; 4])>().prop_filter("two ends", |(one, other)| one != other),
        (client_port, server_port) in (1_u16.., 1_u16..),
        (time_to_live, identification, traffic_class, window, checksums) in any::<(u8, u16, u8, u16, u16)>(),
        sequence in any::<(u32, u32)>(),
        timestamp_options in any::<(u32, u32)>(),
        start_s in 0_u32..2_000_000_000,
        host_name in prop::collection::vec(any::<u8>(), HOST_NAME_BYTES),
        random: u8,
    ) -> Hidden {
        let (client, server) = addresses;
        Hidden {
            client_mac, server_mac, client, server, client_port, server_port, time_to_live, identification,
            traffic_class, sequence, timestamp_options, window, checksums, start_s, host_name, random,
        }
    }
}

/// What the tokens show of a packet.
#[derive(Clone, Debug)]
struct Shown {
    from_client: bool,
    gap_us: u32,
    payload: Vec<u8>,
}

fn shown() -> impl Strategy<Value = Shown> {
    let payload = prop::collection::vec(any::<u8>(), 0..120);
    (any::<bool>(), 0_u32..3_000_000, payload).prop_map(|(from_client, gap_us, payload)| Shown {
        from_client,
        gap_us,
        payload,
    })
}

/// A ClientHello with a server name between two other extensions.
fn client_hello(hidden: &Hidden) -> Vec<u8> {
    let name_bytes = HOST_NAME_BYTES as u8;
    let mut extensions = vec![0, 23, 0, 0];
    extensions.extend([0, 0, 0, name_bytes + 5, 0, name_bytes + 3, 0, 0, name_bytes]);
    extensions.extend_from_slice(&hidden.host_name);
    extensions.extend(b"\x00\x10\x00\x05\x00\x03\x02h2");
    let mut body = vec![3, 3];
    body.extend([hidden.random; 32]);
    body.push(32);
    body.extend([!hidden.random; 32]);
    body.extend([
        0,
        4,
        0x13,
        0x01,
        0x13,
        0x02,
        1,
        0,
        0,
        extensions.len() as u8,
    ]);
    body.extend(extensions);
    let mut hello = vec![22, 3, 1, 0, body.len() as u8 + 4, 1, 0, 0, body.len() as u8];
    hello.extend(body);
    hello
}

/// One TCP connection as a capture: handshake, a hello, the shown packets.
fn tcp_capture(hidden: &Hidden, shown: &[Shown], version_6: bool) -> Vec<u8> {
    let mut capture = Capture::new();
    let mut sequence = [hidden.sequence.0, hidden.sequence.1];
    let mut send = |from_client: bool, gap_us: u32, syn: bool, payload: &[u8]| {
        let (sender, receiver) = if from_client { (0, 1) } else { (1, 0) };
        let ports = [hidden.client_port, hidden.server_port];
        let mut tcp = TcpHeader::new(
            ports[sender],
            ports[receiver],
            sequence[sender],
            hidden.window,
        );
        tcp.syn = syn;
        tcp.ack = !(syn && from_client);
        tcp.psh = !payload.is_empty();
        tcp.acknowledgment_number = if tcp.ack { sequence[receiver] } else { 0 };
        let (value, echo) = hidden.timestamp_options;
        tcp.set_options(&[
            TcpOptionElement::Noop,
            TcpOptionElement::Noop,
            TcpOptionElement::Timestamp(value, echo),
        ])
        .unwrap();
        sequence[sender] = sequence[sender].wrapping_add(payload.len() as u32 + u32::from(syn));
        let builder = ethernet(hidden, from_client, version_6).tcp_header(tcp);
        let mut packet = vec![0; builder.size(payload.len())];
        builder.write_to_slice(&mut packet, payload).unwrap();
        let ip_bytes = if version_6 { 40 } else { 20 };
        let checksum_start = 14 + ip_bytes + 16;
        packet[checksum_start..checksum_start + 2].copy_from_slice(&hidden.checksums.to_be_bytes());
        if !version_6 {
            packet[24..26].copy_from_slice(&hidden.checksums.to_le_bytes());
        }
        capture.push(hidden.start_s, gap_us, &packet);
    };
    send(true, 0, true, &[]);
    send(false, 20_000, true, &[]);
    send(true, 100, false, &[]);
    send(true, 2_000, false, &client_hello(hidden));
    for packet in shown {
        send(packet.from_client, packet.gap_us, false, &packet.payload);
    }
    capture.bytes
}

/// A DHCP request in UDP as a capture.
fn dhcp_capture(hidden: &Hidden, options: &[u8]) -> Vec<u8> {
    let mut message = vec![1, 1, 6, 0];
    message.extend(hidden.timestamp_options.0.to_be_bytes());
    message.extend([0; 4]);
    message.extend(hidden.client);
    message.extend(hidden.server);
    message.extend([0; 8]);
    message.extend(hidden.client_mac);
    message.resize(236, 0);
    message.extend([0x63, 0x82, 0x53, 0x63, 0x32, 4]);
    message.extend(hidden.client);
    message.extend([0x3d, 7, 1]);
    message.extend(hidden.client_mac);
    message.extend_from_slice(options);
    let builder = ethernet(hidden, true, false).udp(hidden.client_port, hidden.server_port);
    let mut packet = vec![0; builder.size(message.len())];
    builder.write_to_slice(&mut packet, &message).unwrap();
    let mut capture = Capture::new();
    capture.push(hidden.start_s, 0, &packet);
    capture.bytes
}

fn ethernet(
    hidden: &Hidden,
    from_client: bool,
    version_6: bool,
) -> etherparse::PacketBuilderStep<IpHeaders> {
    let swap = |client, server| {
        if from_client {
            [client, server]
        } else {
            [server, client]
        }
    };
    let [source, destination] = swap(hidden.client, hidden.server);
    let ip = if version_6 {
        let long = |address: [u8; 4]| [address; 4].concat().try_into().unwrap();
        let header = Ipv6Header {
            traffic_class: hidden.traffic_class,
            hop_limit: hidden.time_to_live,
            flow_label: u32::from(hidden.identification).try_into().unwrap(),
            source: long(source),
            destination: long(destination),
            ..Default::default()
        };
        IpHeaders::Ipv6(header, Default::default())
    } else {
        let mut header =
            Ipv4Header::new(0, hidden.time_to_live, ip_number::TCP, source, destination).unwrap();
        header.identification = hidden.identification;
        header.dscp = (hidden.traffic_class >> 2).try_into().unwrap();
        IpHeaders::Ipv4(header, Default::default())
    };
    let macs = if from_client {
        (hidden.client_mac, hidden.server_mac)
    } else {
        (hidden.server_mac, hidden.client_mac)
    };
    PacketBuilder::ethernet2(macs.0, macs.1).ip(ip)
}

/// A pcap file with microseconds and link type Ethernet.
struct Capture {
    bytes: Vec<u8>,
    time_us: u64,
}

impl Capture {
    fn new() -> Self {
        let mut bytes = Vec::new();
        for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1] {
            bytes.extend(word.to_le_bytes());
        }
        Self { bytes, time_us: 0 }
    }

    fn push(&mut self, start_s: u32, gap_us: u32, packet: &[u8]) {
        self.time_us += u64::from(gap_us);
        let seconds = start_s + (self.time_us / 1_000_000) as u32;
        for word in [
            seconds,
            (self.time_us % 1_000_000) as u32,
            packet.len() as u32,
            packet.len() as u32,
        ] {
            self.bytes.extend(word.to_le_bytes());
        }
        self.bytes.extend_from_slice(packet);
    }
}

fn flows(capture: &[u8]) -> Vec<Flow> {
    let mut flows = Vec::new();
    let mut table = FlowTable::new(FlowConfig::default()).unwrap();
    let mut reader = CaptureReader::new(capture).unwrap();
    while let Some(raw) = reader.next_packet().unwrap() {
        let packet = decode(raw.link_type, raw.bytes, raw.wire_bytes, raw.timestamp_ns).unwrap();
        table.push(&packet, &mut |flow| flows.push(flow));
    }
    table.flush(&mut |flow| flows.push(flow));
    flows
}

/// An encoder that shows as much payload as the flow table keeps.
fn encoder() -> Encoder {
    let merges = train_merges(
        [(&b"\x00\x00\x00\x00\x13\x01\x13\x02\x16\x03\x01"[..], 2)],
        720,
    )
    .unwrap();
    let profile = Profile {
        payload_packets: 20,
        payload_bytes_per_packet: 400,
        max_tokens: 4_000,
        ..Profile::default()
    };
    Encoder::new(Tokenizer::from_merges(merges).unwrap(), profile).unwrap()
}

/// The ids of the only flow of a capture.
fn ids(encoder: &Encoder, capture: &[u8]) -> Vec<u32> {
    let flows = flows(capture);
    assert_eq!(flows.len(), 1);
    let mut ids = Vec::new();
    encoder.encode_flow(&flows[0], &mut EncodeScratch::default(), &mut ids);
    ids
}

proptest! {
    #[test]
    fn tcp_connections_that_differ_in_hidden_fields_only_have_the_same_ids(
        (one, other) in (hidden(), hidden()),
        shown in prop::collection::vec(shown(), 0..18),
        version_6: bool,
    ) {
        let encoder = encoder();
        let found = ids(&encoder, &tcp_capture(&one, &shown, version_6));
        prop_assert!(found.len() > 4);
        prop_assert_eq!(&found, &ids(&encoder, &tcp_capture(&other, &shown, version_6)));
        prop_assert_eq!(&found, &ids(&encoder, &tcp_capture(&other, &shown, !version_6)), "IP version");
    }

    #[test]
    fn dhcp_messages_that_differ_in_addresses_only_have_the_same_ids(
        (one, other) in (hidden(), hidden()),
        parameters in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let encoder = encoder();
        let mut options = vec![0x37, parameters.len() as u8];
        options.extend(parameters);
        options.push(0xff);
        prop_assert_eq!(ids(&encoder, &dhcp_capture(&one, &options)), ids(&encoder, &dhcp_capture(&other, &options)));
    }

    #[test]
    fn what_is_shown_does_reach_the_ids(
        hidden in hidden(),
        mut shown in prop::collection::vec(shown(), 1..10),
        change in 1_u8..,
    ) {
        // Letters, so that no mask covers the byte that changes.
        shown[0].payload = b"zzzz".to_vec();
        let encoder = encoder();
        let before = ids(&encoder, &tcp_capture(&hidden, &shown, false));
        shown[0].payload[0] = b'z' ^ change;
        prop_assert_ne!(&before, &ids(&encoder, &tcp_capture(&hidden, &shown, false)));
        shown[0].payload = b"zzzzz".to_vec();
        prop_assert_ne!(&before, &ids(&encoder, &tcp_capture(&hidden, &shown, false)));
        shown[0].payload = b"zzzz".to_vec();
        shown[0].from_client = !shown[0].from_client;
        prop_assert_ne!(&before, &ids(&encoder, &tcp_capture(&hidden, &shown, false)));
    }
}
