//! Goes through a template: statements, names, expressions.

use super::ast::{Action, Arguments, Body, Comparison, Expr, For, Kind, Macro, Statement, Target};
use super::call::Args;
use super::heap::{Heap, Object};
use super::value::{Text, Value};
use super::{Error, Limits, Result, is, ops};
use std::collections::HashMap;
use std::sync::Arc;

/// Statements, expressions and calls within each other; what Python's stack holds is far less.
const MAX_RUNNING: usize = 2000;

/// What every template finds without being given it.
const GLOBALS: [&str; 8] =
    ["range", "dict", "namespace", "cycler", "joiner", "lipsum", "raise_exception", "strftime_now"];

/// Renders the statements of a template.
pub(super) fn render(
    body: &Body,
    variables: &serde_json::Map<String, serde_json::Value>,
    now: i64,
    limits: Limits,
) -> Result<String> {
    let heap = Heap::new(limits.steps);
    let mut names = HashMap::new();
    for (name, value) in variables {
        names.insert(name.as_str().into(), Value::of_json(value, &heap)?);
    }
    let mut interpreter = Interpreter {
        heap,
        scopes: vec![Scope { parent: None, names, kept: true }],
        scope: 0,
        macros: Vec::new(),
        loops: Vec::new(),
        out: vec![String::new()],
        most: limits.bytes,
        running: 0,
        now,
        autoescape: false,
    };
    interpreter.body(body)?;
    Ok(interpreter.out.pop().unwrap_or_default())
}

pub(super) struct Interpreter<'a> {
    pub(super) heap: Heap,
    scopes: Vec<Scope>,
    /// The scope that names are looked up from.
    pub(super) scope: usize,
    macros: Vec<Defined<'a>>,
    pub(super) loops: Vec<super::objects::Loop<'a>>,
    /// Texts that are being made, the innermost last.
    out: Vec<String>,
    most: usize,
    running: usize,
    pub(super) now: i64,
    autoescape: bool,
}

struct Scope {
    parent: Option<usize>,
    names: HashMap<Arc<str>, Value>,
    /// Whether a macro looks its names up here later.
    kept: bool,
}

#[derive(Clone, Copy)]
pub(super) struct Defined<'a> {
    pub(super) code: &'a Macro,
    /// Where it was defined.
    pub(super) scope: usize,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Flow {
    Next,
    Break,
    Continue,
}

impl<'a> Interpreter<'a> {
    pub(super) fn body(&mut self, body: &'a Body) -> Result<Flow> {
        for statement in body {
            self.heap.step(1)?;
            let flow = self.deeper(|i| i.statement(statement));
            match flow.map_err(|error| error.at(statement.line))? {
                Flow::Next => {}
                flow => return Ok(flow),
            }
        }
        Ok(Flow::Next)
    }

