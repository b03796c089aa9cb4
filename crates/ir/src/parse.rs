//! Blocks from their printed form ([`crate::print`]): what a test of a pass begins with.
//!
//! Only what is printed is taken: a block that is parsed prints as the same text, down to the spelling of
//! a number. So a text is equal to another exactly if their blocks are.

use crate::block::{Block, BlockId, Spec, Value, WeightId};
use crate::cache::CacheId;
use crate::op::{Activation, Expert, Heads, Op, Rope};
use crate::print::is_plain;
use crate::role::{Projection, Role};
use crate::view::{RowMap, View};
use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;
use tensor::DType;

/// A text that is no printed block.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: expected {expected}, found {found:?}")]
pub struct ParseError {
    /// The line, from 1 on.
    pub line: usize,
    /// What should stand there.
    pub expected: String,
    /// What does, from there to the end of the line.
    pub found: String,
}

impl FromStr for Block<Spec> {
    type Err = ParseError;

    /// Parses what `Display` prints. Whether the block keeps the rules of a program is another question:
    /// [`crate::verify`].
    ///
    /// # Errors
    /// The first place that is not as it would be printed.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut lines = text.lines().enumerate().map(|(i, rest)| Line { number: i + 1, rest });
        let mut first = lines.next().unwrap_or(Line { number: 1, rest: "" });
        let mut parser = Parser { id: first.id()?, ..Parser::default() };
        for line in lines {
            parser.line(line)?;
        }
        let block = parser.finish()?;
        same(text, &block.to_string())?;
        Ok(block)
    }
}

/// Holds a text against how its block is printed.
fn same(text: &str, printed: &str) -> Result<(), ParseError> {
    let (mut found, mut expected) = (text.split('\n'), printed.split('\n'));
    let mut line = 0;
    loop {
        line += 1;
        match (found.next(), expected.next()) {
            (None, None) => return Ok(()),
            (Some(a), Some(b)) if a == b => {}
            (a, b) => {
                let expected =
                    b.map_or_else(|| "nothing more".into(), |b| format!("it as printed, {b:?}"));
                return Err(ParseError { line, expected, found: a.unwrap_or_default().into() });
            }
        }
    }
}

/// What has been parsed of a block.
struct Parser {
    id: BlockId,
    ops: Vec<Op>,
    /// Each with the line that it was read on.
    weights: BTreeMap<u32, (usize, Spec)>,
    /// Of each op that rotates: its index, its line, and the number of its frequencies.
    rotates: Vec<Rotates>,
    tables: Vec<Vec<f32>>,
}

struct Rotates {
    op: usize,
    line: usize,
    table: usize,
}

impl Default for Parser {
    fn default() -> Self {
        let (ops, rotates, tables) = (Vec::new(), Vec::new(), Vec::new());
        Self { id: BlockId::Head, ops, weights: BTreeMap::new(), rotates, tables }
    }
}

impl Parser {
    fn line(&mut self, mut line: Line<'_>) -> Result<(), ParseError> {
        line.expect("  ", "two spaces")?;
        if line.eat("@") {
            line.expect(&format!("{} =", self.tables.len()), "the next list of frequencies")?;
            let mut table = Vec::new();
            while line.eat(" ") {
                table.push(line.number("a frequency")?);
            }
            self.tables.push(table);
            return line.end();
        }
        line.expect(&format!("%{} = ", self.ops.len() + 1), "the next value")?;
        let op = self.op(&mut line)?;
        self.ops.push(op);
        line.end()
    }

