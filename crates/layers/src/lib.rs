//! The build operations of a build microVM (PROTOCOL.md section 5): layers applied, run, copied into, captured,
//! stacked, written to a disk. Used by `vminit`; tested on a host as root.
#![deny(unsafe_code)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod agents;
mod apply;
mod archive;
mod builder;
mod caches;
mod copy_filtered;
mod copy_tree;
mod data;
mod filter;
mod layer_copy;
mod limits;
mod modes;
mod mount_points;
mod mounts;
mod paths;
mod pattern;
mod registry;
mod requests;
mod run;
mod step;
mod step_mounts;
mod stubs;
mod sys;
mod tar_read;
mod tar_write;
mod tree;
mod unpack;

pub use builder::{Builder, Settings};
pub use copy_tree::{copy_root_attributes, TreeCopier};
pub use tree::{names, remove};

/// The argument with which a program that calls [`run_step`] is started for a step; the next one is the file.
pub const STEP_ARGUMENT: &str = "layer-step";

/// Becomes the step that the file describes; the result is the process's exit code. The process must have one thread.
pub fn run_step(file: &std::path::Path) -> i32 {
    step::main(file)
}
