//! What a stream is asked for, and what a capture keeps of it.

use std::sync::Arc;

use trafficllm_kernels::cuda::{Address, Launch};

use crate::compile::Kernel;

/// Something asked of a stream. Addresses of the host are numbers here, so that it may go to another thread.
#[derive(Debug, Clone)]
pub(crate) enum Operation {
    Launch {
        kernel: Arc<Kernel>,
        launch: Launch,
        arguments: Vec<u128>,
    },
    CopyIn {
        from: usize,
        to: Address,
        bytes: usize,
    },
    CopyOut {
        from: Address,
        to: usize,
        bytes: usize,
    },
    Graph(Arc<Vec<Operation>>),
}

/// A stream: what it still has to do, if it does that late, and what a capture has kept so far.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    pub(crate) waiting: Vec<Operation>,
    pub(crate) captured: Option<Vec<Operation>>,
}
