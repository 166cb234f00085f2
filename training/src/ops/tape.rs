//! The way back through recorded operations.
//!
//! candle's own `backward` adds gradients with operations that split across its process-wide pool of spinning threads, which
//! costs a fifth of a step when shards already keep the processors busy. A tape calls the same backward passes in the
//! reverse order of the forward pass and adds on the calling thread.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, TensorId,
};

use super::{argument, with_kernels};

thread_local! {
    static RECORDING: RefCell<Option<Vec<Node>>> = const { RefCell::new(None) };
}

type One = Arc<Box<dyn CustomOp1 + Send + Sync>>;
type Two = Arc<Box<dyn CustomOp2 + Send + Sync>>;
type Three = Arc<Box<dyn CustomOp3 + Send + Sync>>;

enum Operation {
    One(Tensor, One),
    Two([Tensor; 2], Two),
    Three([Tensor; 3], Three),
}

struct Node {
    operation: Operation,
    result: Tensor,
}

/// The operations of a forward pass on one thread.
pub struct Tape {
    nodes: Vec<Node>,
}

/// Gradients by tensor.
#[derive(Debug, Default)]
pub struct TapeGradients(HashMap<TensorId, Tensor>);

/// Runs a forward pass and records the operations of this module that it runs on this thread. Recordings do not nest.
///
/// # Errors
/// What `forward` returns.
pub fn recorded<R, E>(
    forward: impl FnOnce() -> std::result::Result<R, E>,
) -> std::result::Result<(R, Tape), E> {
    RECORDING.set(Some(Vec::new()));
    let result = forward();
    let nodes = RECORDING.take().unwrap_or_default();
    Ok((result?, Tape { nodes }))
}

fn record(operation: Operation, result: &Tensor) {
    if result.track_op() {
        RECORDING.with_borrow_mut(|nodes| {
            if let Some(nodes) = nodes {
                nodes.push(Node {
                    operation,
                    result: result.clone(),
                });
            }
        });
    }
}

pub(super) fn apply1(
    x: &Tensor,
    operation: impl CustomOp1 + Send + Sync + 'static,
) -> Result<Tensor> {
    let operation: One = Arc::new(Box::new(operation));
    let result = x.apply_op1_arc(Arc::clone(&operation))?;
    record(Operation::One(x.clone(), operation), &result);
    Ok(result)
}

pub(super) fn apply2(
    x: &Tensor,
    y: &Tensor,
    operation: impl CustomOp2 + Send + Sync + 'static,
) -> Result<Tensor> {
    let operation: Two = Arc::new(Box::new(operation));
    let result = x.apply_op2_arc(y, Arc::clone(&operation))?;
    record(Operation::Two([x.clone(), y.clone()], operation), &result);
    Ok(result)
}

pub(super) fn apply3(
    x: &Tensor,
    y: &Tensor,
    z: &Tensor,
    operation: impl CustomOp3 + Send + Sync + 'static,
) -> Result<Tensor> {
    let operation: Three = Arc::new(Box::new(operation));
    let result = x.apply_op3_arc(y, z, Arc::clone(&operation))?;
    record(
        Operation::Three([x.clone(), y.clone(), z.clone()], operation),
        &result,
    );
    Ok(result)
}

impl Tape {
    /// Gradients of a recorded scalar with respect to everything that it was made of and that candle tracks.
    ///
    /// # Errors
    /// If a backward pass fails.
    pub fn backward(self, loss: &Tensor) -> Result<TapeGradients> {
        let mut gradients = TapeGradients::default();
        gradients.add(
            loss,
            Some(Tensor::ones(loss.shape(), loss.dtype(), loss.device())?),
        )?;
        for Node { operation, result } in self.nodes.into_iter().rev() {
            let Some(gradient) = gradients.take(&result) else {
                continue;
            };
            match operation {
                Operation::One(x, operation) => {
                    let of_x = operation.bwd(&x, &result, &gradient)?;
                    gradients.add(&x, of_x)?;
                }
                Operation::Two([x, y], operation) => {
                    let (of_x, of_y) = operation.bwd(&x, &y, &result, &gradient)?;
                    gradients.add(&x, of_x)?;
                    gradients.add(&y, of_y)?;
                }
                Operation::Three([x, y, z], operation) => {
                    let (of_x, of_y, of_z) = operation.bwd(&x, &y, &z, &result, &gradient)?;
                    gradients.add(&x, of_x)?;
                    gradients.add(&y, of_y)?;
                    gradients.add(&z, of_z)?;
                }
            }
        }
        Ok(gradients)
    }
}

impl TapeGradients {
    /// Takes out the gradient of a tensor; `None` if the loss does not depend on it.
    pub fn take(&mut self, of: &Tensor) -> Option<Tensor> {
        self.0.remove(&of.id())
    }

    fn add(&mut self, of: &Tensor, gradient: Option<Tensor>) -> Result<()> {
        let Some(gradient) = gradient.filter(|_| of.track_op()) else {
            return Ok(());
        };
        let sum = match self.0.remove(&of.id()) {
            Some(sum) => sum.apply_op2_no_bwd(&gradient, &Add)?,
            None => gradient,
        };
        self.0.insert(of.id(), sum);
        Ok(())
    }
}

/// `x + y`, of the same shape.
///
/// # Errors
/// If the shapes differ.
pub fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    apply2(x, y, Add)
}

struct Add;

impl CustomOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        if l1.shape() != l2.shape() {
            candle_core::bail!("add: expected {:?}, found {:?}", l1.shape(), l2.shape());
        }
        let mut sum = argument(s1, l1)?.to_vec();
        let other = argument(s2, l2)?;
        with_kernels(|cpu, _| cpu.add_assign(&mut sum, other));
        Ok((CpuStorage::F32(sum), l1.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((
            x.track_op().then(|| gradient.clone()),
            y.track_op().then(|| gradient.clone()),
        ))
    }
}