    fn op(&mut self, line: &mut Line<'_>) -> Result<Op, ParseError> {
        let at = *line;
        let name = line.word();
        let mut inputs = Vec::new();
        while line.eat(" %") {
            inputs.push(Value(line.number("the number of a value")?));
        }
        let mut weights = Vec::new();
        while let Some(id) = self.weight(line)? {
            weights.push(id);
        }
        let op = match (name, &inputs[..], &weights[..]) {
            ("embed", &[input], &[weight]) => Op::Embed { input, weight },
            ("linear", &[input], &[weight]) => Op::Linear { input, weight, bias: None },
            ("linear", &[input], &[weight, bias]) => Op::Linear { input, weight, bias: Some(bias) },
            ("norm", &[input], &[weight]) => {
                Op::Norm { input, weight, eps: line.parameter("eps")? }
            }
            ("rope", &[input], []) => self.rope(line, input)?,
            ("attend", &[q, k, v], []) => line.attend([q, k, v])?,
            ("route", &[input], []) => {
                let top = line.parameter("top")?;
                Op::Route { input, top, normalized: line.parameter("normalized")? }
            }
            ("experts", &[input, routes], all) if all.len().is_multiple_of(3) => {
                let three = all.chunks_exact(3);
                let experts = three.map(|w| Expert { gate: w[0], up: w[1], down: w[2] }).collect();
                Op::Experts { input, routes, experts, kind: line.activation()? }
            }
            ("activate", &[input], []) => Op::Activate { input, kind: line.activation()? },
            ("scale", &[input], []) => Op::Scale { input, by: line.parameter("by")? },
            ("mul", &[a, b], []) => Op::Mul { a, b },
            ("add", &[a, b], []) => Op::Add { a, b },
            _ => return Err(at.error("an op with the values and the weights that it reads")),
        };
        Ok(op)
    }

    fn rope(&mut self, line: &mut Line<'_>, input: Value) -> Result<Op, ParseError> {
        let head_dim = line.parameter("head_dim")?;
        // What is printed of the list for those who read it is held against it in the end.
        let _: usize = line.parameter("rotary")?;
        line.expect(" inv_freq=", "inv_freq=")?;
        line.word();
        let magnitude = line.parameter("magnitude")?;
        line.expect(" @", "the list of frequencies")?;
        let table = line.number("the number of a list")?;
        self.rotates.push(Rotates { op: self.ops.len(), line: line.number, table });
        let rope = Arc::new(Rope { inv_freq: Vec::new(), magnitude });
        Ok(Op::Rope { input, head_dim, rope })
    }

    /// The next weight of an op, if there is one.
    fn weight(&mut self, line: &mut Line<'_>) -> Result<Option<WeightId>, ParseError> {
        let mut ahead = *line;
        if !ahead.eat(" ") {
            return Ok(None);
        }
        let at = ahead;
        let mut id = self.weights.len() as u32;
        let numbered = ahead.eat("#");
        if numbered {
            id = ahead.number("the number of a weight")?;
            if !ahead.eat(":") {
                *line = ahead;
                let known = self.weights.contains_key(&id).then_some(Some(WeightId(id)));
                return known.ok_or_else(|| at.error("a weight that was read before"));
            }
        }
        let Some(role) = ahead.role() else {
            let expected = "the role of a weight";
            return if numbered { Err(ahead.error(expected)) } else { Ok(None) };
        };
        let spec = ahead.spec(role)?;
        if self.weights.insert(id, (line.number, spec)).is_some() {
            return Err(at.error("a weight that was not read before"));
        }
        *line = ahead;
        Ok(Some(WeightId(id)))
    }

    fn finish(self) -> Result<Block<Spec>, ParseError> {
        let Self { id, mut ops, weights, rotates, tables } = self;
        let mut shared: Vec<(usize, Arc<Rope>)> = Vec::new();
        for Rotates { op, line, table } in rotates {
            let Some(Op::Rope { rope, .. }) = ops.get_mut(op) else { continue };
            let found = format!("@{table}");
            let Some(inv_freq) = tables.get(table) else {
                let expected = "a list of frequencies that stands below the ops".into();
                return Err(ParseError { line, expected, found });
            };
            let magnitude = rope.magnitude;
            let same = |(of, rope): &&(usize, Arc<Rope>)| {
                *of == table && rope.magnitude.to_bits() == magnitude.to_bits()
            };
            *rope = match shared.iter().find(same) {
                Some((_, rope)) => Arc::clone(rope),
                None => {
                    let made = Arc::new(Rope { inv_freq: inv_freq.clone(), magnitude });
                    shared.push((table, Arc::clone(&made)));
                    made
                }
            };
        }
        let beyond = (0u32..).zip(&weights).find(|(i, (id, _))| i != *id);
        if let Some((_, (id, (line, _)))) = beyond {
            let expected = "a number below the count of weights".into();
            return Err(ParseError { line: *line, expected, found: format!("#{id}") });
        }
        let weights = weights.into_values().map(|(_, spec)| spec).collect();
        Ok(Block { id, ops, weights })
    }
}

