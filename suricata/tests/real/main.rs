//! The plugin in the real Suricata. `tests/suricata.sh` gets Suricata, builds what is needed and runs this.
//!
//! | module | what it shows |
//! |---|---|
//! | `offline` | captures from files: verdicts are those of the command, the schema |
//! | `rules` | alerts, and what `suricata -T` says |
//! | `daemon` | fork, dropped privileges, no new processes, Landlock, reload of rules and model |
//! | `live` | several workers on an interface, late verdicts, a stalled model, an end under load |
//! | `inline` | flows dropped by verdict |
//! | `cost` | what a packet costs; only if asked for |
//! | `faults` | what is missing or broken: Suricata goes on, and it is said |

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests fail by panicking, and say what they skip"
)]
#![allow(
    unsafe_code,
    reason = "signals, raw sockets and namespaces: each block says why it is sound"
)]

mod cost;
mod daemon;
mod faults;
mod host;
mod inline;
mod live;
mod network;
mod offline;
mod records;
mod rules;
mod traffic;
