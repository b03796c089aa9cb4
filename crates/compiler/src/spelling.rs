//! How recipes were spelled before outputs had rules: a `[[pass]]` named `gptq`, `rtn` or `head` was
//! what is a rule of an output now, and `dtype` and `head` stood at the top.

use toml::{Table, Value};

/// The passes that were rules.
const SOLVERS: [&str; 2] = ["gptq", "rtn"];
const HEAD: &str = "head";
/// The keys that were at the top, and are of an output.
const OF_OUTPUT: [&str; 2] = ["dtype", HEAD];

/// The table of a recipe in today's spelling; one that has outputs is.
pub(crate) fn modern(mut table: Table) -> Table {
    if table.contains_key("output") {
        return table;
    }
    let mut output = Table::new();
    for key in OF_OUTPUT {
        output.extend(table.remove(key).map(|value| (key.to_string(), value)));
    }
    if let Some(Value::Array(all)) = table.get_mut("pass") {
        let (rules, rest): (Vec<_>, Vec<_>) = all.drain(..).partition(is_rule);
        *all = rest;
        if all.is_empty() {
            table.remove("pass");
        }
        let rules = rules.into_iter().map(rule).collect();
        output.insert("rule".into(), Value::Array(rules));
    }
    table.insert("output".into(), Value::Array(vec![Value::Table(output)]));
    table
}

/// The keys that lead to a setting in a recipe as its text spells it.
pub(crate) fn as_spelled(at: &[String], text: &Table) -> Vec<String> {
    let keys: Vec<&str> = at.iter().map(String::as_str).collect();
    let own = |keys: &[&str]| keys.iter().map(ToString::to_string).collect();
    if text.contains_key("output") {
        return at.to_vec();
    }
    let passes = || text.get("pass").and_then(Value::as_array).into_iter().flatten();
    let place = |number: &str, rules: bool| {
        let number = number.parse().ok();
        let mut places = passes().enumerate().filter(|(_, pass)| is_rule(pass) == rules);
        number.and_then(|n| places.nth(n)).map(|(place, _)| place.to_string())
    };
    let (number, rest, rules) = match keys[..] {
        ["output", "0", "rule", number, ref rest @ ..] => (number, rest, true),
        ["output", "0", ref rest @ ..] => return own(rest),
        ["pass", number, ref rest @ ..] => (number, rest, false),
        _ => return at.to_vec(),
    };
    match place(number, rules) {
        Some(place) => {
            let rest = rest.iter().map(|key| if *key == "solver" { "name" } else { *key });
            let rest = rest.map(str::to_string);
            ["pass".to_string(), place].into_iter().chain(rest).collect()
        }
        None => at.to_vec(),
    }
}

fn is_rule(pass: &Value) -> bool {
    let name = pass.get("name").and_then(Value::as_str);
    name.is_some_and(|name| name == HEAD || SOLVERS.contains(&name))
}

/// A pass that was a rule, as one.
fn rule(pass: Value) -> Value {
    let Value::Table(mut table) = pass else { return pass };
    let name = table.remove("name");
    let is_head = name.as_ref().and_then(Value::as_str) == Some(HEAD);
    let (of, solver) = if is_head { (HEAD, Some("rtn".into())) } else { ("layers", name) };
    table.insert("of".into(), Value::Array(vec![of.into()]));
    table.extend(solver.map(|solver: Value| ("solver".to_string(), solver)));
    Value::Table(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> Table {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn the_old_spelling_is_read_as_todays() {
        let old = "dtype = \"bf16\"\n[[pass]]\nname = \"fold\"\n[[pass]]\nname = \"gptq\"\nbits = 4\n\
                   [[pass]]\nname = \"head\"\nbits = 8\n";
        let new = "[[pass]]\nname = \"fold\"\n[[output]]\ndtype = \"bf16\"\n\
                   [[output.rule]]\nof = [\"layers\"]\nsolver = \"gptq\"\nbits = 4\n\
                   [[output.rule]]\nof = [\"head\"]\nsolver = \"rtn\"\nbits = 8\n";
        assert_eq!(modern(table(old)), table(new));
        assert_eq!(modern(table(new)), table(new));
    }

    #[test]
    fn what_is_wrong_is_found_where_it_was_written() {
        let text = table("[[pass]]\nname = \"fold\"\n[[pass]]\nname = \"gptq\"\nbits = 4\n");
        let at = |keys: &str| {
            let keys: Vec<String> = keys.split('.').map(str::to_string).collect();
            as_spelled(&keys, &text).join(".")
        };
        assert_eq!(at("output.0.rule.0.bits"), "pass.1.bits");
        assert_eq!(at("output.0.rule.0.solver"), "pass.1.name");
        assert_eq!(at("output.0.dtype"), "dtype");
        assert_eq!(at("pass.0.name"), "pass.0.name");
        assert_eq!(at("calibration.samples"), "calibration.samples");
    }
}
