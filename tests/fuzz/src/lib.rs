//! The rooms of egress-router that read what people and programs write, under the names that they have in their own crate.

#[path = "../../../egress-user/src/compile/mod.rs"]
pub mod compile;
#[path = "../../../egress-user/src/spec/mod.rs"]
pub mod spec;
