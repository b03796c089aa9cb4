//! Attributes, items and slices of values; loops, and what can be gone through.

use super::ast::{Expr, For};
use super::heap::Object;
use super::interpreter::Interpreter;
use super::methods;
use super::ops::not_iterable;
use super::value::{Range, Text, Value};
use super::{Error, Result};
use std::sync::Arc;

/// A loop that runs, or has run.
pub(super) struct Loop<'a> {
    code: &'a For,
    /// Where it is in.
    scope: usize,
    items: Vec<Value>,
    /// The next item to look at.
    next: usize,
    /// Whether the items from here on have passed the loop's test.
    tested: bool,
    /// An item that was asked for before its turn.
    peeked: Option<Value>,
    /// Rounds begun.
    index: usize,
    length: Option<usize>,
    before: Option<Value>,
    current: Option<Value>,
    /// What `changed` was last asked about.
    changed: Option<Value>,
    depth: usize,
}

/// Gives a namespace's attribute a value.
pub(super) fn set(
    attributes: &mut Vec<(Arc<str>, Value)>,
    name: Arc<str>,
    value: Value,
) -> Result<()> {
    if name.starts_with('_') {
        let rule = format!("a namespace cannot have the attribute '{name}'");
        return Err(Error::failed(rule));
    }
    match attributes.iter_mut().find(|(known, _)| *known == name) {
        Some(attribute) => attribute.1 = value,
        None => attributes.push((name, value)),
    }
    Ok(())
}

impl<'a> Interpreter<'a> {
    /// `value.name`: an attribute as Python has it, else an item.
    pub(super) fn attribute(&mut self, value: &Value, name: &str) -> Result<Value> {
        value.defined()?;
        if let Some(found) = self.known(value, name)? {
            return Ok(found);
        }
        if let Value::Map(map) = value
            && let Some(found) = map.named(name)
        {
            return Ok(found.clone());
        }
        Ok(absent(value, name))
    }

    /// `value[index]`: an item, else an attribute of this name.
    pub(super) fn item(&mut self, value: &Value, index: &Value) -> Result<Value> {
        value.defined()?;
        match (value, index) {
            // What cannot be a key raises a TypeError, which is caught there.
            (Value::Map(map), _) => {
                let hashable = !matches!(index, Value::List(_) | Value::Map(_));
                if hashable && let Some(found) = map.found(&self.heap.key(index)?) {
                    return Ok(found.clone());
                }
            }
            _ if index.integer().is_some() => {
                let at = index.integer().unwrap_or(0);
                if let Some(found) = self.indexed(value, at)? {
                    return Ok(found);
                }
            }
            _ => {}
        }
        match index {
            Value::Text(name) => {
                let found = self.known(value, &name.text)?;
                Ok(found.unwrap_or_else(|| absent(value, &name.text)))
            }
            _ => {
                let shown = self.heap.shown(index)?;
                Ok(Value::undefined(format!("{} object has no element {shown}", value.kind())))
            }
        }
    }

    fn indexed(&self, value: &Value, at: i128) -> Result<Option<Value>> {
        let place = |length: usize| {
            let at = if at < 0 { at + length as i128 } else { at };
            usize::try_from(at).ok().filter(|at| *at < length)
        };
        Ok(match value {
            Value::List(items) | Value::Tuple(items) => {
                place(items.values.len()).and_then(|at| items.values.get(at)).cloned()
            }
            Value::Range(range) => place(range.len()).map(|at| range.get(at)),
            Value::Text(text) => {
                self.heap.step(1 + text.text.len() / 256)?;
                let found = if at < 0 {
                    let back = usize::try_from(-(at + 1)).unwrap_or(usize::MAX);
                    text.text.chars().rev().nth(back)
                } else {
                    text.text.chars().nth(usize::try_from(at).unwrap_or(usize::MAX))
                };
                let safe = text.safe;
                found.map(|c| Value::Text(Text { text: c.to_string().into(), safe }))
            }
            _ => None,
        })
    }

