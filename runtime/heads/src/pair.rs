//! Host pairs without addresses.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

/// A number for two hosts, the same in either direction and never 0, that says nothing about their addresses to who does not know the
/// secret. (That of a detection is known: it is made of the model's id, so that a run repeats. What is to be hidden from heads then is not
/// hidden by this: who knows the model can try addresses.) Equal secrets give equal numbers within one build of the library; two of n pairs share a number with a chance of about n² / 2⁶⁵.
#[must_use]
pub fn pair_number(secret: [u64; 2], one: IpAddr, other: IpAddr) -> u64 {
    let (lower, upper) = if one <= other {
        (one, other)
    } else {
        (other, one)
    };
    // SipHash 1-3, with the secret in front and behind.
    let mut hasher = DefaultHasher::new();
    (secret[0], lower, upper, secret[1]).hash(&mut hasher);
    hasher.finish().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_has_one_number_in_both_directions_and_another_with_another_secret() {
        let hosts: [IpAddr; 3] =
            ["10.0.0.1", "10.0.0.2", "2001:db8::1"].map(|text| text.parse().unwrap());
        let number = |secret, one, other| pair_number([secret, 7], hosts[one], hosts[other]);
        assert_eq!(number(1, 0, 1), number(1, 1, 0));
        assert_ne!(number(1, 0, 1), number(2, 0, 1));
        assert_ne!(number(1, 0, 1), number(1, 0, 2));
        assert_ne!(number(1, 0, 0), number(1, 1, 1));
    }
}
