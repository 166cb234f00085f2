//! The identity of a flow: its addresses, ports and protocol, the same for both directions.

use std::hash::{Hash, Hasher};
use std::net::IpAddr;

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
        for half in [
            self.lower as u64,
            (self.lower >> 64) as u64,
            self.upper as u64,
            (self.upper >> 64) as u64,
        ] {
            state.write_u64(half);
        }
        state.write_u64(self.rest);
    }
}

impl FlowKey {
    /// The key of the packet's flow, and whether its source is the lower endpoint.
    pub(super) fn of(packet: &Packet<'_>) -> (Self, bool) {
        let source = (number(packet.source), packet.source_port);
        let destination = (number(packet.destination), packet.destination_port);
        let source_is_lower = source <= destination;
        let (lower, upper) = if source_is_lower {
            (source, destination)
        } else {
            (destination, source)
        };
        let ports = u64::from(lower.1) << 48 | u64::from(upper.1) << 32;
        // The version keeps an IPv4 flow apart from an IPv6 flow whose addresses are the same numbers.
        let rest = ports | u64::from(packet.protocol) << 8 | u64::from(packet.source.is_ipv6());
        (
            Self {
                lower: lower.0,
                upper: upper.0,
                rest,
            },
            source_is_lower,
        )
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(four) => u128::from(four.to_bits()),
        IpAddr::V6(six) => six.to_bits(),
    }
}