/// What is left of a line.
#[derive(Clone, Copy)]
struct Line<'a> {
    number: usize,
    rest: &'a str,
}

impl<'a> Line<'a> {
    fn error(&self, expected: impl Into<String>) -> ParseError {
        let found = self.rest.chars().take(60).collect();
        ParseError { line: self.number, expected: expected.into(), found }
    }

    fn eat(&mut self, text: &str) -> bool {
        let rest = self.rest.strip_prefix(text);
        rest.map(|rest| self.rest = rest).is_some()
    }

    fn expect(&mut self, text: &str, what: &str) -> Result<(), ParseError> {
        if self.eat(text) { Ok(()) } else { Err(self.error(format!("{what}, {text:?}"))) }
    }

    fn end(&self) -> Result<(), ParseError> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.error("the end of the line")) }
    }

    /// What there is before the next of these, or the end.
    fn until(&mut self, ends: &[char]) -> &'a str {
        let (word, rest) = self.rest.split_at(self.rest.find(ends).unwrap_or(self.rest.len()));
        self.rest = rest;
        word
    }

    fn word(&mut self) -> &'a str {
        self.until(&[' '])
    }

    fn number<T: FromStr>(&mut self, what: &str) -> Result<T, ParseError> {
        let at = *self;
        let text = self.until(&[' ', ':', ',', ']', '/', 'x']);
        text.parse().map_err(|_| at.error(what))
    }

    fn parameter<T: FromStr>(&mut self, key: &str) -> Result<T, ParseError> {
        self.expect(&format!(" {key}="), "a setting")?;
        let at = *self;
        self.word().parse().map_err(|_| at.error(format!("a value of {key}")))
    }

    fn id(&mut self) -> Result<BlockId, ParseError> {
        let at = *self;
        let id = match self.until(&[':']) {
            "embedding" => Some(BlockId::Embedding),
            "head" => Some(BlockId::Head),
            other => {
                let layer = other.strip_prefix("layer ").and_then(|n| n.parse().ok());
                layer.map(BlockId::Layer)
            }
        };
        let id = id.ok_or_else(|| at.error("a block: embedding, head, or layer and its number"))?;
        self.expect(":", "a colon")?;
        self.end().map(|()| id)
    }

    fn activation(&mut self) -> Result<Activation, ParseError> {
        self.expect(" Silu", "an activation").map(|()| Activation::Silu)
    }

    fn attend(&mut self, [q, k, v]: [Value; 3]) -> Result<Op, ParseError> {
        self.expect(" heads=", "a setting")?;
        let query = self.number("the number of query heads")?;
        self.expect("/", "a slash")?;
        let kv = self.number("the number of key heads")?;
        self.expect("x", "an x")?;
        let heads = Heads { query, kv, dim: self.number("the size of a head")? };
        let scale = self.parameter("scale")?;
        let cache = CacheId(self.parameter("cache")?);
        let window = match self.rest.is_empty() {
            true => None,
            false => Some(self.parameter("window")?),
        };
        Ok(Op::Attend { q, k, v, heads, scale, window, cache })
    }

    /// A role and what ends it; nothing is taken if there is none.
    fn role(&mut self) -> Option<Role> {
        let mut ahead = *self;
        let role = role(ahead.until(&['=', ' ']))?;
        ahead.eat("=").then(|| {
            *self = ahead;
            role
        })
    }

    /// The rest of a weight, after its role.
    fn spec(&mut self, role: Role) -> Result<Spec, ParseError> {
        let tensor = self.name()?;
        self.expect(":", "a colon")?;
        let at = *self;
        let dtype = DType::parse(self.until(&['[', ' ']));
        let dtype = dtype.ok_or_else(|| at.error("a dtype"))?;
        self.expect("[", "the shape")?;
        let mut shape = Vec::new();
        while !self.eat("]") {
            if !shape.is_empty() {
                self.expect(", ", "the next size")?;
            }
            shape.push(self.number("a size")?);
        }
        let at = if self.eat("@") { self.view()? } else { View::whole(&*tensor) };
        Ok(Spec { role, tensor, at, shape, dtype })
    }

    /// Where a weight lies.
    fn view(&mut self) -> Result<View, ParseError> {
        let mut view = View::whole(self.name()?);
        while self.eat("[") {
            let at = *self;
            let step = || at.error("what is read of a stored tensor");
            let number = |text: &str| text.parse().map_err(|_| step());
            let text = self.until(&[']']);
            self.expect("]", "a bracket")?;
            if let Some(inputs) = text.strip_prefix("T ") {
                view.transposed = Some(number(inputs)?);
            } else if let Some(head) = text.strip_prefix("paired ") {
                view.rows = RowMap::Paired(number(head)?);
            } else if let Some(first) = text.strip_suffix("..") {
                view.rows = RowMap::From(number(first)?);
            } else {
                view.index = Some(number(text)?);
            }
        }
        Ok(view)
    }

    fn name(&mut self) -> Result<String, ParseError> {
        let at = *self;
        if !self.eat("\"") {
            let name = self.until(&[':', '[', ' ']);
            return is_plain(name).then(|| name.into()).ok_or_else(|| at.error("a name"));
        }
        let mut name = String::new();
        let mut escaped = false;
        for (i, c) in self.rest.char_indices() {
            match c {
                '"' if !escaped => {
                    let quoted = &self.rest[..i];
                    self.rest = &self.rest[i + 1..];
                    unescape(quoted, &mut name).ok_or_else(|| at.error("a quoted name"))?;
                    return Ok(name);
                }
                _ => escaped = c == '\\' && !escaped,
            }
        }
        Err(at.error("a name that ends in a quote"))
    }
}

