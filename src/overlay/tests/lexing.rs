//! Tokens and statements.

use super::*;

/// The tokens' texts without white space, joined by blanks, strings as `<…>`, comments as `{…}`.
fn tokens(text: &str, standard_conforming_strings: bool) -> String {
    let shown = lex(text.as_bytes(), standard_conforming_strings).filter_map(|token| {
        let written = &text[token.span.clone()];
        Some(match token.kind {
            Kind::Space => return None,
            Kind::String(_) => format!("<{written}>"),
            Kind::Comment => format!("{{{written}}}"),
            Kind::Quoted | Kind::UnicodeQuoted => format!("[{written}]"),
            _ => written.to_owned(),
        })
    });
    shown.collect::<Vec<_>>().join(" ")
}

#[track_caller]
fn check(text: &str, expected: &str) {
    assert_eq!(tokens(text, true), expected, "{text}");
}

#[test]
fn strings_end_where_postgresql_ends_them() {
    check("'a''b'c", "<'a''b'> c");
    check(r"'a\'b", r"<'a\'> b");
    assert_eq!(tokens(r"'a\'b'c", false), r"<'a\'b'> c");
    check(r"E'a\'b''c\\'d", r"<E'a\'b''c\\'> d");
    check(r"e'\", r"<e'\>");
    check(r"U&'a\'b", r"<U&'a\'> b");
    check(r"n'a\'b", r"n <'a\'> b");
    check("B'0''1'", "<B'0'> <'1'>");
    check("x'1F'y", "<x'1F'> y");
    check("u & 'a'", "u & <'a'>");
    check("'never ends -- ", "<'never ends -- >");
}

#[test]
fn strings_continue_on_the_next_line() {
    check("'a'\n'b'c", "<'a'\n'b'> c");
    check("E'a' -- it goes on\n\t -- and on\n '\\''c", "<E'a' -- it goes on\n\t -- and on\n '\\''> c");
    check("'a' 'b'", "<'a'> <'b'>");
    check("'a'\n/* no */'b'", "<'a'> {/* no */} <'b'>");
    check("'a' -- end", "<'a'> {-- end}");
}

#[test]
fn dollars_quote_number_and_belong_to_names() {
    check("$$a'b$$c", "<$$a'b$$> c");
    check("$t$a$$b$u$t$c", "<$t$a$$b$u$t$> c");
    check("$ä1$ $ä1$", "<$ä1$ $ä1$>");
    check("a$$b$$", "a$$b$$");
    check("$1$$x$$", "$1 <$$x$$>");
    check("$12ab", "$12 ab");
    check("$a b$", "$ a b$");
    check("$a$ never", "<$a$ never>");
    check("1$$x$$", "1 <$$x$$>");
}

#[test]
fn identifiers_are_quoted_or_not() {
    check(r#""a""b" "c"#, r#"["a""b"] ["c]"#);
    check(r#"U&"d\0061t" u&x"#, r#"[U&"d\0061t"] u & x"#);
    check("pg_Catalog.Ä1$", "pg_Catalog . Ä1$");
}

#[test]
fn comments_nest_and_end_operators() {
    check("a /* b /* c */ d */ e", "a {/* b /* c */ d */} e");
    check("a */* b */ c", "a * {/* b */} c");
    check("a +-- b\nc", "a + {-- b} c");
    check("a -- b\rc", "a {-- b} c");
    check("/* never /* ends */", "{/* never /* ends */}");
}

#[test]
fn the_rest_is_punctuation() {
    check("f(a=>1.5,b:=$1)::int[2]", "f ( a => 1.5 , b := $1 ) :: int [ 2 ]");
    check("1..2", "1 . . 2");
    check("t.*;", "t . * ;");
}

#[test]
fn statements_end_at_semicolons_at_top_level() {
    let check = |text: &str, expected: &[&str]| {
        let statements = split(text.as_bytes(), true);
        let texts: Vec<_> = statements.into_iter().map(|statement| &text[statement.span]).collect();
        assert_eq!(texts, expected, "{text}");
    };
    check("", &[]);
    check(" ; /* ; */ ;", &[]);
    check("a; b ';' ;c", &["a", " b ';' ", "c"]);
    check(
        "create rule r as on insert to t do (select 1; select 2); d",
        &["create rule r as on insert to t do (select 1; select 2)", " d"],
    );
    let routine = "create function f() returns int begin atomic select case when a.end then 1 end as end; \
                   select 2; end";
    check(&format!("{routine}; d; e"), &[routine, " d", " e"]);
    check("begin; end; d", &["begin", " end", " d"]);
    check("a); b", &["a)", " b"]);
}

#[test]
fn values_of_strings() {
    let check = |text: &str, expected: Option<&str>| {
        let token = lex(text.as_bytes(), true).next().unwrap();
        assert_eq!(string_value(text.as_bytes(), &token).as_deref(), expected, "{text}");
    };
    check("'a''b'", Some("a'b"));
    check(r"'a\b'", Some(r"a\b"));
    check(r"E'a\'\\b'", Some(r"a'\b"));
    check(r"E'\n'", None);
    check("$$a$$", Some("a"));
    check("$t$a$b$t$", Some("a$b"));
    check("$$a", None);
    check("'a", None);
    check("'a'\n'b'", None);
    check("U&'a'", None);
    check("x'41'", None);
    check("a", None);
}

#[test]
fn what_escapes_a_name_belongs_to_it() {
    let is = |text: &str, name: &str| {
        let statement = split(text.as_bytes(), true).remove(0);
        assert_eq!(statement.tokens.len(), 1, "{text}");
        is_identifier(text.as_bytes(), &statement.tokens[0], name)
    };
    for (text, name) in [
        (r#"U&"d\0061t\+000061""#, "data"),
        (r#"u&"d!0061ta"uescape'!'"#, "data"),
        ("U&\"d!0061ta\" UESCAPE -- c\n $$!$$", "data"),
        (r#"U&"a\\b""#, r"a\b"),
        (r#"U&"a""b""" UESCAPE '!'"#, r#"a"b""#),
    ] {
        assert!(is(text, name) && !is(text, "other") && !is(text, &name[1..]), "{text}");
    }
    for text in [
        r#"U&"d\006""#,
        r#"U&"d\+00061""#,
        r#"U&"d\""#,
        r#"U&"data" uescape '+'"#,
        r#"U&"data" uescape '!!'"#,
    ] {
        assert!(!is(text, "data") && !is(text, "d"), "{text}");
    }
    let tokens = |text: &str| split(text.as_bytes(), true).remove(0).tokens.len();
    assert_eq!(
        (tokens(r#""d" uescape '!'"#), tokens(r#"U&"d" uescape"#), tokens("U&'d' uescape '!'")),
        (3, 2, 3)
    );
}
