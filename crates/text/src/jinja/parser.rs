//! Statements: tokens to what the interpreter goes through.
//!
//! Everything nests at most as deep as [`MAX_NESTED`] says, since it is parsed, run and freed
//! recursively.

use super::ast::{Action, Arguments, Body, Expr, For, Kind, Macro, Statement, Target, Uses};
use super::lexer::{self, Token};
use super::{Error, Result};
use std::sync::Arc;

/// Expressions and statements within each other. Python gives up well before.
pub(super) const MAX_NESTED: usize = 300;

/// The statements of a template.
pub(crate) fn parse(source: &str) -> Result<Body> {
    let tokens = lexer::tokens(source)?;
    let mut parser =
        Parser { tokens, at: 0, nested: 0, loops: 0, uses: Vec::new(), unknown: Vec::new() };
    let (body, _) = parser.body(&[])?;
    match parser.unknown.into_iter().next() {
        Some(error) => Err(error),
        None => Ok(body),
    }
}

pub(super) struct Parser {
    tokens: Vec<(Token, usize)>,
    at: usize,
    pub(super) nested: usize,
    /// Loops around here that `break` and `continue` can be of.
    loops: usize,
    /// Of each macro around here, which special names it reads.
    pub(super) uses: Vec<Uses>,
    /// Names of filters and tests that there are not; an error only where nothing guards them.
    pub(super) unknown: Vec<Error>,
}

impl Parser {
    pub(super) fn token(&self) -> &Token {
        self.tokens.get(self.at).map_or(&Token::End, |(token, _)| token)
    }

    pub(super) fn after(&self) -> &Token {
        self.tokens.get(self.at + 1).map_or(&Token::End, |(token, _)| token)
    }

