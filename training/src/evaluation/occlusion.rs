//! What each family of tokens is worth: how much is lost when the model does not get to see it.
//!
//! A family is hidden the way tuning hides it, so that the model is not judged on inputs that it was never made for: sizes and packets are
//! replaced by the token for what is dropped, gaps and payload are left out.

use serde::{Deserialize, Serialize};

use crate::batches::TokenRanges;

/// A family of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Payload sizes.
    Sizes,
    /// Gaps between packets.
    Gaps,
    /// Direction and TCP flags.
    Packets,
    /// Payload bytes and their merges, and the marks of what the profile hides in them.
    Payload,
}

impl Family {
    /// All families.
    pub const ALL: [Self; 4] = [Self::Sizes, Self::Gaps, Self::Packets, Self::Payload];

    /// Its name in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sizes => "sizes",
            Self::Gaps => "gaps",
            Self::Packets => "direction and flags",
            Self::Payload => "payload",
        }
    }

    /// The tokens of a flow without this family. The first token, the protocol, always stays.
    #[must_use]
    pub fn hidden(self, tokens: &[u32], ranges: &TokenRanges) -> Vec<u32> {
        let belongs = |token: u32| match self {
            Self::Sizes => ranges.sizes.contains(&token),
            Self::Gaps => ranges.gaps.contains(&token),
            Self::Packets => ranges.packets.contains(&token),
            Self::Payload => ranges.payload.contains(&token) || token == ranges.mask,
        };
        let left_out = matches!(self, Self::Gaps | Self::Payload);
        let mut seen = Vec::with_capacity(tokens.len());
        for (place, &token) in tokens.iter().enumerate() {
            if place == 0 || !belongs(token) {
                seen.push(token);
            } else if !left_out {
                seen.push(ranges.dropped);
            }
        }
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_hides_its_own_tokens_only() {
        let ranges = TokenRanges::of_vocabulary();
        let (packet, size, gap, byte) = (
            ranges.packets.start,
            ranges.sizes.end - 1,
            ranges.gaps.start,
            ranges.payload.start + 65,
        );
        let tokens = [2, packet, size, gap, byte, ranges.mask, packet, size];
        let dropped = ranges.dropped;
        let hidden = |family: Family| family.hidden(&tokens, &ranges);
        assert_eq!(
            hidden(Family::Sizes),
            [2, packet, dropped, gap, byte, ranges.mask, packet, dropped]
        );
        assert_eq!(
            hidden(Family::Gaps),
            [2, packet, size, byte, ranges.mask, packet, size]
        );
        assert_eq!(
            hidden(Family::Packets),
            [2, dropped, size, gap, byte, ranges.mask, dropped, size]
        );
        assert_eq!(
            hidden(Family::Payload),
            [2, packet, size, gap, packet, size]
        );
    }

    #[test]
    fn the_first_token_stays_whatever_it_is() {
        let ranges = TokenRanges::of_vocabulary();
        let tokens = [ranges.payload.start, ranges.payload.start];
        assert_eq!(Family::Payload.hidden(&tokens, &ranges), tokens[..1]);
    }
}
