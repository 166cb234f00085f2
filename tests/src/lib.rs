//! Checks that belong to no one crate: the walls between the crates, and the folders around them.
//!
//! The command's own tests are in `runtime/tests`; recorded captures are in `captures`, broken ones in `hostile`.

#[cfg(test)]
mod candle_agreement;
#[cfg(test)]
mod layout;
#[cfg(test)]
mod levels;
