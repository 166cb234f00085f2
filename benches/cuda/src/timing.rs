//! How long kernels take: as many launches as fill some milliseconds are captured in a graph, and its replays are timed by the clock, in
//! turns with those of all others. The start of a graph and the wait for its end count among it; they are a few microseconds.

use std::time::Instant;

use trafficllm_kernels::cuda::{DeviceError, Graph, Stream};

use crate::report::median;
use crate::{Failure, Scale};

/// What one replay is to take.
const REPLAY_SECONDS: f64 = 5e-3;
const LAUNCHES_MAX: usize = 2000;

/// One thing to be timed.
pub(crate) struct Timed {
    graph: Graph,
    launches: usize,
}

impl Timed {
    /// `launch` asks for the work once; it is given numbers that count up, to take other weights each time. All kernels have to be
    /// compiled.
    pub(crate) fn new(
        stream: &mut Stream,
        scale: Scale,
        mut launch: impl FnMut(&mut Stream, usize) -> Result<(), DeviceError>,
    ) -> Result<Self, Failure> {
        let mut capture = |stream: &mut Stream, launches: usize| {
            stream.capture(|stream| (0..launches).try_for_each(|at| launch(stream, at)))
        };
        let one: Result<Graph, DeviceError> = capture(stream, 1);
        let mut timed = Self {
            graph: one?,
            launches: 1,
        };
        if scale == Scale::Tiny {
            return Ok(timed);
        }
        timed.seconds(stream)?;
        let seconds = timed.seconds(stream)?;
        let launches = (REPLAY_SECONDS / seconds).ceil() as usize;
        if launches > 1 {
            timed.launches = launches.clamp(1, LAUNCHES_MAX);
            timed.graph = capture(stream, timed.launches)?;
            timed.seconds(stream)?;
        }
        Ok(timed)
    }

    /// Seconds of one launch, of one replay.
    fn seconds(&self, stream: &mut Stream) -> Result<f64, DeviceError> {
        stream.synchronize()?;
        let start = Instant::now();
        stream.launch_graph(&self.graph)?;
        stream.synchronize()?;
        Ok(start.elapsed().as_secs_f64() / self.launches as f64)
    }
}

/// Medians of all, in turns.
pub(crate) fn medians(
    stream: &mut Stream,
    rounds: usize,
    all: &[&Timed],
) -> Result<Vec<f64>, Failure> {
    let mut times = vec![Vec::with_capacity(rounds); all.len()];
    for _ in 0..rounds {
        for (timed, times) in all.iter().zip(&mut times) {
            times.push(timed.seconds(stream)?);
        }
    }
    Ok(times.iter_mut().map(|times| median(times)).collect())
}
