//! What a template is once it is parsed.

use super::value::Value;
use std::sync::Arc;

/// An expression, where it begins, and how many expressions it has within each other.
#[derive(Debug)]
pub(crate) struct Expr {
    pub(crate) kind: Kind,
    pub(crate) line: usize,
    pub(crate) depth: usize,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Const(Value),
    Name(Arc<str>),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Not(Box<Expr>),
    Negative(Box<Expr>),
    Positive(Box<Expr>),
    And(Box<(Expr, Expr)>),
    Or(Box<(Expr, Expr)>),
    Binary(Operator, Box<(Expr, Expr)>),
    Concat(Vec<Expr>),
    Compare(Box<Expr>, Vec<(Comparison, Expr)>),
    /// Test, then, else.
    Conditional(Box<(Expr, Expr, Option<Expr>)>),
    Attribute(Box<Expr>, Arc<str>),
    Item(Box<(Expr, Expr)>),
    /// Of what, start, stop, step.
    Slice(Box<(Expr, [Option<Expr>; 3])>),
    Call(Box<(Expr, Arguments)>),
    /// Without a value it takes the text of its block.
    Filter(Box<(Option<Expr>, Arguments)>, Arc<str>),
    Test(Box<(Expr, Arguments)>, Arc<str>),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    FloorDivide,
    Modulo,
    Power,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    In,
    NotIn,
}

#[derive(Debug, Default)]
pub(crate) struct Arguments {
    pub(crate) positional: Vec<Expr>,
    pub(crate) named: Vec<(Arc<str>, Expr)>,
    /// What follows `*`.
    pub(crate) list: Option<Expr>,
    /// What follows `**`.
    pub(crate) map: Option<Expr>,
}

#[derive(Debug)]
pub(crate) struct Statement {
    pub(crate) kind: Action,
    pub(crate) line: usize,
}

pub(crate) type Body = Vec<Statement>;

#[derive(Debug)]
pub(crate) enum Action {
    Text(Arc<str>),
    Print(Vec<Expr>),
    Set(Target, Expr),
    /// The text of a body, through filters.
    SetBlock(Target, Option<Expr>, Body),
    /// Tests with their bodies, then what is done if none holds.
    If(Vec<(Expr, Body)>, Body),
    For(Box<For>),
    Macro(Arc<Macro>),
    /// A call, with a macro as its `caller`.
    Call(Arc<Macro>, Expr),
    Filter(Expr, Body),
    With(Vec<(Target, Expr)>, Body),
    /// The model's own words, which are marked for training: a macro that is called at once.
    Generation(Arc<Macro>),
    Autoescape(Expr, Body),
    /// A body that sees the names of the top level alone.
    Block(Body),
    Break,
    Continue,
    /// A tag that reads another template.
    Loader(Arc<str>),
}

/// What a value is given to.
#[derive(Debug)]
pub(crate) enum Target {
    Name(Arc<str>),
    /// An attribute of a namespace.
    Member(Arc<str>, Arc<str>),
    Tuple(Vec<Target>),
}

#[derive(Debug)]
pub(crate) struct For {
    pub(crate) target: Target,
    pub(crate) over: Expr,
    pub(crate) test: Option<Expr>,
    pub(crate) recursive: bool,
    pub(crate) body: Body,
    pub(crate) otherwise: Body,
}

#[derive(Debug)]
pub(crate) struct Macro {
    /// Empty for what a call block hands over.
    pub(crate) name: Arc<str>,
    pub(crate) parameters: Vec<(Arc<str>, Option<Expr>)>,
    pub(crate) body: Body,
    /// Which of the names that a macro has beside its parameters its body reads.
    pub(crate) uses: Uses,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Uses {
    pub(crate) caller: bool,
    pub(crate) kwargs: bool,
    pub(crate) varargs: bool,
}
