//! Calls: macros, functions that every template has, and how arguments find their parameters.

use super::ast::Macro;
use super::heap::Object;
use super::interpreter::Interpreter;
use super::value::{Range, Value};
use super::{Error, Failure, Result, objects};
use crate::moment;
use std::sync::Arc;

/// jinja2's sandbox makes no longer ranges.
const MAX_RANGE: usize = 100_000;

/// The arguments of a call.
#[derive(Clone, Debug, Default)]
pub(crate) struct Args {
    pub(crate) positional: Vec<Value>,
    pub(crate) named: Vec<(Arc<str>, Value)>,
}

impl Args {
    /// The arguments in the order of these parameters, as far as they are given.
    pub(crate) fn bind<const N: usize>(
        self,
        called: &str,
        parameters: [&str; N],
    ) -> Result<[Option<Value>; N]> {
        let given = self.positional.len();
        if given > N {
            let rule = format!("{called}() takes at most {N} arguments ({given} given)");
            return Err(Error::failed(rule));
        }
        let mut bound = [const { None }; N];
        for (slot, value) in bound.iter_mut().zip(self.positional) {
            *slot = Some(value);
        }
        for (name, value) in self.named {
            let slot = parameters.iter().position(|known| **known == *name);
            match slot.and_then(|at| bound.get_mut(at)) {
                Some(slot @ None) => *slot = Some(value),
                Some(_) => {
                    let rule = format!("{called}() got multiple values for argument '{name}'");
                    return Err(Error::failed(rule));
                }
                None => {
                    let rule = format!("{called}() got an unexpected keyword argument '{name}'");
                    return Err(Error::failed(rule));
                }
            }
        }
        Ok(bound)
    }

    /// As [`Args::bind`], of a function that knows no names.
    pub(crate) fn in_order<const N: usize>(self, called: &str) -> Result<[Option<Value>; N]> {
        if !self.named.is_empty() {
            return Err(Error::failed(format!("{called}() takes no keyword arguments")));
        }
        self.bind(called, [""; N])
    }
}

/// An argument that must be there.
pub(crate) fn needed(value: Option<Value>, called: &str) -> Result<Value> {
    value.ok_or_else(|| Error::failed(format!("{called}() is missing an argument")))
}

/// A whole number, or what it is if none is given.
pub(crate) fn whole(value: Option<&Value>, otherwise: i128) -> Result<i128> {
    match value {
        None => Ok(otherwise),
        Some(value) => {
            value.defined()?;
            value.integer().ok_or_else(|| {
                let kind = value.kind();
                Error::failed(format!("'{kind}' object cannot be interpreted as an integer"))
            })
        }
    }
}

/// How many; what is negative is none.
pub(crate) fn count(value: Option<&Value>, otherwise: i128) -> Result<usize> {
    let number = whole(value, otherwise)?;
    Ok(usize::try_from(number.max(0)).unwrap_or(usize::MAX))
}

/// A string that must be one.
pub(crate) fn string<'v>(value: &'v Value, called: &str) -> Result<&'v str> {
    value.defined()?;
    let rule = || Error::failed(format!("{called}: a string is required, not {}", value.kind()));
    value.text().ok_or_else(rule)
}

impl<'a> Interpreter<'a> {
    pub(super) fn call(&mut self, called: &Value, args: Args) -> Result<Value> {
        self.heap.step(1)?;
        called.defined()?;
        match called {
            Value::Function(name) => self.function(name, args),
            Value::Macro(id, _) => self.call_macro(*id, args),
            Value::Method(method) => self.method(&method.0, method.1, args),
            Value::Loop(id) => {
                let [over] = args.bind("loop", ["iterable"])?;
                self.recurse(*id, &needed(over, "loop")?)
            }
            Value::Object(id) => match self.heap.objects.get_mut(*id) {
                Some(Object::Joiner(separator, used)) => {
                    let first = !std::mem::replace(used, true);
                    Ok(if first { "".into() } else { separator.clone() })
                }
                _ => Err(not_callable(called)),
            },
            _ => Err(not_callable(called)),
        }
    }

    fn call_macro(&mut self, id: usize, args: Args) -> Result<Value> {
        let Some(defined) = self.defined(id) else { return Ok(Value::None) };
        let (values, special) = bound(defined.code, args)?;
        let (text, _) = self.captured(|i| {
            i.scoped(defined.scope, |i| {
                let mut rest = Vec::new();
                for ((name, default), value) in defined.code.parameters.iter().zip(values) {
                    match value {
                        Some(value) => i.name(name.clone(), value)?,
                        None => rest.push((name, default)),
                    }
                }
                i.special(defined.code, special)?;
                for (name, default) in rest {
                    let value = match default {
                        Some(default) => i.value(default)?,
                        None => Value::undefined(format!("parameter '{name}' was not provided")),
                    };
                    i.name(name.clone(), value)?;
                }
                i.body(&defined.code.body)
            })
        })?;
        Ok(self.made(text))
    }

