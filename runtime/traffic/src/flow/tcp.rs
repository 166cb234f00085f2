//! As much of a TCP connection's state as tells where one connection ends and the next begins.

use super::record::{Direction, TcpFlags};

/// What a TCP packet means for the flow that has its addresses and ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Belongs {
    /// It is part of the flow.
    ToFlow,
    /// It opens a new connection with the same addresses and ports.
    ToNewConnection,
}

#[derive(Clone, Copy, Debug, Default)]
struct Side {
    /// Means something once `started` is set; apart, as an `Option` would take twice its size.
    initial_sequence: u32,
    started: bool,
    finished: bool,
}

/// State of one connection; stays at its default for other protocols.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TcpState {
    initiator: Side,
    responder: Side,
    reset: bool,
    /// Whether a packet other than a first SYN was seen.
    under_way: bool,
}

impl TcpState {
    /// Whether both sides have finished or one has reset.
    pub(super) fn is_closed(&self) -> bool {
        self.reset || (self.initiator.finished && self.responder.finished)
    }

    /// Judges a packet before it is added. A SYN that repeats the known sequence number is a retransmission.
    pub(super) fn judge(&self, direction: Direction, flags: TcpFlags, sequence: u32) -> Belongs {
        if !flags.has(TcpFlags::SYN) || flags.has(TcpFlags::RST) {
            return Belongs::ToFlow;
        }
        let side = self.side(direction);
        let fresh = if side.started {
            side.initial_sequence != sequence
        } else {
            // The first SYN of this side: the other half of the handshake, unless it comes too late to be that.
            self.is_closed() || (self.under_way && !flags.has(TcpFlags::ACK))
        };
        if fresh {
            Belongs::ToNewConnection
        } else {
            Belongs::ToFlow
        }
    }

    /// Takes note of a packet of the connection.
    pub(super) fn add(&mut self, direction: Direction, flags: TcpFlags, sequence: u32) {
        let side = match direction {
            Direction::FromInitiator => &mut self.initiator,
            Direction::FromResponder => &mut self.responder,
        };
        if flags.has(TcpFlags::SYN) && !side.started {
            side.initial_sequence = sequence;
            side.started = true;
        }
        side.finished |= flags.has(TcpFlags::FIN);
        self.reset |= flags.has(TcpFlags::RST);
        self.under_way |= !flags.has(TcpFlags::SYN) || flags.has(TcpFlags::ACK);
    }

    fn side(&self, direction: Direction) -> &Side {
        match direction {
            Direction::FromInitiator => &self.initiator,
            Direction::FromResponder => &self.responder,
        }
    }
}
