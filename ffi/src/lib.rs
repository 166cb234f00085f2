//! libtrafficllm: the C ABI of the traffic classifier.
//!
//! Every function of `include/trafficllm.h` stands here, over the facade and without logic of its own: it checks what the host gives,
//! calls the facade, and turns what comes back into a status, a struct or a text. The header is made of this source by
//! `cargo test -p trafficllm-ffi`; its first page, the conventions, is `conventions.h` beside this crate.
//!
//! - [`handle`] finds what a handle names, and whether it may be used; [`boundary`] ends panics and checks pointers.
//! - One module per group of functions: library, log, config, model, engine, flow, session, verdict, capture.

#![expect(
    non_camel_case_types,
    reason = "the types have the names of the C header"
)]

mod bell;
mod boundary;
mod capture;
mod config;
mod engine;
mod fault;
mod faults;
mod flow;
mod fork;
mod handle;
mod library;
mod log;
mod model;
mod session;
mod signals;
mod status;
mod verdict;

pub use capture::*;
pub use config::*;
pub use engine::*;
#[cfg(feature = "faults")]
pub use faults::*;
pub use flow::*;
pub use library::*;
pub use log::*;
pub use model::*;
pub use session::*;
pub use status::*;
pub use verdict::*;
