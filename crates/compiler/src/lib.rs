//! The compiler: what the user asked for ([`Recipe`]), everything known before a weight is read
//! ([`Plan`]), the streaming driver that runs passes block by block ([`compile`]), and what it says
//! of the result ([`Report`]).
//!
//! One block is resident. Each finished block is written, and the calibration samples go on through
//! what was written, so a later block is fitted to the errors of the earlier ones.

mod begin;
mod damage;
mod drive;
mod error;
mod identity;
mod journal;
mod layer;
mod output;
mod pass;
mod plan;
mod proof;
mod publish;
mod recipe;
mod report;
mod resume;
mod rows;
mod setting;
mod verify;

pub use drive::{Compiled, Event, Job, Made, Spent, Text, compile, precheck};
pub use error::CompileError;
pub use pass::{Outcome, Pass, PassCx, PassError, Refusal, Rewrite, Stage};
pub use plan::{BASE_BYTES, Choice, Plan, PlannedWeight, Tokens};
pub use publish::{Claim, Destination, log_beside};
pub use recipe::{Calibration, Dtype, Gate, PassRecipe, Recipe, share};
pub use report::{
    FileHash, Quality, Report, Sizes, TokensReport, WeightReport, read as read_report,
};
pub use setting::{Key, Wrong, boolean, check_keys, integer, one_of};
pub use verify::{Difference, verify};
