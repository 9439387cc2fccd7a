//! One frame through one program, with no interface and no wire: the kernel's `BPF_PROG_TEST_RUN`.
//!
//! It is the loaded program itself that runs, on the maps that are in force: it counts, opens flows and touches them. This is
//! how tests ask it what it makes of a frame; nothing in the product calls it.

use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use egress_ebpf::contract::Direction;
use egress_ebpf::verdict::Hook;

use super::error::hint;
use super::{Datapath, DatapathError, xdp};

/// A frame as it comes to a program.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// From the link header on; at least that header, at most what fits a page.
    pub frame: &'a [u8],
    /// Index, in the calling thread's namespace, of the interface that it is on. A frame to another link address than that
    /// interface's own is another host's.
    pub ifindex: u32,
    /// `skb->mark`.
    pub mark: u32,
}

/// What a program made of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Departure {
    /// The program's return value, one of `TC_ACT_*`, or of `XDP_*`.
    pub action: i32,
    /// The frame.
    pub frame: Vec<u8>,
    /// `skb->mark`.
    pub mark: u32,
}

/// Fields of `struct __sk_buff` up to `ifindex`, all 32 bits wide.
const CONTEXT_WORDS: usize = 11;
const MARK: usize = 2;
const IFINDEX: usize = 10;
/// `struct __sk_buff` and room for what later kernels append.
const CONTEXT_BYTES: usize = 256;
/// More than a frame can be.
const FRAME_BYTES: usize = 8192;

impl Datapath {
    /// Runs the program of one hook once. To be called on a thread inside the router's namespace.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the frame (shorter than a link header, longer than a page) or the interface.
    pub fn test_run(&self, hook: Hook, arrival: &Arrival<'_>) -> Result<Departure, DatapathError> {
        let refused = |source| DatapathError::Program { program: hook.name(), hint: hint(&source), source };
        let mut context = [0_u32; CONTEXT_WORDS];
        context[MARK] = arrival.mark;
        context[IFINDEX] = arrival.ifindex;
        let mut context_out = [0_u32; CONTEXT_BYTES / 4];
        let mut frame = vec![0; FRAME_BYTES];
        let mut options = TestRunOptions::new();
        options.data_in = Some(arrival.frame);
        options.data_out = Some(&mut frame);
        options.ctx_in = Some(bytemuck::cast_slice(&context));
        options.ctx_out = Some(bytemuck::cast_slice_mut(&mut context_out));
        let missing = DatapathError::Missing { kind: "program", name: hook.name() };
        let program = self.ebpf.program(hook.name()).and_then(|program| <&SchedClassifier>::try_from(program).ok());
        let result = program.ok_or(missing)?.test_run(options).map_err(refused)?;
        frame.truncate(usize::try_from(result.data_size_out).unwrap_or(FRAME_BYTES));
        Ok(Departure { action: result.return_value.cast_signed(), frame, mark: context_out[MARK] })
    }

    /// Runs the XDP program of one direction once, on a frame of which `mark` and `ifindex` mean nothing yet.
    ///
    /// # Errors
    ///
    /// As [`test_run`](Self::test_run).
    pub fn test_run_xdp(&mut self, direction: Direction, frame: &[u8]) -> Result<Departure, DatapathError> {
        let place = match direction {
            Direction::Request => xdp::Place::Request,
            Direction::Reply => xdp::Place::Reply,
        };
        let refused = |source| DatapathError::Program { program: place.name(), hint: hint(&source), source };
        let mut out = vec![0; FRAME_BYTES];
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut out);
        let result = xdp::loaded(&mut self.ebpf, place)?.test_run(options).map_err(refused)?;
        out.truncate(usize::try_from(result.data_size_out).unwrap_or(FRAME_BYTES));
        Ok(Departure { action: result.return_value.cast_signed(), frame: out, mark: 0 })
    }
}