    pub(super) fn line(&self) -> usize {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |(_, line)| *line)
    }

    pub(super) fn next(&mut self) -> Token {
        let token = self.token().clone();
        self.at += 1;
        token
    }

    pub(super) fn failed(&self, rule: impl Into<String>) -> Error {
        Error::failed(rule).at(self.line())
    }

    pub(super) fn is_sign(&self, sign: &str) -> bool {
        matches!(self.token(), Token::Sign(found) if *found == sign)
    }

    pub(super) fn is_name(&self, name: &str) -> bool {
        matches!(self.token(), Token::Name(found) if found == name)
    }

    pub(super) fn skip_sign(&mut self, sign: &str) -> bool {
        let found = self.is_sign(sign);
        self.at += usize::from(found);
        found
    }

    pub(super) fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        self.at += usize::from(found);
        found
    }

    pub(super) fn expect(&mut self, token: &Token) -> Result<()> {
        if self.token() != token {
            let (wanted, found) = (token.described(), self.token().described());
            return Err(self.failed(format!("expected token '{wanted}', got '{found}'")));
        }
        self.at += 1;
        Ok(())
    }

    pub(super) fn sign(&mut self, sign: &'static str) -> Result<()> {
        self.expect(&Token::Sign(sign))
    }

    pub(super) fn name(&mut self) -> Result<Arc<str>> {
        match self.token().clone() {
            Token::Name(name) => {
                self.at += 1;
                Ok(name.into())
            }
            found => {
                Err(self.failed(format!("expected token 'name', got '{}'", found.described())))
            }
        }
    }

    /// Runs `work` one level deeper.
    pub(super) fn deeper<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.nested >= MAX_NESTED {
            return Err(self.failed(format!("nests more than {MAX_NESTED} levels deep")));
        }
        self.nested += 1;
        let made = work(self);
        self.nested -= 1;
        made
    }

    /// Statements up to one of these tags, whose name is read and given.
    fn body(&mut self, ends: &[&str]) -> Result<(Body, String)> {
        let mut body = Body::new();
        loop {
            let line = self.line();
            match self.next() {
                Token::Data(text) => {
                    body.push(Statement { kind: Action::Text(text.into()), line });
                }
                Token::VariableBegin => {
                    let value = self.tuple(true, &[])?;
                    self.expect(&Token::VariableEnd)?;
                    body.push(Statement { kind: Action::Print(vec![value]), line });
                }
                Token::BlockBegin => {
                    if let Token::Name(name) = self.token().clone()
                        && ends.contains(&&*name)
                    {
                        self.at += 1;
                        return Ok((body, name));
                    }
                    let kind = self.deeper(|p| p.statement(ends))?;
                    self.expect(&Token::BlockEnd)?;
                    body.push(Statement { kind, line });
                }
                _ if ends.is_empty() => return Ok((body, String::new())),
                _ => {
                    let ends = ends.join(" or ");
                    let rule = format!("unexpected end of template, looking for {ends}");
                    return Err(Error::failed(rule).at(line));
                }
            }
        }
    }

    /// The body of a tag that ends here, up to one of these tags.
    fn block(&mut self, ends: &[&str]) -> Result<(Body, String)> {
        self.skip_sign(":");
        self.expect(&Token::BlockEnd)?;
        self.body(ends)
    }

    fn statement(&mut self, ends: &[&str]) -> Result<Action> {
        let name = self.name()?;
        match &*name {
            "for" => self.for_loop(),
            "if" => self.condition(),
            "set" => self.set(),
            "macro" => self.macro_statement(),
            "call" => self.call_block(),
            "filter" => {
                let mut filter = self.filter(None)?;
                while self.skip_sign("|") {
                    filter = self.filter(Some(filter))?;
                }
                let (body, _) = self.block(&["endfilter"])?;
                Ok(Action::Filter(filter, body))
            }
            "with" => self.with(),
            "generation" => {
                let body = self.macro_body("".into(), Vec::new(), "endgeneration")?;
                Ok(Action::Generation(body))
            }
            "autoescape" => {
                let on = self.expression(true)?;
                let (body, _) = self.block(&["endautoescape"])?;
                Ok(Action::Autoescape(on, body))
            }
            "block" => {
                let block = self.name()?;
                self.skip_name("scoped");
                self.skip_name("required");
                let (body, _) = self.apart(|p| p.block(&["endblock"]))?;
                self.skip_name(&block);
                Ok(Action::Block(body))
            }
            "print" => self.print(),
            "break" | "continue" if self.loops == 0 => {
                Err(self.failed(format!("'{name}' outside loop")))
            }
            "break" => Ok(Action::Break),
            "continue" => Ok(Action::Continue),
            "include" | "import" | "from" | "extends" => {
                while *self.token() != Token::BlockEnd && *self.token() != Token::End {
                    self.at += 1;
                }
                Ok(Action::Loader(name))
            }
            _ => {
                let looking = match ends {
                    [] => String::new(),
                    ends => format!(", looking for {}", ends.join(" or ")),
                };
                self.at -= 1;
                Err(self.failed(format!("unknown tag '{name}'{looking}")))
            }
        }
    }

    /// Within a function of its own: loops around it cannot be left from there.
    fn apart<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let loops = std::mem::take(&mut self.loops);
        let made = work(self);
        self.loops = loops;
        made
    }

    fn print(&mut self) -> Result<Action> {
        let mut values = Vec::new();
        while *self.token() != Token::BlockEnd {
            if !values.is_empty() {
                self.sign(",")?;
            }
            values.push(self.expression(true)?);
        }
        Ok(Action::Print(values))
    }

    fn condition(&mut self) -> Result<Action> {
        let mut branches = Vec::new();
        let unknown = self.unknown.len();
        let otherwise = loop {
            let test = self.tuple(false, &[])?;
            let (body, end) = self.block(&["elif", "else", "endif"])?;
            branches.push((test, body));
            match &*end {
                "elif" => {}
                "else" => break self.block(&["endif"])?.0,
                _ => break Body::new(),
            }
        };
        // A filter that there may not be is asked for first: `'x' is filter`.
        self.unknown.truncate(unknown);
        Ok(Action::If(branches, otherwise))
    }

    fn for_loop(&mut self) -> Result<Action> {
        self.loops += 1;
        let target = self.target(&["in"], false);
        self.loops -= 1;
        let target = target?;
        if !self.skip_name("in") {
            return Err(self.failed("expected 'in' in a for loop"));
        }
        let over = self.tuple(false, &["recursive"])?;
        let test = if self.skip_name("if") { Some(self.expression(true)?) } else { None };
        let recursive = self.skip_name("recursive");
        self.loops += 1;
        let inner = self.block(&["endfor", "else"]);
        self.loops -= 1;
        let (body, end) = inner?;
        let otherwise = if end == "else" { self.block(&["endfor"])?.0 } else { Body::new() };
        Ok(Action::For(Box::new(For { target, over, test, recursive, body, otherwise })))
    }

    fn set(&mut self) -> Result<Action> {
        let target = self.target(&[], true)?;
        if self.skip_sign("=") {
            return Ok(Action::Set(target, self.tuple(true, &[])?));
        }
        let mut filter = None;
        while self.skip_sign("|") {
            filter = Some(self.filter(filter)?);
        }
        let (body, _) = self.block(&["endset"])?;
        Ok(Action::SetBlock(target, filter, body))
    }

    fn with(&mut self) -> Result<Action> {
        let mut names = Vec::new();
        while *self.token() != Token::BlockEnd && !self.is_sign(":") {
            if !names.is_empty() {
                self.sign(",")?;
            }
            let target = self.target(&[], false)?;
            self.sign("=")?;
            names.push((target, self.expression(true)?));
        }
        let (body, _) = self.block(&["endwith"])?;
        Ok(Action::With(names, body))
    }

    fn macro_statement(&mut self) -> Result<Action> {
        let name = self.name()?;
        let parameters = self.parameters()?;
        Ok(Action::Macro(self.macro_body(name, parameters, "endmacro")?))
    }

    fn call_block(&mut self) -> Result<Action> {
        let parameters = if self.is_sign("(") { self.parameters()? } else { Vec::new() };
        let call = self.expression(true)?;
        if !matches!(call.kind, Kind::Call(..)) {
            return Err(self.failed("expected call"));
        }
        let caller = self.macro_body("".into(), parameters, "endcall")?;
        Ok(Action::Call(caller, call))
    }

    fn macro_body(
        &mut self,
        name: Arc<str>,
        parameters: Vec<(Arc<str>, Option<Expr>)>,
        end: &str,
    ) -> Result<Arc<Macro>> {
        self.uses.push(Uses::default());
        let body = self.apart(|p| p.block(&[end]));
        let mut uses = self.uses.pop().unwrap_or_default();
        // What is a parameter is not special. A caller may be one that has a default.
        let parameter = |name: &str| parameters.iter().find(|(known, _)| **known == *name);
        if uses.caller && parameter("caller").is_some_and(|(_, default)| default.is_none()) {
            return Err(self.failed("the parameter \"caller\" of a macro must have a default"));
        }
        uses.caller &= parameter("caller").is_none();
        uses.kwargs &= parameter("kwargs").is_none();
        uses.varargs &= parameter("varargs").is_none();
        Ok(Arc::new(Macro { name, parameters, body: body?.0, uses }))
    }

    fn parameters(&mut self) -> Result<Vec<(Arc<str>, Option<Expr>)>> {
        self.sign("(")?;
        let mut all: Vec<(Arc<str>, Option<Expr>)> = Vec::new();
        while !self.is_sign(")") {
            if !all.is_empty() {
                self.sign(",")?;
            }
            let name = self.name()?;
            let default = if self.skip_sign("=") { Some(self.expression(true)?) } else { None };
            if default.is_none() && all.last().is_some_and(|(_, default)| default.is_some()) {
                return Err(self.failed("non-default argument follows default argument"));
            }
            all.push((name, default));
        }
        self.sign(")")?;
        Ok(all)
    }

    /// What a value is given to, up to a sign or one of these names.
    fn target(&mut self, ends: &[&str], members: bool) -> Result<Target> {
        let mut all = Vec::new();
        let mut is_tuple = false;
        loop {
            let ended = matches!(self.token(), Token::BlockEnd | Token::VariableEnd)
                || self.is_sign(")")
                || ends.iter().any(|end| self.is_name(end));
            if ended {
                break;
            }
            all.push(self.one_target(members)?);
            if !self.skip_sign(",") {
                break;
            }
            is_tuple = true;
        }
        match (all.pop(), is_tuple) {
            (Some(target), false) => Ok(target),
            (Some(last), true) => {
                all.push(last);
                Ok(Target::Tuple(all))
            }
            (None, _) => {
                let found = self.token().described();
                Err(self.failed(format!("expected a name, got '{found}'")))
            }
        }
    }

    fn one_target(&mut self, members: bool) -> Result<Target> {
        if self.skip_sign("(") {
            let target = self.deeper(|p| p.target(&[], members))?;
            self.sign(")")?;
            return Ok(target);
        }
        let name = self.name()?;
        if matches!(&*name, "true" | "false" | "True" | "False" | "none" | "None") {
            return Err(self.failed(format!("can't assign to '{name}'")));
        }
        if members && self.skip_sign(".") {
            return Ok(Target::Member(name, self.name()?));
        }
        if &*name == "loop" && self.loops > 0 {
            return Err(self.failed("can't assign to the special variable loop"));
        }
        Ok(Target::Name(name))
    }

    /// A filter, whose name comes next, of this value.
    pub(super) fn filter(&mut self, value: Option<Expr>) -> Result<Expr> {
        let line = self.line();
        let name = self.dotted()?;
        if !super::filters::is_known(&name) {
            self.unknown.push(Error::failed(format!("No filter named '{name}'.")).at(line));
        }
        let arguments = self.optional_arguments()?;
        let depth = value.as_ref().map_or(0, |v| v.depth).max(arguments.depth());
        self.node(Kind::Filter(Box::new((value, arguments)), name), line, depth)
    }

    pub(super) fn dotted(&mut self) -> Result<Arc<str>> {
        let mut name = self.name()?.to_string();
        while self.skip_sign(".") {
            name = format!("{name}.{}", self.name()?);
        }
        Ok(name.into())
    }

    pub(super) fn optional_arguments(&mut self) -> Result<Arguments> {
        if self.is_sign("(") { self.arguments() } else { Ok(Arguments::default()) }
    }
}
