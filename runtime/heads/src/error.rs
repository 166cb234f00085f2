//! What goes wrong with heads.

use thiserror::Error;

use crate::abi::AbiError;
use crate::guard::Reason;

/// Characters of a reason that a module has a say in.
#[cfg(feature = "wasm")]
pub(crate) const REASON_CHARACTERS_MAX: usize = 300;

/// Text that an untrusted module has a say in, for a message: on one line, without anything that moves a terminal, and cut.
#[cfg(feature = "wasm")]
pub(crate) fn shown(text: &str, characters_max: usize) -> String {
    let mut shown = String::new();
    for (number, character) in text.chars().enumerate() {
        if number == characters_max {
            shown.push('…');
            break;
        }
        match character {
            '"' | '\'' => shown.push(character),
            other => shown.extend(other.escape_debug()),
        }
    }
    shown
}

/// A head that cannot be loaded, and why.
#[derive(Debug, Error)]
pub enum HeadError {
    /// A sandbox with these options cannot be made here.
    #[error("the sandbox cannot be made: {0}")]
    Sandbox(String),
    /// The file is larger, or has more of something, than is taken.
    #[error("{head}: {what}: at most {limit}, found {found}")]
    Limit {
        /// The head's file.
        head: String,
        /// Of what there is too much.
        what: &'static str,
        /// How much is taken.
        limit: u64,
        /// How much there is.
        found: u64,
    },
    /// An export that is not there or not what the ABI says.
    #[error("{head}: export {export}: expected {expected}, found {found}")]
    Export {
        /// The head's file.
        head: String,
        /// Its name.
        export: String,
        /// What the ABI says.
        expected: String,
        /// What the head has.
        found: String,
    },
    /// An import that is not the one that is allowed.
    #[error("{head}: import {import}: {reason}")]
    Import {
        /// The head's file.
        head: String,
        /// Module and name.
        import: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Something in the module that heads may not have.
    #[error("{head}: {place}: {what} is not allowed")]
    Forbidden {
        /// The head's file.
        head: String,
        /// Where.
        place: String,
        /// What.
        what: &'static str,
    },
    /// No valid WebAssembly of the allowed kind.
    #[error("{head}: no module that can be used: {reason}")]
    Module {
        /// The head's file.
        head: String,
        /// Why.
        reason: String,
    },
    /// A precompiled module whose hash nobody vouches for.
    #[error(
        "{head}: precompiled, and its SHA-256 {sha256} is not among the {trusted} trusted ones"
    )]
    NotTrusted {
        /// The head's file.
        head: String,
        /// Its hash.
        sha256: String,
        /// How many hashes are trusted.
        trusted: usize,
    },
    /// A module that would have to be compiled, in a process without a compiler.
    #[error("{head}: not precompiled, and this build has no compiler")]
    NoCompiler {
        /// The head's file.
        head: String,
    },
    /// A native library that the system does not load.
    #[error("{head}: cannot be loaded: {reason}")]
    Library {
        /// The head's file.
        head: String,
        /// Why.
        reason: String,
    },
    /// What the head says of itself breaks a rule.
    #[error("{head}: {error}")]
    About {
        /// The head's file.
        head: String,
        /// The rule.
        error: AbiError,
    },
    /// The head failed when it was asked what it is.
    #[error("{head}: export {export} failed: {fault}")]
    Fault {
        /// The head's file.
        head: String,
        /// Which function.
        export: &'static str,
        /// How.
        fault: Fault,
    },
}

/// What a head did wrong in a call.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Fault {
    /// It used up its fuel.
    #[error("used up its {fuel} units of fuel")]
    Fuel {
        /// What it had.
        fuel: u64,
    },
    /// It used up its stack.
    #[error("used up its stack")]
    Stack,
    /// It trapped otherwise.
    #[error("trapped: {0}")]
    Trap(String),
    /// It panicked; only what is built in can.
    #[error("panicked: {0}")]
    Panic(String),
    /// It returned a negative number.
    #[error("{export} returned {status}")]
    Refused {
        /// The function.
        export: &'static str,
        /// The number.
        status: i32,
    },
    /// It wrote something that breaks a rule of the ABI, or points outside its memory.
    #[error(transparent)]
    Abi(#[from] AbiError),
    /// It was made for another model.
    #[error("made for a hidden vector of {expected} values, the model has {found}")]
    Model {
        /// What it says.
        expected: u32,
        /// What there is.
        found: u32,
    },
    /// There is no room for it.
    #[error("cannot be started: {0}")]
    Unavailable(String),
    /// It has no room for a single flow of the size that was agreed on: `tllm_head_new` gave NULL.
    #[error("has no room for {input_bytes} bytes of input and {output_bytes} of output")]
    NoRoom {
        /// Bytes of the input.
        input_bytes: usize,
        /// Bytes of the output.
        output_bytes: usize,
    },
    /// The flow has more to say than the room that was agreed on holds. Not the head's doing.
    #[error("the flow does not fit into the {room} bytes of the input")]
    TooLarge {
        /// Bytes of the input.
        room: usize,
    },
}

impl Fault {
    /// Whether it is the head's doing, and counts where the head is switched off.
    #[must_use]
    pub fn is_held_against(&self) -> bool {
        !matches!(self, Self::Unavailable(_) | Self::TooLarge { .. })
    }

    /// As it is counted.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Fuel { .. } => Reason::Fuel,
            Self::Stack => Reason::Stack,
            Self::Trap(_) => Reason::Trap,
            Self::Panic(_) => Reason::Panic,
            Self::Refused { .. } => Reason::Refused,
            Self::Abi(AbiError::NotANumber { .. }) => Reason::NotANumber,
            Self::Abi(AbiError::Broken { .. }) => Reason::Rubbish,
            Self::Model { .. } => Reason::Model,
            Self::Unavailable(_) | Self::NoRoom { .. } => Reason::Unavailable,
            Self::TooLarge { .. } => Reason::TooLarge,
        }
    }
}
