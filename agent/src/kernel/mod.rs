//! What the running kernel is like: where its fields lie ([`offsets`], by its own type information, [`btf`]) and what
//! it can do ([`features`]).

pub mod btf;
pub mod features;
pub mod offsets;
