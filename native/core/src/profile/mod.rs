//! What the profiler needs that is no BEAM: pauses counted into histograms, samples of a session,
//! whether memory grows, and charts of all this.

pub mod charts;
pub mod gc;
pub mod growth;
pub mod heat;
pub mod histogram;
pub mod resident;
pub mod samples;
pub mod trend;
pub mod window;
pub mod worst;