    /// An attribute that a value has in Python; one that the sandbox hides is undefined.
    fn known(&mut self, value: &Value, name: &str) -> Result<Option<Value>> {
        if name.starts_with("__") || methods::is_hidden(value, name) {
            let kind = value.kind();
            let rule = format!("access to attribute '{name}' of '{kind}' object is unsafe.");
            let real = !matches!(value, Value::Map(map) if map.named(name).is_some());
            return Ok(real.then(|| Value::undefined(rule)));
        }
        let integer = |n: usize| Value::Integer(n as i128);
        Ok(match value {
            Value::Loop(id) => self.loop_attribute(*id, name)?,
            Value::Tuple(items) if items.group && matches!(name, "grouper" | "list") => {
                items.values.get(usize::from(name == "list")).cloned()
            }
            Value::Range(range) => match name {
                "start" => Some(Value::Integer(range.start)),
                "stop" => Some(Value::Integer(range.stop)),
                "step" => Some(Value::Integer(range.step)),
                _ => methods::of(value, name),
            },
            Value::Object(id) => match self.heap.objects.get(*id) {
                Some(Object::Namespace(all)) => {
                    self.heap.step(1 + all.len() / 16)?;
                    let found = all.iter().find(|(known, _)| **known == *name);
                    found.map(|(_, value)| value.clone())
                }
                Some(Object::Cycler(items, at)) if name == "current" => items.get(*at).cloned(),
                Some(Object::Cycler(..)) => methods::of(value, name),
                Some(Object::Joiner(separator, used)) => match name {
                    "sep" => Some(separator.clone()),
                    "used" => Some(Value::Bool(*used)),
                    _ => None,
                },
                _ => None,
            },
            Value::Macro(id, macro_name) => match (self.defined(*id), name) {
                (Some(_), "name") => Some((&**macro_name).into()),
                (Some(defined), "arguments") => {
                    let names = defined.code.parameters.iter().map(|(name, _)| (&**name).into());
                    Some(self.heap.tuple(names.collect())?)
                }
                (Some(defined), "catch_kwargs") => Some(Value::Bool(defined.code.uses.kwargs)),
                (Some(defined), "catch_varargs") => Some(Value::Bool(defined.code.uses.varargs)),
                (Some(defined), "caller") => Some(Value::Bool(defined.code.uses.caller)),
                _ => None,
            },
            Value::Bool(_) | Value::Integer(_) => match name {
                "real" | "numerator" => value.integer().map(Value::Integer),
                "imag" => Some(integer(0)),
                "denominator" => Some(integer(1)),
                _ => methods::of(value, name),
            },
            _ => methods::of(value, name),
        })
    }

    pub(super) fn slice(&mut self, of: &'a Expr, bounds: &'a [Option<Expr>; 3]) -> Result<Value> {
        let value = self.value(of)?;
        let mut parts = [None; 3];
        for (part, bound) in parts.iter_mut().zip(bounds) {
            let Some(bound) = bound else { continue };
            let bound = self.value(bound)?;
            bound.defined()?;
            if !bound.is_none() {
                let number = bound
                    .integer()
                    .ok_or_else(|| Error::failed("slice indices must be integers or None"))?;
                *part = Some(number);
            }
        }
        value.defined()?;
        match &value {
            Value::Text(text) => {
                // A character at a time costs more than a copy.
                self.heap.step(text.text.len() / 8 + 1)?;
                let chars: Vec<char> = text.text.chars().collect();
                let made: String = sliced(&chars, parts)?.into_iter().collect();
                Ok(Value::Text(Text { text: made.into(), safe: text.safe }))
            }
            Value::List(items) => {
                self.heap.step(items.values.len())?;
                self.heap.list(sliced(&items.values, parts)?)
            }
            Value::Tuple(items) => {
                self.heap.step(items.values.len())?;
                self.heap.tuple(sliced(&items.values, parts)?)
            }
            Value::Range(range) => {
                let (start, stop, step) = places(range.len(), parts)?;
                let at = |n: i128| range.start.saturating_add(range.step.saturating_mul(n));
                Ok(Value::Range(Box::new(Range {
                    start: at(start),
                    stop: at(stop),
                    step: range.step.saturating_mul(step),
                })))
            }
            _ => Err(Error::failed(format!("'{}' object is not subscriptable", value.kind()))),
        }
    }

