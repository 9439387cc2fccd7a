//! What the verifier has to walk, on the kernel that this runs on. A table of the kernels that are looked after keeps it
//! from growing unseen: loading gets slower long before a kernel refuses.

use std::collections::BTreeMap;

use crate::rig;

/// Programs by kernels, as `cargo xtask test kernels` reads and writes it too.
const TABLE: &str = include_str!("../fixtures/verified-instructions.txt");

/// Instructions at which the verifier gives up (`BPF_COMPLEXITY_LIMIT_INSNS`).
const LIMIT: u32 = 1_000_000;

#[test]
fn no_program_has_grown_by_more_than_a_tenth() {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let series = release.split('.').take(2).collect::<Vec<_>>().join(".");
    let expected = column(&series);
    rig::bare(|rig| {
        let counts = rig.datapath().verified_instructions().unwrap();
        for (program, count) in &counts {
            // The kernels layer reads these lines.
            eprintln!("verified {series} {program} {count}");
        }
        for (program, count) in &counts {
            assert!(*count > 0, "this kernel counts nothing for {program}");
            // A kernel that the table does not have is not ours to keep steady, but has to be far from refusing.
            assert!(*count < LIMIT / 4, "{program}: {count} instructions");
            if let Some(expected) = &expected {
                let before = expected.get(program.as_str()).unwrap_or_else(|| panic!("{program} is not in the table"));
                assert!(
                    u64::from(*count) * 10 <= u64::from(*before) * 11,
                    "{program} on {series}: {count} instructions, {before} in the table; if that is what the change is \
                     worth: cargo xtask test kernels -- --update"
                );
            }
        }
    });
}

/// The table's column of a kernel.
fn column(series: &str) -> Option<BTreeMap<&'static str, u32>> {
    let mut rows = TABLE.lines().filter(|line| !line.starts_with('#')).map(|line| line.split_whitespace());
    let place = rows.next()?.position(|name| name == series)?;
    Some(rows.filter_map(|mut row| Some((row.next()?, row.nth(place - 1)?.parse().unwrap()))).collect())
}