    fn deeper<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.running >= MAX_RUNNING {
            return Err(Error::budget());
        }
        self.running += 1;
        let made = work(self);
        self.running -= 1;
        made
    }

    /// Runs `work` with names of its own, which are looked up in `parent` else.
    pub(super) fn scoped<T>(
        &mut self,
        parent: usize,
        work: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        self.heap.step(2)?;
        let (id, before) = (self.scopes.len(), self.scope);
        self.scopes.push(Scope { parent: Some(parent), names: HashMap::new(), kept: false });
        self.scope = id;
        let made = work(self);
        self.scope = before;
        if id + 1 == self.scopes.len() && !self.scopes[id].kept {
            self.scopes.pop();
        }
        made
    }

    /// The text that `work` writes.
    pub(super) fn captured(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<Flow>,
    ) -> Result<(String, Flow)> {
        self.out.push(String::new());
        let flow = work(self);
        let text = self.out.pop().unwrap_or_default();
        Ok((text, flow?))
    }

    fn write(&mut self, text: &str) -> Result<()> {
        self.heap.bytes(text.len())?;
        let most = self.most;
        match self.out.last_mut() {
            Some(out) if out.len().saturating_add(text.len()) > most => Err(Error::budget()),
            Some(out) => {
                out.push_str(text);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn print(&mut self, value: &Value) -> Result<()> {
        let text = self.heap.text(value)?;
        match value {
            Value::Text(Text { safe: true, .. }) => self.write(&text),
            _ if self.autoescape => {
                let text = ops::escaped(&self.heap, &text)?;
                self.write(&text)
            }
            _ => self.write(&text),
        }
    }

    /// A text that a block or a macro has made.
    pub(super) fn made(&self, text: String) -> Value {
        if self.autoescape { Value::safe(text) } else { text.into() }
    }

    fn statement(&mut self, statement: &'a Statement) -> Result<Flow> {
        match &statement.kind {
            Action::Text(text) => self.write(text)?,
            Action::Print(values) => {
                for value in values {
                    let value = self.value(value)?;
                    self.print(&value)?;
                }
            }
            Action::Set(target, value) => {
                let value = self.value(value)?;
                self.assign(target, value)?;
            }
            Action::If(branches, otherwise) => {
                for (test, body) in branches {
                    if self.value(test)?.is_true() {
                        return self.body(body);
                    }
                }
                return self.body(otherwise);
            }
            Action::For(code) => self.for_loop(code)?,
            Action::Macro(code) => {
                let value = self.define(code)?;
                self.name(code.name.clone(), value)?;
            }
            Action::Call(caller, call) => {
                let caller = self.define(caller)?;
                let value = self.call_expression(call, Some(caller))?;
                self.print(&value)?;
            }
            Action::Generation(code) => {
                let body = self.define(code)?;
                let value = self.call(&body, Args::default())?;
                self.print(&value)?;
            }
            Action::Break => return Ok(Flow::Break),
            Action::Continue => return Ok(Flow::Continue),
            Action::Loader(tag) => {
                let rule = format!("{tag}: there is no other template to read");
                return Err(Error::failed(rule));
            }
            _ => return self.block(statement),
        }
        Ok(Flow::Next)
    }

    /// A statement whose body has names of its own.
    fn block(&mut self, statement: &'a Statement) -> Result<Flow> {
        let here = self.scope;
        match &statement.kind {
            Action::SetBlock(target, filter, body) => {
                let (text, flow) = self.captured(|i| i.scoped(here, |i| i.body(body)))?;
                if flow != Flow::Next {
                    return Ok(flow);
                }
                let value = self.through(filter.as_ref(), text)?;
                self.assign(target, value)?;
            }
            Action::Filter(filter, body) => {
                let (text, flow) = self.captured(|i| i.scoped(here, |i| i.body(body)))?;
                if flow != Flow::Next {
                    return Ok(flow);
                }
                let value = self.through(Some(filter), text)?;
                let Value::Text(_) = value else {
                    let rule = format!("a filter block gives a {}, no string", value.kind());
                    return Err(Error::failed(rule));
                };
                self.print(&value)?;
            }
            Action::With(names, body) => {
                let mut values = Vec::with_capacity(names.len());
                for (_, value) in names {
                    values.push(self.value(value)?);
                }
                return self.scoped(here, |i| {
                    for ((target, _), value) in names.iter().zip(values) {
                        i.assign(target, value)?;
                    }
                    i.body(body)
                });
            }
            Action::Block(body) => return self.scoped(0, |i| i.body(body)),
            Action::Autoescape(on, body) => {
                let on = self.value(on)?.is_true();
                let before = std::mem::replace(&mut self.autoescape, on);
                let flow = self.scoped(here, |i| i.body(body));
                self.autoescape = before;
                return flow;
            }
            _ => {}
        }
        Ok(Flow::Next)
    }

    /// A block's text, through the filters that its tag names.
    fn through(&mut self, filter: Option<&'a Expr>, text: String) -> Result<Value> {
        let text = self.made(text);
        match filter {
            None => Ok(text),
            Some(filter) => self.filtered(filter, Some(text)),
        }
    }

    fn define(&mut self, code: &'a Macro) -> Result<Value> {
        self.heap.step(2)?;
        let mut at = Some(self.scope);
        while let Some(scope) = at.and_then(|at| self.scopes.get_mut(at)) {
            if scope.kept {
                break;
            }
            scope.kept = true;
            at = scope.parent;
        }
        self.macros.push(Defined { code, scope: self.scope });
        Ok(Value::Macro(self.macros.len() - 1, code.name.clone()))
    }

    pub(super) fn defined(&self, id: usize) -> Option<Defined<'a>> {
        self.macros.get(id).copied()
    }

    /// Gives a name a value, in the scope that is on.
    pub(super) fn name(&mut self, name: Arc<str>, value: Value) -> Result<()> {
        self.heap.step(1)?;
        let scope = self.scope;
        self.scopes[scope].names.insert(name, value);
        Ok(())
    }

    fn found(&self, name: &Arc<str>) -> Option<Value> {
        let mut at = Some(self.scope);
        while let Some(scope) = at.and_then(|at| self.scopes.get(at)) {
            if let Some(value) = scope.names.get(name) {
                return Some(value.clone());
            }
            at = scope.parent;
        }
        let global = GLOBALS.iter().find(|known| ***known == **name);
        global.map(|global| Value::Function(global))
    }

    pub(super) fn assign(&mut self, target: &'a Target, value: Value) -> Result<()> {
        match target {
            Target::Name(name) => self.name(name.clone(), value),
            Target::Member(name, attribute) => {
                let found = self.found(name);
                let object = match found {
                    Some(Value::Object(id)) => self.heap.objects.get_mut(id),
                    _ => None,
                };
                let Some(Object::Namespace(attributes)) = object else {
                    return Err(Error::failed("cannot assign attribute on non-namespace object"));
                };
                super::objects::set(attributes, attribute.clone(), value)?;
                let count = attributes.len();
                self.heap.step(1 + count / 16)
            }
            Target::Tuple(targets) => {
                let values = self.iterate(&value)?;
                if values.len() != targets.len() {
                    let few = values.len() < targets.len();
                    let rule = if few { "not enough" } else { "too many" };
                    let wanted = targets.len();
                    let rule = format!("{rule} values to unpack (expected {wanted})");
                    return Err(Error::failed(rule));
                }
                for (target, value) in targets.iter().zip(values) {
                    self.assign(target, value)?;
                }
                Ok(())
            }
        }
    }

    fn for_loop(&mut self, code: &'a For) -> Result<()> {
        let over = self.value(&code.over)?;
        let here = self.scope;
        if code.recursive {
            let text = self.looped(code, &over, here, 0)?;
            return self.write(&text);
        }
        self.run_loop(code, &over, here, 0)
    }

    /// The text of a recursive loop.
    pub(super) fn looped(
        &mut self,
        code: &'a For,
        over: &Value,
        scope: usize,
        depth: usize,
    ) -> Result<String> {
        let run = |i: &mut Self| i.run_loop(code, over, scope, depth).map(|()| Flow::Next);
        Ok(self.captured(|i| i.deeper(run))?.0)
    }

    fn run_loop(&mut self, code: &'a For, over: &Value, scope: usize, depth: usize) -> Result<()> {
        let id = self.begin_loop(code, over, scope, depth)?;
        let mut ended = false;
        while let Some(item) = self.advance(id)? {
            let flow = self.scoped(scope, |i| {
                i.name("loop".into(), Value::Loop(id))?;
                i.assign(&code.target, item)?;
                i.body(&code.body)
            })?;
            // A round that is left early does not keep `else` away: jinja2 notes it at the end of one.
            ended |= flow == Flow::Next;
            if flow == Flow::Break {
                break;
            }
        }
        if !ended {
            self.scoped(scope, |i| i.body(&code.otherwise))?;
        }
        Ok(())
    }

    pub(super) fn value(&mut self, expr: &'a Expr) -> Result<Value> {
        self.heap.step(1)?;
        self.deeper(|i| i.evaluated(expr)).map_err(|error| error.at(expr.line))
    }

    fn values(&mut self, all: &'a [Expr]) -> Result<Vec<Value>> {
        all.iter().map(|value| self.value(value)).collect()
    }

    fn evaluated(&mut self, expr: &'a Expr) -> Result<Value> {
        match &expr.kind {
            Kind::Const(value) => Ok(value.clone()),
            Kind::Name(name) => {
                let nothing = || Value::undefined(format!("'{name}' is undefined"));
                Ok(self.found(name).unwrap_or_else(nothing))
            }
            Kind::List(all) => {
                let values = self.values(all)?;
                self.heap.list(values)
            }
            Kind::Tuple(all) => {
                let values = self.values(all)?;
                self.heap.tuple(values)
            }
            Kind::Dict(all) => {
                let mut entries = Vec::with_capacity(all.len());
                for (key, value) in all {
                    entries.push((self.value(key)?, self.value(value)?));
                }
                self.heap.map(entries)
            }
            Kind::Concat(all) => self.concatenated(all),
            Kind::Attribute(of, name) => {
                let value = self.value(of)?;
                self.attribute(&value, name)
            }
            Kind::Item(both) => {
                let value = self.value(&both.0)?;
                let index = self.value(&both.1)?;
                self.item(&value, &index)
            }
            Kind::Slice(both) => self.slice(&both.0, &both.1),
            Kind::Call(..) => self.call_expression(expr, None),
            Kind::Filter(..) => self.filtered(expr, None),
            Kind::Test(both, name) => {
                let value = self.value(&both.0)?;
                let args = self.args(&both.1)?;
                self.test(name, &value, args).map(Value::Bool)
            }
            _ => self.operated(expr),
        }
    }

    fn operated(&mut self, expr: &'a Expr) -> Result<Value> {
        match &expr.kind {
            Kind::Not(value) => Ok(Value::Bool(!self.value(value)?.is_true())),
            Kind::Negative(value) => ops::signed(&self.value(value)?, true),
            Kind::Positive(value) => ops::signed(&self.value(value)?, false),
            Kind::And(both) => {
                let left = self.value(&both.0)?;
                if left.is_true() { self.value(&both.1) } else { Ok(left) }
            }
            Kind::Or(both) => {
                let left = self.value(&both.0)?;
                if left.is_true() { Ok(left) } else { self.value(&both.1) }
            }
            Kind::Binary(operator, both) => {
                let left = self.value(&both.0)?;
                let right = self.value(&both.1)?;
                ops::binary(&self.heap, *operator, &left, &right)
            }
            Kind::Compare(first, rest) => {
                let mut left = self.value(first)?;
                for (comparison, right) in rest {
                    let right = self.value(right)?;
                    let right = match comparison {
                        Comparison::In | Comparison::NotIn => self.gone_through(right)?,
                        _ => right,
                    };
                    if !ops::compare(&self.heap, *comparison, &left, &right)? {
                        return Ok(Value::Bool(false));
                    }
                    left = right;
                }
                Ok(Value::Bool(true))
            }
            Kind::Conditional(all) => {
                let (test, then, otherwise) = &**all;
                if self.value(test)?.is_true() {
                    return self.value(then);
                }
                match otherwise {
                    Some(value) => self.value(value),
                    None => Ok(Value::undefined(
                        "the inline if-expression evaluated to false and no else section was defined",
                    )),
                }
            }
            _ => Ok(Value::None),
        }
    }

    /// What can be gone through once as a list; anything else as it is.
    fn gone_through(&mut self, value: Value) -> Result<Value> {
        match &value {
            Value::Object(id)
                if matches!(
                    self.heap.objects.get(*id),
                    Some(Object::Iterator(_) | Object::Pending(..))
                ) =>
            {
                let items = self.iterate(&value)?;
                self.heap.list(items)
            }
            _ => Ok(value),
        }
    }

    fn concatenated(&mut self, all: &'a [Expr]) -> Result<Value> {
        let mut text = String::new();
        for value in self.values(all)? {
            let safe = matches!(value, Value::Text(Text { safe: true, .. }));
            if self.autoescape && !safe {
                let part = self.heap.text(&value)?;
                text.push_str(&ops::escaped(&self.heap, &part)?);
            } else {
                self.heap.print(&value, &mut text)?;
            }
        }
        Ok(self.made(text))
    }

    fn filtered(&mut self, expr: &'a Expr, text: Option<Value>) -> Result<Value> {
        let Kind::Filter(both, name) = &expr.kind else { return self.value(expr) };
        let value = match (&both.0, text) {
            (Some(inner), Some(text)) => self.filtered(inner, Some(text))?,
            (Some(inner), None) => self.value(inner)?,
            (None, text) => text.unwrap_or(Value::None),
        };
        let args = self.args(&both.1)?;
        self.filter(name, &value, args).map_err(|error| error.at(expr.line))
    }

    pub(super) fn args(&mut self, all: &'a Arguments) -> Result<Args> {
        let mut args = Args { positional: self.values(&all.positional)?, named: Vec::new() };
        for (name, value) in &all.named {
            args.named.push((name.clone(), self.value(value)?));
        }
        if let Some(list) = &all.list {
            let list = self.value(list)?;
            args.positional.extend(self.iterate(&list)?);
        }
        if let Some(map) = &all.map {
            let map = self.value(map)?;
            let Value::Map(map) = &map else {
                return Err(Error::failed("argument after ** must be a mapping"));
            };
            self.heap.step(map.len())?;
            for (key, value) in &map.entries {
                let Value::Text(key) = key else {
                    return Err(Error::failed("keywords must be strings"));
                };
                self.heap.step(args.named.len() / 16)?;
                if args.named.iter().any(|(name, _)| *name == key.text) {
                    let rule = format!("got multiple values for keyword argument '{}'", key.text);
                    return Err(Error::failed(rule));
                }
                args.named.push((key.text.clone(), value.clone()));
            }
        }
        Ok(args)
    }

    fn call_expression(&mut self, expr: &'a Expr, caller: Option<Value>) -> Result<Value> {
        let Kind::Call(both) = &expr.kind else { return self.value(expr) };
        let called = self.value(&both.0)?;
        let mut args = self.args(&both.1)?;
        if let Some(caller) = caller {
            args.named.push(("caller".into(), caller));
        }
        self.call(&called, args).map_err(|error| error.at(expr.line))
    }

    pub(super) fn test(&mut self, name: &str, value: &Value, mut args: Args) -> Result<bool> {
        if name == "in" {
            let others = std::mem::take(&mut args.positional).into_iter();
            let others = others.map(|other| self.gone_through(other));
            args.positional = others.collect::<Result<_>>()?;
        }
        is::test(&self.heap, name, value, args)
    }
}
