//! The link room: its plans as pure data, and against real namespaces. The latter make their own, remove them, and
//! need root.

mod apply;
mod faults;
mod lab;
mod netns;
mod plan;
mod routing;
mod wire;