    /// All that going through a value gives. What can be gone through once is then used up.
    pub(super) fn iterate(&mut self, value: &Value) -> Result<Vec<Value>> {
        match value {
            Value::Undefined(_) => Ok(Vec::new()),
            Value::Text(text) => {
                self.heap.step(text.text.len())?;
                Ok(text.text.chars().map(|c| c.to_string().into()).collect())
            }
            Value::List(items) | Value::Tuple(items) => {
                self.heap.step(items.values.len())?;
                Ok(items.values.clone())
            }
            Value::Map(map) => map.viewed(super::value::View::Keys, &self.heap),
            Value::View(view, map) => map.viewed(*view, &self.heap),
            Value::Range(range) => {
                self.heap.step(range.len())?;
                Ok((0..range.len()).map(|at| range.get(at)).collect())
            }
            Value::Object(id) => {
                let empty = Object::Iterator(Vec::new());
                match self.heap.objects.get_mut(*id) {
                    Some(Object::Iterator(items)) => Ok(std::mem::take(items)),
                    Some(object @ Object::Pending(..)) => match std::mem::replace(object, empty) {
                        Object::Pending(filter, of, args) => self.run(filter, &of, args),
                        _ => Ok(Vec::new()),
                    },
                    _ => Err(not_iterable(value)),
                }
            }
            _ => Err(not_iterable(value)),
        }
    }

    pub(super) fn begin_loop(
        &mut self,
        code: &'a For,
        over: &Value,
        scope: usize,
        depth: usize,
    ) -> Result<usize> {
        self.heap.step(4)?;
        let items = self.iterate(over)?;
        self.loops.push(Loop {
            code,
            scope,
            items,
            next: 0,
            tested: code.test.is_none(),
            peeked: None,
            index: 0,
            length: None,
            before: None,
            current: None,
            changed: None,
            depth,
        });
        Ok(self.loops.len() - 1)
    }

    /// The item of a loop's next round.
    pub(super) fn advance(&mut self, id: usize) -> Result<Option<Value>> {
        let item = self.peek(id)?;
        let state = &mut self.loops[id];
        state.peeked = None;
        if let Some(item) = &item {
            state.index += 1;
            state.before = state.current.replace(item.clone());
        }
        Ok(item)
    }

    fn peek(&mut self, id: usize) -> Result<Option<Value>> {
        if let Some(item) = &self.loops[id].peeked {
            return Ok(Some(item.clone()));
        }
        let item = self.fetch(id)?;
        self.loops[id].peeked.clone_from(&item);
        Ok(item)
    }

    /// The next item that passes the loop's test. It is asked as the loop goes on, since a body may
    /// change what it depends on.
    fn fetch(&mut self, id: usize) -> Result<Option<Value>> {
        loop {
            let state = &mut self.loops[id];
            let Some(item) = state.items.get(state.next).cloned() else { return Ok(None) };
            state.next += 1;
            let (code, scope, tested) = (state.code, state.scope, state.tested);
            let passes = match &code.test {
                Some(test) if !tested => self.scoped(scope, |i| {
                    i.assign(&code.target, item.clone())?;
                    Ok(i.value(test)?.is_true())
                })?,
                _ => true,
            };
            if passes {
                return Ok(Some(item));
            }
        }
    }

    fn length(&mut self, id: usize) -> Result<usize> {
        if let Some(length) = self.loops[id].length {
            return Ok(length);
        }
        if !self.loops[id].tested {
            let mut rest = Vec::new();
            while let Some(item) = self.fetch(id)? {
                rest.push(item);
            }
            let state = &mut self.loops[id];
            (state.items, state.next, state.tested) = (rest, 0, true);
        }
        let state = &mut self.loops[id];
        let left = state.items.len() - state.next + usize::from(state.peeked.is_some());
        state.length = Some(state.index + left);
        Ok(state.index + left)
    }

