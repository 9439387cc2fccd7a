//! ebpf
#![no_std]
