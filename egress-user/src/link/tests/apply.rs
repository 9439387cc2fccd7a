use super::lab::*;
use crate::compile::{LinkPlan, MacvlanMode};
use crate::link::*;

#[test]
fn a_real_macvlan_with_everything_and_a_second_apply_that_changes_nothing() {
    let lab = Lab::new();
    lab.apply(&dual_stack()).unwrap();
    let link = lab.router.ip("-d link show net1");
    assert!(link.contains("macvlan mode bridge"), "{link}");
    let again = lab.plan(&dual_stack()).unwrap();
    assert!(again.is_empty(), "second apply: {again:#?}");
    for target in ["192.168.12.1", "2001:db8:12::1"] {
        assert!(lab.router.reaches(&lab.outside, None, target), "no way to {target}");
    }
}
