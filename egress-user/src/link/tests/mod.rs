//! The link room against real namespaces. Each test makes its own and removes them; it needs root.

mod apply;
mod lab;
