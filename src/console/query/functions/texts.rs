//! Texts and addresses.

use super::*;
use crate::console::query::pattern;
use crate::console::query::value::inet_text;
use Type::{Bool, Inet, Int4, Text};

fn text(arguments: &[Value], make: impl Fn(&str) -> String) -> Result<Value> {
    let [Value::Text(text)] = arguments else { return nothing() };
    Ok(Value::text(make(text)))
}

fn count(arguments: &[Value], count: impl Fn(&str) -> usize) -> Result<Value> {
    let [Value::Text(text)] = arguments else { return nothing() };
    Ok(Value::Int(i64::try_from(count(text)).unwrap_or(i64::MAX)))
}

/// Of the characters from the one with this number on, the first is 1.
fn part(text: &str, start: i64, length: Option<i64>) -> Result<Value> {
    let end = match length {
        Some(length) if length < 0 => {
            let text = "negative substring length not allowed";
            return Err(PgError::error(sqlstate::SUBSTRING_ERROR, text));
        }
        Some(length) => start.saturating_add(length),
        None => i64::MAX,
    };
    let skipped = usize::try_from((start - 1).max(0)).unwrap_or(usize::MAX);
    let taken = usize::try_from((end - start.max(1)).max(0)).unwrap_or(usize::MAX);
    Ok(Value::text(text.chars().skip(skipped).take(taken).collect::<String>()))
}

fn substring(arguments: &[Value]) -> Result<Value> {
    match arguments {
        [Value::Text(text), Value::Int(start)] => part(text, *start, None),
        [Value::Text(text), Value::Int(start), Value::Int(length)] => part(text, *start, Some(*length)),
        _ => nothing(),
    }
}

/// What matches, or what is in the first parentheses of that (PostgreSQL: `textregexsubstr`).
fn matching(cx: &mut Context<'_>, arguments: &[Value]) -> Result<Value> {
    let [Value::Text(text), Value::Text(pattern)] = arguments else { return nothing() };
    cx.step_bytes(text.len())?;
    let regex = cx.regex(pattern, false)?;
    let found =
        regex.captures(text).and_then(|found| if found.len() > 1 { found.get(1) } else { found.get(0) });
    Ok(found.map_or(Value::Null, |part| Value::text(part.as_str())))
}

fn is_matched(cx: &mut Context<'_>, arguments: &[Value], any_case: bool, wanted: bool) -> Result<Value> {
    let [Value::Text(text), Value::Text(pattern)] = arguments else { return nothing() };
    cx.step_bytes(text.len())?;
    Ok(Value::Bool(cx.regex(pattern, any_case)?.is_match(text) == wanted))
}

fn is_like(cx: &mut Context<'_>, arguments: &[Value], any_case: bool, wanted: bool) -> Result<Value> {
    let [Value::Text(text), Value::Text(pattern)] = arguments else { return nothing() };
    Ok(Value::Bool(pattern::like(text, pattern, "\\", any_case, cx)? == wanted))
}

fn regexp_replace(cx: &mut Context<'_>, text: &str, pattern: &str, by: &str, flags: &str) -> Result<Value> {
    if let Some(flag) = flags.chars().find(|flag| !"gi".contains(*flag)) {
        let text = format!("invalid regular expression option: \"{flag}\"");
        return Err(PgError::error(sqlstate::INVALID_PARAMETER_VALUE, text));
    }
    let regex = cx.regex(pattern, flags.contains('i'))?;
    let mut whole = String::new();
    let mut at = 0;
    for found in regex.captures_iter(text) {
        cx.step(1)?;
        let Some(all) = found.get(0) else { continue };
        whole.push_str(&text[at..all.start()]);
        let mut letters = by.chars();
        while let Some(letter) = letters.next() {
            match (letter, if letter == '\\' { letters.next() } else { None }) {
                ('\\', Some('&')) => whole.push_str(all.as_str()),
                ('\\', Some(digit @ '1'..='9')) => {
                    let group = found.get(usize::from(digit as u8 - b'0'));
                    whole.push_str(group.map_or("", |group| group.as_str()));
                }
                ('\\', Some(other)) => whole.push(other),
                (letter, _) => whole.push(letter),
            }
        }
        at = all.end();
        cx.check_length(whole.len())?;
        if !flags.contains('g') {
            break;
        }
    }
    whole.push_str(&text[at..]);
    Ok(Value::text(whole))
}

fn replace(cx: &mut Context<'_>, arguments: &[Value]) -> Result<Value> {
    let [Value::Text(text), Value::Text(from), Value::Text(to)] = arguments else { return nothing() };
    if from.is_empty() {
        return Ok(Value::Text(text.clone()));
    }
    let found = text.matches(&**from).count();
    cx.check_length(
        text.len().saturating_sub(found * from.len()).saturating_add(found.saturating_mul(to.len())),
    )?;
    Ok(Value::text(text.replace(&**from, to)))
}

