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

/// What the first string of a text holds.
fn value(text: &str, conforming: bool) -> Option<String> {
    let statement = split(text.as_bytes(), conforming).remove(0);
    string_value(text.as_bytes(), &statement.tokens[0])
}

#[test]
fn values_of_strings() {
    for (text, expected) in [
        ("'a''b'", Some("a'b")),
        (r"'a\b'", Some(r"a\b")),
        ("$$a$$", Some("a")),
        ("$t$a$b$t$", Some("a$b")),
        ("$$a", None),
        ("'a", None),
        ("'a''", None),
        ("x'41'", None),
        ("b'1'", None),
        ("a", None),
        // They go on in the next line.
        ("'a' -- c\n\t'b''c'\r'd'", Some("ab'cd")),
        ("'a' 'b'", Some("a")),
        ("E'a\\'' -- c\n 'b\\n'", Some("a'b\n")),
        ("'a'\n'b", None),
    ] {
        assert_eq!(value(text, true).as_deref(), expected, "{text}");
    }
}

/// As PostgreSQL 18 says to `SELECT …`.
#[test]
fn values_of_strings_with_escapes() {
    for (text, expected) in [
        (r"E'a\'\\b'", Some(r"a'\b")),
        (r"E'\b\f\n\r\t\v'", Some("\u{8}\u{c}\n\r\t\u{b}")),
        (r"E'\101\60\0601\1011'", Some("A001A1")),
        // Of more than a byte holds, it is cut.
        (r"E'\501'", Some("A")),
        (r"E'\x41\x4a1\x9\xg'", Some("AJ1\txg")),
        (r"E'\u0041\U0001F600'", Some("A😀")),
        (r"E'\ud83d\ude00\uD83D\U0000de00'", Some("😀😀")),
        (r"E'\ä\q\8'", Some("äq8")),
        (r"E'\xc3\xa4\303\244'", Some("ää")),
        ("E'\\\n'", Some("\n")),
        // The server will not have these.
        (r"E'\u004'", None),
        (r"E'\U0000004'", None),
        (r"E'\u+041'", None),
        (r"E'\ud83d'", None),
        (r"E'\ud83da'", None),
        (r"E'\ude00'", None),
        (r"E'\ud83d\n\ude00'", None),
        (r"E'\u0000'", None),
        (r"E'\x00'", None),
        (r"E'\0'", None),
        (r"E'\U00110000'", None),
        (r"E'\xff'", None),
        (r"E'a\'", None),
    ] {
        assert_eq!(value(text, true).as_deref(), expected, "{text}");
    }
    assert_eq!(value(r"'\x41\'\\'", false).as_deref(), Some(r"A'\"));
}

#[test]
fn values_of_strings_with_characters_by_number() {
    for (text, expected) in [
        ("U&'a'", Some("a")),
        (r"U&'d\0061t\+000061'", Some("data")),
        (r"u&'d!0061t''a!!' uescape '!'", Some("dat'a!")),
        ("U&'a!0062' -- c\n 'c!' UESCAPE $$!$$", None),
        ("U&'a!0062' -- c\n 'c!!' UESCAPE $$!$$", Some("abc!")),
        (r"U&'\\\D83D\+00DE00'", Some(r"\😀")),
        // As the escape itself is written.
        (r"U&'a!0062' uescape E'\041'", Some("ab")),
        (r"U&'a\0062' uescape E'\\'", Some("ab")),
        (r"U&'a\0062' uescape '\\'", Some("ab")),
        (r"U&'\D83D'", None),
        (r"U&'\D83Da'", None),
        (r"U&'\D83D\\'", None),
        (r"U&'\DE00'", None),
        (r"U&'\0000'", None),
        (r"U&'\006'", None),
        (r"U&'\+00006'", None),
        (r"U&'\'", None),
        (r"U&'a' uescape '+'", None),
        (r"U&'a' uescape ''", None),
        ("U&'a", None),
    ] {
        assert_eq!(value(text, true).as_deref(), expected, "{text}");
    }
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
        (r#"U&"d!0061ta" UESCAPE E'\041'"#, "data"),
        (r#"U&"d\0061ta" UESCAPE '\\'"#, "data"),
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
        (3, 2, 1)
    );
}