    /// The names that a macro has beside its parameters.
    fn special(&mut self, code: &Macro, special: Special) -> Result<()> {
        if code.uses.caller {
            let nobody = || Value::undefined("No caller defined");
            self.name("caller".into(), special.caller.unwrap_or_else(nobody))?;
        }
        if code.uses.kwargs {
            let entries = special.named.into_iter().map(|(k, v)| ((&*k).into(), v)).collect();
            let map = self.heap.map(entries)?;
            self.name("kwargs".into(), map)?;
        }
        if code.uses.varargs {
            let tuple = self.heap.tuple(special.positional)?;
            self.name("varargs".into(), tuple)?;
        }
        Ok(())
    }

    fn function(&mut self, name: &'static str, args: Args) -> Result<Value> {
        match name {
            "range" => range(args),
            "dict" => {
                let entries = self.entries(name, args)?;
                self.heap.map(entries)
            }
            "namespace" => {
                let mut attributes = Vec::new();
                for (key, value) in self.entries(name, args)? {
                    let key = self.heap.text(&key)?;
                    self.heap.step(1 + attributes.len() / 16)?;
                    objects::set(&mut attributes, key, value)?;
                }
                self.heap.object(Object::Namespace(attributes))
            }
            "cycler" => match args.positional.is_empty() {
                true => Err(Error::failed("at least one item has to be provided")),
                false => self.heap.object(Object::Cycler(args.positional, 0)),
            },
            "joiner" => {
                let [separator] = args.bind(name, ["sep"])?;
                let separator = separator.unwrap_or_else(|| ", ".into());
                self.heap.object(Object::Joiner(separator, false))
            }
            "raise_exception" => {
                let [message] = args.bind(name, ["message"])?;
                let message = self.heap.text(&needed(message, name)?)?;
                Err(Error { line: None, kind: Failure::Refused(message.to_string()) })
            }
            "strftime_now" => {
                let [format] = args.bind(name, ["format"])?;
                let format = needed(format, name)?;
                let format = string(&format, name)?;
                moment::strftime(self.now, format).map(Value::from).map_err(Error::failed)
            }
            _ => Err(Error::failed(format!("{name} is not known here: its text is random"))),
        }
    }

    /// What Python's `dict(pairs, name=value)` takes.
    fn entries(&mut self, called: &str, args: Args) -> Result<Vec<(Value, Value)>> {
        let mut positional = args.positional.into_iter();
        let mut entries = Vec::new();
        match positional.next() {
            Some(Value::Map(map)) => {
                self.heap.step(map.len())?;
                entries.extend(map.entries.iter().cloned());
            }
            Some(pairs) => {
                pairs.defined()?;
                for pair in self.iterate(&pairs)? {
                    match &self.iterate(&pair)?[..] {
                        [key, value] => entries.push((key.clone(), value.clone())),
                        other => {
                            let length = other.len();
                            let rule = format!("an item has length {length}; 2 is required");
                            return Err(Error::failed(rule));
                        }
                    }
                }
            }
            None => {}
        }
        if positional.next().is_some() {
            return Err(Error::failed(format!("{called} expected at most 1 argument")));
        }
        entries.extend(args.named.into_iter().map(|(name, value)| ((&*name).into(), value)));
        Ok(entries)
    }
}

fn not_callable(value: &Value) -> Error {
    Error::failed(format!("'{}' object is not callable", value.kind()))
}

/// What a macro takes beside its parameters.
struct Special {
    caller: Option<Value>,
    named: Vec<(Arc<str>, Value)>,
    positional: Vec<Value>,
}

/// The arguments of a macro by parameter, and the rest.
fn bound(code: &Macro, mut args: Args) -> Result<(Vec<Option<Value>>, Special)> {
    let count = code.parameters.len();
    let name = &code.name;
    let positional = args.positional.split_off(count.min(args.positional.len()));
    let mut values: Vec<Option<Value>> = args.positional.into_iter().map(Some).collect();
    for (parameter, _) in &code.parameters[values.len()..] {
        let at = args.named.iter().position(|(known, _)| known == parameter);
        values.push(at.map(|at| args.named.remove(at).1));
    }
    let mut caller = None;
    if code.uses.caller {
        let at = args.named.iter().position(|(known, _)| &**known == "caller");
        caller = at.map(|at| args.named.remove(at).1);
    }
    if let Some((extra, _)) = args.named.first().filter(|_| !code.uses.kwargs) {
        let rule = format!("macro '{name}' takes no keyword argument '{extra}'");
        return Err(Error::failed(rule));
    }
    if !positional.is_empty() && !code.uses.varargs {
        let rule = format!("macro '{name}' takes not more than {count} argument(s)");
        return Err(Error::failed(rule));
    }
    Ok((values, Special { caller, named: args.named, positional }))
}

fn range(args: Args) -> Result<Value> {
    let [a, b, c] = args.in_order("range")?;
    let first = whole(Some(&needed(a, "range")?), 0)?;
    let (start, stop) = match &b {
        None => (0, first),
        stop => (first, whole(stop.as_ref(), 0)?),
    };
    let step = whole(c.as_ref(), 1)?;
    if step == 0 {
        return Err(Error::failed("range() arg 3 must not be zero"));
    }
    let range = Range { start, stop, step };
    if range.len() > MAX_RANGE {
        let rule = format!("Range too big. The sandbox blocks ranges larger than {MAX_RANGE}.");
        return Err(Error::failed(rule));
    }
    Ok(Value::Range(Box::new(range)))
}