fn split_part(arguments: &[Value]) -> Result<Value> {
    let [Value::Text(text), Value::Text(by), Value::Int(number)] = arguments else { return nothing() };
    let count = || if by.is_empty() { 1 } else { text.split(&**by).count() };
    let at = match *number {
        0 => {
            let text = "field position must not be zero";
            return Err(PgError::error(sqlstate::INVALID_PARAMETER_VALUE, text));
        }
        1.. => usize::try_from(number - 1).ok(),
        _ => usize::try_from(number.unsigned_abs()).ok().and_then(|back| count().checked_sub(back)),
    };
    let part = at.and_then(|at| match by.is_empty() {
        true => (at == 0).then_some(&**text),
        false => text.split(&**by).nth(at),
    });
    Ok(Value::text(part.unwrap_or_default()))
}

/// The first characters, or all but so many of the last ones.
fn left(arguments: &[Value]) -> Result<Value> {
    let [Value::Text(text), Value::Int(number)] = arguments else { return nothing() };
    let count = usize::try_from(number.unsigned_abs()).unwrap_or(usize::MAX);
    let taken = if *number < 0 { text.chars().count().saturating_sub(count) } else { count };
    Ok(Value::text(text.chars().take(taken).collect::<String>()))
}

fn right(arguments: &[Value]) -> Result<Value> {
    let [Value::Text(text), Value::Int(number)] = arguments else { return nothing() };
    let count = usize::try_from(number.unsigned_abs()).unwrap_or(usize::MAX);
    let skipped = if *number < 0 { count } else { text.chars().count().saturating_sub(count) };
    Ok(Value::text(text.chars().skip(skipped).collect::<String>()))
}

fn pad(cx: &mut Context<'_>, arguments: &[Value], is_left: bool) -> Result<Value> {
    let (text, length, by) = match arguments {
        [Value::Text(text), Value::Int(length)] => (text, *length, " "),
        [Value::Text(text), Value::Int(length), Value::Text(by)] => (text, *length, &**by),
        _ => return nothing(),
    };
    let length = usize::try_from(length.max(0)).unwrap_or(usize::MAX);
    let has = text.chars().count();
    if length <= has {
        return Ok(Value::text(text.chars().take(length).collect::<String>()));
    }
    cx.check_length((length - has).saturating_mul(4).saturating_add(text.len()))?;
    let padding: String = by.chars().cycle().take(length - has).collect();
    Ok(Value::text(if is_left { padding + text } else { format!("{text}{padding}") }))
}

fn trim(arguments: &[Value], at_start: bool, at_end: bool) -> Result<Value> {
    let (text, characters) = match arguments {
        [Value::Text(text)] => (text, " "),
        [Value::Text(text), Value::Text(characters)] => (text, &**characters),
        _ => return nothing(),
    };
    let is_one = |character: char| characters.contains(character);
    let mut trimmed = &**text;
    if at_start {
        trimmed = trimmed.trim_start_matches(is_one);
    }
    if at_end {
        trimmed = trimmed.trim_end_matches(is_one);
    }
    Ok(Value::text(trimmed))
}

fn position(arguments: &[Value]) -> Result<Value> {
    let [Value::Text(text), Value::Text(part)] = arguments else { return nothing() };
    let at = text.find(&**part).map_or(0, |at| text[..at].chars().count() + 1);
    Ok(Value::Int(i64::try_from(at).unwrap_or(i64::MAX)))
}

fn repeat(cx: &mut Context<'_>, arguments: &[Value]) -> Result<Value> {
    let [Value::Text(text), Value::Int(number)] = arguments else { return nothing() };
    let number = usize::try_from((*number).max(0)).unwrap_or(usize::MAX);
    cx.check_length(text.len().saturating_mul(number))?;
    Ok(Value::text(text.repeat(number)))
}

fn initcap(text: &str) -> String {
    let mut is_inside = false;
    let mut cased = String::with_capacity(text.len());
    for character in text.chars() {
        match is_inside {
            true => cased.extend(character.to_lowercase()),
            false => cased.extend(character.to_uppercase()),
        }
        is_inside = character.is_alphanumeric();
    }
    cased
}

fn host(arguments: &[Value]) -> Result<Value> {
    let [Value::Inet(address, _)] = arguments else { return nothing() };
    Ok(Value::text(address.to_string()))
}

