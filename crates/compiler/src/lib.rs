//! The compiler: what the user asked for ([`Recipe`]), everything known before a weight is read
//! ([`Plan`]), the streaming driver that runs passes block by block ([`compile`]), and what it says
//! of the result ([`Report`]).
//!
//! One block is resident, and of its experts one. Each finished block is written, and the calibration samples go on through
//! what was written, so a later block is fitted to the errors of the earlier ones.

// From the lower to the higher: a module uses those of the groups before its own, with few exceptions,
// which tests/tidy counts. Blank lines keep the order.
mod hash;
mod reader;
mod refusal;
mod spelling;

mod setting;
mod statistics;

mod pass;
mod recipe;
mod recode;
mod survey;

mod report;
mod solver;

mod error;

mod damage;
mod dense;
mod dump;
mod journal;
mod output;
mod verify;

mod plan;

mod job;
mod publish;
mod work;
mod writer;

mod proof;
mod streams;

mod turn;

mod keep;
mod layer;
mod table;

mod identity;
mod resume;

mod begin;
mod look;

mod drive;

pub use drive::{Compiled, Made, compile, precheck};
pub use error::CompileError;
pub use job::{Event, Job, Spent, Text};
pub use look::{Surveying, survey};
pub use pass::{Cost, Edit, Held, Pass, PassCx, PassError, Stage};
pub use plan::{
    BASE_BYTES, Choice, Fallback, Pipeline, Plan, PlannedBlock, PlannedOutput, PlannedWeight,
    SolveStage, Tokens,
};
pub use publish::{Claim, Destination, log_beside};
pub use recipe::{Calibration, Dtype, Gate, OutputRecipe, PassRecipe, Recipe, head_rule, share};
pub use refusal::Refusal;
pub use report::{
    FileHash, Quality, Report, Sizes, TokensReport, WeightReport, read as read_report,
};
pub use setting::{Key, Wrong, boolean, check_keys, integer, one_of};
pub use solver::{
    Asked, Input, Keep, Kept, Misfit, Outcome, Output, Rule, Solved, Solver, Solving, Target,
};
pub use statistics::{Observe, Statistics};
pub use survey::{Decisions, Survey};
pub use verify::{Difference, verify};
