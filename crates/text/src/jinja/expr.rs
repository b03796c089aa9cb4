//! Expressions, with the precedence that jinja2 gives its operators.

use super::ast::{Arguments, Comparison, Expr, Kind, Operator};
use super::lexer::Token;
use super::parser::{MAX_NESTED, Parser};
use super::value::Value;
use super::{Error, Result, is};

impl Arguments {
    pub(super) fn depth(&self) -> usize {
        let named = self.named.iter().map(|(_, value)| value);
        let more = self.list.iter().chain(&self.map);
        deepest(self.positional.iter().chain(named).chain(more))
    }
}

fn deepest<'a>(all: impl IntoIterator<Item = &'a Expr>) -> usize {
    all.into_iter().map(|e| e.depth).max().unwrap_or(0)
}

impl Parser {
    /// An expression over others, the deepest of which has this depth.
    pub(super) fn node(&self, kind: Kind, line: usize, depth: usize) -> Result<Expr> {
        if depth >= MAX_NESTED {
            let rule = format!("nests more than {MAX_NESTED} levels deep");
            return Err(Error::failed(rule).at(line));
        }
        Ok(Expr { kind, line, depth: depth + 1 })
    }

    /// An expression; without conditional ones after `for ... in` and `if`.
    pub(super) fn expression(&mut self, conditional: bool) -> Result<Expr> {
        self.deeper(|p| if conditional { p.conditional() } else { p.or() })
    }

    fn conditional(&mut self) -> Result<Expr> {
        let (mut line, unknown) = (self.line(), self.unknown.len());
        let mut value = self.or()?;
        while self.skip_name("if") {
            let test = self.or()?;
            let otherwise =
                if self.skip_name("else") { Some(self.deeper(Self::conditional)?) } else { None };
            let depth = deepest([&value, &test].into_iter().chain(&otherwise));
            value =
                self.node(Kind::Conditional(Box::new((test, value, otherwise))), line, depth)?;
            self.unknown.truncate(unknown);
            line = self.line();
        }
        Ok(value)
    }