    fn loop_attribute(&mut self, id: usize, name: &str) -> Result<Option<Value>> {
        let integer = |n: usize| Some(Value::Integer(n as i128));
        let index = self.loops[id].index;
        Ok(match name {
            "index" => integer(index),
            "index0" => integer(index.saturating_sub(1)),
            "first" => Some(Value::Bool(index == 1)),
            "last" => Some(Value::Bool(self.peek(id)?.is_none())),
            "length" => integer(self.length(id)?),
            "revindex" => integer((self.length(id)? + 1).saturating_sub(index)),
            "revindex0" => integer(self.length(id)?.saturating_sub(index)),
            "depth" => integer(self.loops[id].depth + 1),
            "depth0" => integer(self.loops[id].depth),
            "previtem" => {
                let before = self.loops[id].before.clone();
                Some(before.unwrap_or_else(|| Value::undefined("there is no previous item")))
            }
            "nextitem" => {
                let next = self.peek(id)?;
                Some(next.unwrap_or_else(|| Value::undefined("there is no next item")))
            }
            _ => methods::of(&Value::Loop(id), name),
        })
    }

    /// Runs the body of a recursive loop over other items.
    pub(super) fn recurse(&mut self, id: usize, over: &Value) -> Result<Value> {
        let Loop { code, scope, depth, .. } = self.loops[id];
        if !code.recursive {
            let rule = "The loop must have the 'recursive' marker to be called recursively.";
            return Err(Error::failed(rule));
        }
        let text = self.looped(code, over, scope, depth + 1)?;
        Ok(self.made(text))
    }

    /// Methods of a loop.
    pub(super) fn loop_method(
        &mut self,
        id: usize,
        name: &str,
        args: super::call::Args,
    ) -> Result<Value> {
        let index = self.loops[id].index.saturating_sub(1);
        match name {
            "cycle" if args.positional.is_empty() => {
                Err(Error::failed("no items for cycling given"))
            }
            "cycle" => {
                let at = index % args.positional.len();
                Ok(args.positional.get(at).cloned().unwrap_or(Value::None))
            }
            _ => {
                let asked = self.heap.tuple(args.positional)?;
                let before = self.loops[id].changed.replace(asked.clone());
                let same = match before {
                    Some(before) => super::ops::equal(&self.heap, &before, &asked)?,
                    None => false,
                };
                Ok(Value::Bool(!same))
            }
        }
    }
}

fn absent(value: &Value, name: &str) -> Value {
    let kind = match value {
        Value::None => "None".to_owned(),
        _ => format!("'{} object'", value.kind()),
    };
    Value::undefined(format!("{kind} has no attribute '{name}'"))
}

/// Where a slice begins and ends among so many, and its step: Python's `slice.indices`.
fn places(length: usize, [start, stop, step]: [Option<i128>; 3]) -> Result<(i128, i128, i128)> {
    let length = length as i128;
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(Error::failed("slice step cannot be zero"));
    }
    let (low, high) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let place = |at: i128| if at < 0 { at.saturating_add(length).max(low) } else { at.min(high) };
    let start = start.map_or(if step > 0 { low } else { high }, place);
    let stop = stop.map_or(if step > 0 { high } else { low }, place);
    Ok((start, stop, step))
}

fn sliced<T: Clone>(all: &[T], parts: [Option<i128>; 3]) -> Result<Vec<T>> {
    let (mut at, stop, step) = places(all.len(), parts)?;
    let mut made = Vec::new();
    while (step > 0 && at < stop) || (step < 0 && at > stop) {
        made.extend(usize::try_from(at).ok().and_then(|at| all.get(at)).cloned());
        at = at.saturating_add(step);
    }
    Ok(made)
}
