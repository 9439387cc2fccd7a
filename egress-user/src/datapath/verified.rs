//! What the verifier had to walk: how near a program is to the kernel's limit, and how long it takes to load.

use std::collections::BTreeMap;

use super::{Datapath, DatapathError, xdp};

impl Datapath {
    /// Instructions that this kernel's verifier walked, by program (`bpf_prog_info.verified_insns`, Linux 5.16); it refuses a
    /// program at a million. Only tests ask for it.
    ///
    /// # Errors
    ///
    /// When the kernel refuses an XDP program, or tells nothing of one.
    pub fn verified_instructions(&mut self) -> Result<BTreeMap<String, u32>, DatapathError> {
        for place in xdp::Place::ALL {
            xdp::loaded(&mut self.ebpf, place)?;
        }
        let count = |(name, program): (&str, &aya::programs::Program)| {
            let told = program.info();
            let info = told.map_err(|source| DatapathError::Told { program: name.to_owned(), source })?;
            Ok((name.to_owned(), info.verified_instruction_count().unwrap_or(0)))
        };
        self.ebpf.programs().map(count).collect()
    }
}
