//! The identity of a flow: its addresses, ports and protocol, the same for both directions.

use std::hash::{Hash, Hasher};
use std::net::IpAddr;

use super::record::Endpoints;
use crate::decode::Packet;

/// Both endpoints in ascending order, protocol and IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FlowKey {
    lower: u128,
    upper: u128,
    /// Lower port, upper port, protocol and version, from the high bits down.
    rest: u64,
}

impl Hash for FlowKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        if self.rest & IS_IPV6 == 0 {
            state.write_u64((self.lower as u64) << 32 | self.upper as u64);
        } else {
            for half in [
                self.lower as u64,
                (self.lower >> 64) as u64,
                self.upper as u64,
                (self.upper >> 64) as u64,
            ] {
                state.write_u64(half);
            }
        }
        state.write_u64(self.rest);
    }
}

/// Keeps an IPv4 flow apart from an IPv6 flow whose addresses are the same numbers.
const IS_IPV6: u64 = 1;

impl FlowKey {
    /// The key of the packet's flow, and whether its source is the lower endpoint.
    pub(super) fn of(packet: &Packet<'_>) -> (Self, bool) {
        Self::new(
            (packet.source, packet.source_port),
            (packet.destination, packet.destination_port),
            packet.protocol,
        )
    }

    /// The key of a flow, and whether its initiator is the lower endpoint.
    pub(super) fn of_flow(endpoints: &Endpoints) -> (Self, bool) {
        Self::new(
            (endpoints.initiator, endpoints.initiator_port),
            (endpoints.responder, endpoints.responder_port),
            endpoints.protocol,
        )
    }

    fn new(from: (IpAddr, u16), to: (IpAddr, u16), protocol: u8) -> (Self, bool) {
        let (first, second) = ((number(from.0), from.1), (number(to.0), to.1));
        let first_is_lower = first <= second;
        let (lower, upper) = if first_is_lower {
            (first, second)
        } else {
            (second, first)
        };
        let ports = u64::from(lower.1) << 48 | u64::from(upper.1) << 32;
        let version = if from.0.is_ipv6() { IS_IPV6 } else { 0 };
        let rest = ports | u64::from(protocol) << 8 | version;
        (
            Self {
                lower: lower.0,
                upper: upper.0,
                rest,
            },
            first_is_lower,
        )
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(four) => u128::from(four.to_bits()),
        IpAddr::V6(six) => six.to_bits(),
    }
}