pub(super) const FUNCTIONS: &[Function] = &[
    function("~", &[Text, Text], Bool, |cx, a| is_matched(cx, a, false, true)),
    function("!~", &[Text, Text], Bool, |cx, a| is_matched(cx, a, false, false)),
    function("~*", &[Text, Text], Bool, |cx, a| is_matched(cx, a, true, true)),
    function("!~*", &[Text, Text], Bool, |cx, a| is_matched(cx, a, true, false)),
    function("~~", &[Text, Text], Bool, |cx, a| is_like(cx, a, false, true)),
    function("!~~", &[Text, Text], Bool, |cx, a| is_like(cx, a, false, false)),
    function("~~*", &[Text, Text], Bool, |cx, a| is_like(cx, a, true, true)),
    function("!~~*", &[Text, Text], Bool, |cx, a| is_like(cx, a, true, false)),
    function("||", &[Text, Text], Text, |cx, a| match a {
        [Value::Text(a), Value::Text(b)] => {
            cx.check_length(a.len() + b.len())?;
            Ok(Value::text([&**a, &**b].concat()))
        }
        _ => nothing(),
    }),
    function("lower", &[Text], Text, |_, a| text(a, str::to_lowercase)),
    function("upper", &[Text], Text, |_, a| text(a, str::to_uppercase)),
    function("initcap", &[Text], Text, |_, a| text(a, initcap)),
    function("reverse", &[Text], Text, |_, a| text(a, |text| text.chars().rev().collect())),
    function("length", &[Text], Int4, |_, a| count(a, |text| text.chars().count())),
    function("char_length", &[Text], Int4, |_, a| count(a, |text| text.chars().count())),
    function("character_length", &[Text], Int4, |_, a| count(a, |text| text.chars().count())),
    function("octet_length", &[Text], Int4, |_, a| count(a, str::len)),
    function("substring", &[Text, Int4], Text, |_, a| substring(a)),
    function("substring", &[Text, Int4, Int4], Text, |_, a| substring(a)),
    function("substring", &[Text, Text], Text, matching),
    function("substr", &[Text, Int4], Text, |_, a| substring(a)),
    function("substr", &[Text, Int4, Int4], Text, |_, a| substring(a)),
    function("regexp_replace", &[Text, Text, Text], Text, |cx, a| match a {
        [Value::Text(text), Value::Text(pattern), Value::Text(by)] => {
            regexp_replace(cx, text, pattern, by, "")
        }
        _ => nothing(),
    }),
    function("regexp_replace", &[Text, Text, Text, Text], Text, |cx, a| match a {
        [Value::Text(text), Value::Text(pattern), Value::Text(by), Value::Text(flags)] => {
            regexp_replace(cx, text, pattern, by, flags)
        }
        _ => nothing(),
    }),
    function("replace", &[Text, Text, Text], Text, replace),
    function("split_part", &[Text, Text, Int4], Text, |_, a| split_part(a)),
    function("left", &[Text, Int4], Text, |_, a| left(a)),
    function("right", &[Text, Int4], Text, |_, a| right(a)),
    function("lpad", &[Text, Int4], Text, |cx, a| pad(cx, a, true)),
    function("lpad", &[Text, Int4, Text], Text, |cx, a| pad(cx, a, true)),
    function("rpad", &[Text, Int4], Text, |cx, a| pad(cx, a, false)),
    function("rpad", &[Text, Int4, Text], Text, |cx, a| pad(cx, a, false)),
    function("btrim", &[Text], Text, |_, a| trim(a, true, true)),
    function("btrim", &[Text, Text], Text, |_, a| trim(a, true, true)),
    function("ltrim", &[Text], Text, |_, a| trim(a, true, false)),
    function("ltrim", &[Text, Text], Text, |_, a| trim(a, true, false)),
    function("rtrim", &[Text], Text, |_, a| trim(a, false, true)),
    function("rtrim", &[Text, Text], Text, |_, a| trim(a, false, true)),
    function("position", &[Text, Text], Int4, |_, a| position(a)),
    function("strpos", &[Text, Text], Int4, |_, a| position(a)),
    function("starts_with", &[Text, Text], Bool, |_, a| match a {
        [Value::Text(text), Value::Text(start)] => Ok(Value::Bool(text.starts_with(&**start))),
        _ => nothing(),
    }),
    function("repeat", &[Text, Int4], Text, repeat),
    function("quote_literal", &[Text], Text, |_, a| {
        text(a, |text| {
            let quoted = text.replace('\'', "''").replace('\\', "\\\\");
            if quoted.contains('\\') {
                format!(" E'{quoted}'").trim_start().to_owned()
            } else {
                format!("'{quoted}'")
            }
        })
    }),
    function("host", &[Inet], Text, |_, a| host(a)),
    function("text", &[Inet], Text, |_, a| match a {
        [Value::Inet(address, bits)] => Ok(Value::text(inet_text(*address, *bits, true))),
        _ => nothing(),
    }),
    function("family", &[Inet], Int4, |_, a| match a {
        [Value::Inet(address, _)] => Ok(Value::Int(if address.is_ipv4() { 4 } else { 6 })),
        _ => nothing(),
    }),
    function("masklen", &[Inet], Int4, |_, a| match a {
        [Value::Inet(_, bits)] => Ok(Value::Int((*bits).into())),
        _ => nothing(),
    }),
];