/// Undoes what `Debug` of a string does to what is between its quotes.
fn unescape(quoted: &str, out: &mut String) -> Option<()> {
    let mut chars = quoted.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        out.push(match chars.next()? {
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            '0' => '\0',
            c @ ('\\' | '"' | '\'') => c,
            'u' => {
                let (code, rest) = chars.as_str().strip_prefix('{')?.split_once('}')?;
                chars = rest.chars();
                char::from_u32(u32::from_str_radix(code, 16).ok()?)?
            }
            _ => return None,
        });
    }
    Some(())
}

/// A role as it is printed, with dots for blanks.
fn role(text: &str) -> Option<Role> {
    let projection = |name: &str| Projection::ALL.into_iter().find(|p| p.name() == name);
    match text {
        "table" => Some(Role::Table),
        "norm" => Some(Role::Norm),
        "other" => Some(Role::Other),
        _ => match text.split('.').collect::<Vec<_>>()[..] {
            [of] => projection(of).map(Role::Matrix),
            [of, "bias"] => projection(of).map(Role::Bias),
            ["expert", number, of] => Some(Role::Expert(number.parse().ok()?, projection(of)?)),
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYER: &str = "layer 7:
  %1 = norm %0 norm=a.norm:BF16[8] eps=1e-5
  %2 = linear %1 q=a.q:F32[8, 8] q.bias=a.b:F16[8]
  %3 = rope %2 head_dim=4 rotary=4 inv_freq=1e0..1e-2 magnitude=1 @0
  %4 = rope %1 head_dim=4 rotary=2 inv_freq=5e-1..5e-1 magnitude=1.2 @1
  %5 = rope %4 head_dim=4 rotary=4 inv_freq=1e0..1e-2 magnitude=1 @0
  %6 = attend %3 %5 %1 heads=2/2x4 scale=0.5 cache=7 window=9
  %7 = linear %6 router=r:F32[2, 8]@q[paired 2]
  %8 = route %7 top=1 normalized=true
  %9 = experts %6 %8 #5:expert.0.gate=g:F32[4, 8]@s[1][0..] #4:expert.0.up=u:F32[4, 8]@\"s t\"[1][T 8][4..] expert.0.down=d:F32[8, 4] #5 #4 #6 Silu
  %10 = activate %9 Silu
  %11 = scale %10 by=-5e-1
  %12 = mul %11 %11
  %13 = add %12 %0
  %14 = linear %13 other=\"odd \\\"name\\\\: \\u{202e}\\n\":U8[]
  @0 = 1e0 1e-2
  @1 = 5e-1
";

    #[test]
    fn what_is_printed_is_parsed() {
        let block: Block<Spec> = LAYER.parse().unwrap();
        assert_eq!(block.to_string(), LAYER);
        assert_eq!(block.to_string().parse(), Ok(block.clone()));
        assert_eq!(block.weights[7].tensor, "odd \"name\\: \u{202e}\n");
        let at = View { index: Some(1), transposed: Some(8), ..View::whole("s t") };
        assert_eq!(block.weights[4].at, View { rows: RowMap::From(4), ..at });
        assert_eq!(block.weights[5].role, Role::Expert(0, Projection::Gate));
        assert!(matches!(block.ops[1], Op::Linear { bias: Some(WeightId(2)), .. }));
        assert!(matches!(block.ops[10], Op::Scale { by: -0.5, .. }));
        let ropes = block.ops.iter().filter_map(|op| match op {
            Op::Rope { rope, .. } => Some(rope),
            _ => None,
        });
        let ropes = ropes.collect::<Vec<_>>();
        assert!(Arc::ptr_eq(ropes[0], ropes[2]));
        assert_eq!(*ropes[1].as_ref(), Rope { inv_freq: vec![0.5], magnitude: 1.2 });
        for end in ["embedding:\n  %1 = embed %0 table=t:F16[3, 2]\n", "head:\n"] {
            assert_eq!(end.parse::<Block<Spec>>().unwrap().to_string(), end);
        }
    }

    /// Whatever is damaged is refused, or is another block that prints as the text does.
    #[test]
    fn no_damage_is_read_over() {
        let printed_or_refused = |text: String| {
            if let Ok(block) = text.parse::<Block<Spec>>() {
                assert_eq!(block.to_string(), text);
            }
        };
        for at in 0..LAYER.len() {
            printed_or_refused(LAYER[..at].into());
            for put in ["", " ", "0", "9", "-", ":", "#", "%", "\"", "\n", "\\", "\u{e9}"] {
                printed_or_refused(format!("{}{put}{}", &LAYER[..at], &LAYER[at + 1..]));
                printed_or_refused(format!("{}{put}{}", &LAYER[..at], &LAYER[at..]));
            }
        }
    }

    #[test]
    fn an_error_says_where_and_what() {
        for (from, to, expected) in [
            (
                "layer 7",
                "layer x",
                "line 1: expected a block: embedding, head, or layer and its number, found \"layer x:\"",
            ),
            (
                "%2 = linear",
                "%3 = linear",
                "line 3: expected the next value, \"%2 = \", found \"%3 = linear",
            ),
            (
                "norm %0",
                "normal %0",
                "line 2: expected an op with the values and the weights that it reads, found \"normal %0",
            ),
            (
                "eps=1e-5",
                "eps=0.00001",
                "line 2: expected it as printed, \"  %1 = norm %0 norm=a.norm:BF16[8] eps=1e-5\"",
            ),
            ("eps=1e-5", "eps=tiny", "line 2: expected a value of eps, found \"tiny\""),
            ("rotary=2", "rotary=4", "line 5: expected it as printed, "),
            ("BF16[8]", "BF17[8]", "line 2: expected a dtype, found \"BF17[8] eps=1e-5\""),
            (
                "#5 #4 #6",
                "#5 #4 #7",
                "line 10: expected a weight that was read before, found \"#7 Silu\"",
            ),
            (
                "other=",
                "#99:other=",
                "line 15: expected a number below the count of weights, found \"#99\"",
            ),
            (
                "@1 = ",
                "@2 = ",
                "line 17: expected the next list of frequencies, \"1 =\", found \"2 = 5e-1\"",
            ),
            (
                "  @1 = 5e-1\n",
                "",
                "line 5: expected a list of frequencies that stands below the ops, found \"@1\"",
            ),
            (
                "[paired 2]",
                "[by 2]",
                "line 8: expected what is read of a stored tensor, found \"by 2]\"",
            ),
            (" window=9", " window=9 ", "line 7: expected the end of the line"),
            ("add %12 %0", "add  %12 %0", "line 14: expected an op"),
            ("q.bias=", "q.tilt=", "line 3: expected the end of the line, found \" q.tilt="),
        ] {
            let text = LAYER.replacen(from, to, 1);
            let error = text.parse::<Block<Spec>>().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}\nis not\n{expected}");
        }
    }
}