    fn or(&mut self) -> Result<Expr> {
        let line = self.line();
        let mut left = self.and()?;
        while self.skip_name("or") {
            let right = self.and()?;
            let depth = deepest([&left, &right]);
            left = self.node(Kind::Or(Box::new((left, right))), line, depth)?;
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Expr> {
        let line = self.line();
        let mut left = self.not()?;
        while self.skip_name("and") {
            let right = self.not()?;
            let depth = deepest([&left, &right]);
            left = self.node(Kind::And(Box::new((left, right))), line, depth)?;
        }
        Ok(left)
    }

    fn not(&mut self) -> Result<Expr> {
        let line = self.line();
        if !self.skip_name("not") {
            return self.comparison();
        }
        let value = self.deeper(Self::not)?;
        let depth = value.depth;
        self.node(Kind::Not(Box::new(value)), line, depth)
    }

    fn comparison(&mut self) -> Result<Expr> {
        const SIGNS: [(&str, Comparison); 6] = [
            ("==", Comparison::Equal),
            ("!=", Comparison::NotEqual),
            ("<", Comparison::Less),
            ("<=", Comparison::LessEqual),
            (">", Comparison::Greater),
            (">=", Comparison::GreaterEqual),
        ];
        let line = self.line();
        let first = self.sum()?;
        let mut rest = Vec::new();
        loop {
            let sign = SIGNS.iter().find(|(sign, _)| self.is_sign(sign)).map(|(_, kind)| *kind);
            let negated =
                self.is_name("not") && matches!(self.after(), Token::Name(name) if name == "in");
            let kind = match sign {
                Some(kind) => {
                    self.next();
                    kind
                }
                None if self.skip_name("in") => Comparison::In,
                None if negated => {
                    self.next();
                    self.next();
                    Comparison::NotIn
                }
                None => break,
            };
            rest.push((kind, self.sum()?));
        }
        if rest.is_empty() {
            return Ok(first);
        }
        let depth = first.depth.max(deepest(rest.iter().map(|(_, value)| value)));
        self.node(Kind::Compare(Box::new(first), rest), line, depth)
    }

    fn operators(
        &mut self,
        signs: &[(&'static str, Operator)],
        part: fn(&mut Self) -> Result<Expr>,
    ) -> Result<Expr> {
        let line = self.line();
        let mut left = part(self)?;
        while let Some((sign, operator)) = signs.iter().find(|(sign, _)| self.is_sign(sign)) {
            self.sign(sign)?;
            let right = part(self)?;
            let depth = deepest([&left, &right]);
            left = self.node(Kind::Binary(*operator, Box::new((left, right))), line, depth)?;
        }
        Ok(left)
    }

    fn sum(&mut self) -> Result<Expr> {
        self.operators(&[("+", Operator::Add), ("-", Operator::Subtract)], Self::concat)
    }

    fn concat(&mut self) -> Result<Expr> {
        let line = self.line();
        let mut parts = vec![self.product()?];
        while self.skip_sign("~") {
            parts.push(self.product()?);
        }
        match parts.len() {
            1 => parts.pop().ok_or_else(|| self.failed("expected an expression")),
            _ => {
                let depth = deepest(&parts);
                self.node(Kind::Concat(parts), line, depth)
            }
        }
    }

    fn product(&mut self) -> Result<Expr> {
        let signs = [
            ("*", Operator::Multiply),
            ("/", Operator::Divide),
            ("//", Operator::FloorDivide),
            ("%", Operator::Modulo),
        ];
        self.operators(&signs, Self::power)
    }

    fn power(&mut self) -> Result<Expr> {
        self.operators(&[("**", Operator::Power)], |p| p.unary(true))
    }

    fn unary(&mut self, filtered: bool) -> Result<Expr> {
        let line = self.line();
        let negative = self.is_sign("-");
        let value = if negative || self.is_sign("+") {
            self.next();
            let value = self.deeper(|p| p.unary(false))?;
            let depth = value.depth;
            let value = Box::new(value);
            let kind = if negative { Kind::Negative(value) } else { Kind::Positive(value) };
            self.node(kind, line, depth)?
        } else {
            self.primary()?
        };
        let value = self.postfix(value)?;
        if filtered { self.filtered(value) } else { Ok(value) }
    }

    fn postfix(&mut self, mut value: Expr) -> Result<Expr> {
        loop {
            value = match self.token() {
                Token::Sign(".") => self.attribute(value)?,
                Token::Sign("[") => self.subscript(value)?,
                Token::Sign("(") => self.call(value)?,
                _ => return Ok(value),
            };
        }
    }

    fn filtered(&mut self, mut value: Expr) -> Result<Expr> {
        loop {
            value = match self.token() {
                Token::Sign("|") => {
                    self.next();
                    self.filter(Some(value))?
                }
                Token::Name(name) if name == "is" => self.test(value)?,
                Token::Sign("(") => self.call(value)?,
                _ => return Ok(value),
            };
        }
    }

    fn call(&mut self, value: Expr) -> Result<Expr> {
        let line = self.line();
        let arguments = self.arguments()?;
        let depth = value.depth.max(arguments.depth());
        self.node(Kind::Call(Box::new((value, arguments))), line, depth)
    }

    fn attribute(&mut self, value: Expr) -> Result<Expr> {
        let line = self.line();
        self.next();
        let depth = value.depth;
        match self.next() {
            Token::Name(name) => {
                self.node(Kind::Attribute(Box::new(value), name.into()), line, depth)
            }
            Token::Integer(index) => {
                let index = self.node(Kind::Const(Value::Integer(index)), line, 0)?;
                self.node(Kind::Item(Box::new((value, index))), line, depth)
            }
            _ => Err(Error::failed("expected name or number").at(line)),
        }
    }

    fn subscript(&mut self, value: Expr) -> Result<Expr> {
        let line = self.line();
        self.next();
        let mut parts: Vec<std::result::Result<Expr, [Option<Expr>; 3]>> = Vec::new();
        while !self.is_sign("]") {
            if !parts.is_empty() {
                self.sign(",")?;
            }
            parts.push(self.subscribed()?);
        }
        self.sign("]")?;
        let depth = value.depth;
        match (parts.pop(), parts.is_empty()) {
            (Some(Ok(index)), true) => {
                let depth = depth.max(index.depth);
                self.node(Kind::Item(Box::new((value, index))), line, depth)
            }
            (Some(Err(bounds)), true) => {
                let depth = depth.max(deepest(bounds.iter().flatten()));
                self.node(Kind::Slice(Box::new((value, bounds))), line, depth)
            }
            (Some(last), false) => {
                parts.push(last);
                let all: Vec<Expr> = parts.into_iter().filter_map(|part| part.ok()).collect();
                let inner = deepest(&all);
                let index = self.node(Kind::Tuple(all), line, inner)?;
                let depth = depth.max(index.depth);
                self.node(Kind::Item(Box::new((value, index))), line, depth)
            }
            (None, _) => Err(Error::failed("expected a subscript").at(line)),
        }
    }

    /// An index, or the three parts of a slice.
    fn subscribed(&mut self) -> Result<std::result::Result<Expr, [Option<Expr>; 3]>> {
        let mut bounds = [None, None, None];
        if !self.is_sign(":") {
            let index = self.expression(true)?;
            if !self.is_sign(":") {
                return Ok(Ok(index));
            }
            bounds[0] = Some(index);
        }
        for bound in &mut bounds[1..] {
            if !self.skip_sign(":") {
                break;
            }
            if !self.is_sign(":") && !self.is_sign("]") && !self.is_sign(",") {
                *bound = Some(self.expression(true)?);
            }
        }
        Ok(Err(bounds))
    }

    /// A test, after the value that it is of.
    fn test(&mut self, value: Expr) -> Result<Expr> {
        let line = self.line();
        self.next();
        let negated = self.skip_name("not");
        let name = self.dotted()?;
        if !is::is_known(&name) {
            self.unknown.push(Error::failed(format!("No test named '{name}'.")).at(line));
        }
        let arguments = match self.token() {
            Token::Sign("(") => self.arguments()?,
            Token::Name(word) if matches!(&**word, "else" | "or" | "and") => Arguments::default(),
            Token::Name(word) if word == "is" => {
                return Err(self.failed("You cannot chain multiple tests with is"));
            }
            Token::Name(_)
            | Token::Text(_)
            | Token::Integer(_)
            | Token::Float(_)
            | Token::Sign("[" | "{") => {
                let argument = self.primary()?;
                let argument = self.postfix(argument)?;
                Arguments { positional: vec![argument], ..Arguments::default() }
            }
            _ => Arguments::default(),
        };
        let depth = value.depth.max(arguments.depth());
        let test = self.node(Kind::Test(Box::new((value, arguments)), name), line, depth)?;
        if !negated {
            return Ok(test);
        }
        let depth = test.depth;
        self.node(Kind::Not(Box::new(test)), line, depth)
    }

    pub(super) fn arguments(&mut self) -> Result<Arguments> {
        self.deeper(|p| {
            p.sign("(")?;
            let mut all = Arguments::default();
            let mut first = true;
            while !p.is_sign(")") {
                if !std::mem::take(&mut first) {
                    p.sign(",")?;
                    if p.is_sign(")") {
                        break;
                    }
                }
                p.argument(&mut all)?;
            }
            p.sign(")")?;
            Ok(all)
        })
    }

    fn argument(&mut self, all: &mut Arguments) -> Result<()> {
        let wrong = |p: &Self| p.failed("invalid syntax for function call expression");
        if self.is_sign("*") {
            if all.list.is_some() || all.map.is_some() {
                return Err(wrong(self));
            }
            self.next();
            all.list = Some(self.expression(true)?);
            return Ok(());
        }
        if self.is_sign("**") {
            if all.map.is_some() {
                return Err(wrong(self));
            }
            self.next();
            all.map = Some(self.expression(true)?);
            return Ok(());
        }
        if matches!(self.token(), Token::Name(_)) && *self.after() == Token::Sign("=") {
            if all.map.is_some() {
                return Err(wrong(self));
            }
            let name = self.name()?;
            self.next();
            if all.named.iter().any(|(known, _)| *known == name) {
                return Err(self.failed(format!("keyword argument repeated: {name}")));
            }
            let value = self.expression(true)?;
            all.named.push((name, value));
            return Ok(());
        }
        if all.list.is_some() || all.map.is_some() || !all.named.is_empty() {
            return Err(wrong(self));
        }
        all.positional.push(self.expression(true)?);
        Ok(())
    }

    fn primary(&mut self) -> Result<Expr> {
        let line = self.line();
        let constant = |p: &Self, value: Value| p.node(Kind::Const(value), line, 0);
        match self.next() {
            Token::Name(name) => match &*name {
                "true" | "True" => constant(self, Value::Bool(true)),
                "false" | "False" => constant(self, Value::Bool(false)),
                "none" | "None" => constant(self, Value::None),
                _ => {
                    for uses in &mut self.uses {
                        uses.caller |= name == "caller";
                        uses.kwargs |= name == "kwargs";
                        uses.varargs |= name == "varargs";
                    }
                    self.node(Kind::Name(name.into()), line, 0)
                }
            },
            Token::Text(mut text) => {
                while let Token::Text(more) = self.token() {
                    text.push_str(more);
                    self.next();
                }
                constant(self, text.into())
            }
            Token::Integer(number) => constant(self, Value::Integer(number)),
            Token::Float(number) => constant(self, Value::Float(number)),
            Token::Sign("(") => {
                let value = self.deeper(|p| p.parenthesized(line))?;
                self.sign(")")?;
                Ok(value)
            }
            Token::Sign("[") => {
                let all = self.separated("]")?;
                let depth = deepest(&all);
                self.node(Kind::List(all), line, depth)
            }
            Token::Sign("{") => self.map(line),
            found => Err(Error::failed(format!("unexpected '{}'", found.described())).at(line)),
        }
    }

    fn parenthesized(&mut self, line: usize) -> Result<Expr> {
        if self.is_sign(")") {
            return self.node(Kind::Tuple(Vec::new()), line, 0);
        }
        self.tuple(true, &[])
    }

    fn separated(&mut self, end: &'static str) -> Result<Vec<Expr>> {
        let mut all = Vec::new();
        while !self.is_sign(end) {
            if !all.is_empty() {
                self.sign(",")?;
                if self.is_sign(end) {
                    break;
                }
            }
            all.push(self.expression(true)?);
        }
        self.sign(end)?;
        Ok(all)
    }

    fn map(&mut self, line: usize) -> Result<Expr> {
        let mut all = Vec::new();
        while !self.is_sign("}") {
            if !all.is_empty() {
                self.sign(",")?;
                if self.is_sign("}") {
                    break;
                }
            }
            let key = self.expression(true)?;
            self.sign(":")?;
            all.push((key, self.expression(true)?));
        }
        self.sign("}")?;
        let depth = deepest(all.iter().flat_map(|(key, value)| [key, value]));
        self.node(Kind::Dict(all), line, depth)
    }

    /// An expression, or several with commas between them, up to a tag's end or one of these names.
    pub(super) fn tuple(&mut self, conditional: bool, ends: &[&str]) -> Result<Expr> {
        let line = self.line();
        let mut all = Vec::new();
        let mut is_tuple = false;
        loop {
            let ended = matches!(self.token(), Token::VariableEnd | Token::BlockEnd)
                || self.is_sign(")")
                || ends.iter().any(|end| self.is_name(end));
            if ended {
                break;
            }
            all.push(self.expression(conditional)?);
            if !self.skip_sign(",") {
                break;
            }
            is_tuple = true;
        }
        if !is_tuple {
            let found = self.token().described();
            let nothing = || self.failed(format!("Expected an expression, got '{found}'"));
            return all.pop().ok_or_else(nothing);
        }
        let depth = deepest(&all);
        self.node(Kind::Tuple(all), line, depth)
    }
}
