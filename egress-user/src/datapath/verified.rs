//! What the verifier had to walk: how near a program is to the kernel's limit, and how long it takes to load.

use std::collections::BTreeMap;

use aya::programs::ProgramError;

use super::Datapath;

impl Datapath {
    /// Instructions that this kernel's verifier walked, by program (`bpf_prog_info.verified_insns`, Linux 5.16); it refuses a
    /// program at a million. Only tests ask for it.
    ///
    /// # Errors
    ///
    /// When the kernel tells nothing of a program, as of one that is not loaded.
    pub fn verified_instructions(&self) -> Result<BTreeMap<String, u32>, ProgramError> {
        let count = |(name, program): (&str, &aya::programs::Program)| {
            Ok((name.to_owned(), program.info()?.verified_instruction_count().unwrap_or(0)))
        };
        self.ebpf.programs().map(count).collect()
    }
}
