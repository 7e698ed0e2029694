//! What holds for every text.

use proptest::prelude::*;

use super::*;

/// Pieces that mean something, glued at random, find more than random bytes.
fn text() -> impl Strategy<Value = Vec<u8>> {
    const PIECES: &[&str] = &[
        "'",
        "\"",
        "$$",
        "$t$",
        "$1",
        "--",
        "/*",
        "*/",
        "\n",
        " ",
        ";",
        "(",
        ")",
        ",",
        ".",
        "\\",
        "E'",
        "U&\"",
        "=>",
        "::name",
        "select ",
        "with ",
        "recursive ",
        " from ",
        " as ",
        "table ",
        "create ",
        "begin atomic ",
        "case ",
        " end",
        "grant ",
        "true",
        "'mine'",
        "'x'",
        "pg_catalog.",
        "pg_stat_replication",
        "pg_replication_slots",
        "PG_STAT_REPLICATION",
        "pg_drop_replication_slot(",
        "pg_create_physical_replication_slot(",
        "pg_replication_slot_advance(",
        "pg_copy_physical_replication_slot(",
        ".*",
        ")).lsn",
        " order by 1",
    ];
    let piece = prop_oneof![
        8 => proptest::sample::select(PIECES).prop_map(|piece| piece.as_bytes().to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..4),
    ];
    proptest::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

fn session() -> impl Strategy<Value = SqlContext> {
    any::<[bool; 6]>().prop_map(session_of)
}

fn session_of([a, b, c, d, e, f]: [bool; 6]) -> SqlContext {
    SqlContext {
        standard_conforming_strings: (a || e).then_some(a),
        ascii_safe: f,
        server_encoding_utf8: b,
        message: if c { Message::Simple } else { Message::Parse { types: 0 } },
        overlay: d,
        settled: e,
        takes_rows: d || e,
    }
}

fn check_tokens(text: &[u8], session: &SqlContext) {
    let conforming = session.standard_conforming_strings.unwrap_or(true);
    let mut at = 0;
    for token in lex(text, conforming) {
        assert!(token.span.start == at && token.span.end > at, "{token:?} behind {at}");
        at = token.span.end;
    }
    assert_eq!(at, text.len());
    let statements = split(text, conforming);
    let mut at = 0;
    for statement in statements {
        assert!(
            statement.span.start >= at && statement.tokens.iter().all(|t| t.span.end <= statement.span.end)
        );
        at = statement.span.end;
    }
}

/// Rewrites, and checks what comes out. Nothing random gets a function on physical slots past us unless it is not
/// certain what it means, and nothing happens here that the upstream has not been asked about.
fn check_rewriting(text: &[u8], session: &SqlContext) {
    let mut relay = Fake::default();
    let result = rewrite(text, session, &mut relay);
    let changes = |asked: &String| !["slots", "senders"].contains(&asked.as_str());
    assert!(!relay.asked.iter().any(changes), "{:?}", relay.asked);
    assert!(session.overlay || relay.asked.is_empty());
    let forwarded = match (result.call, result.text) {
        (Some(call), _) => {
            assert!(session.settled && session.message == Message::Simple && session.overlay);
            assert!(text.is_ascii() && !text.contains(&b'\\'));
            call.act(&answer(PERMITTED), &mut relay)
        }
        (None, Some(forwarded)) => forwarded,
        (None, None) => return,
    };
    check_tokens(&forwarded, session);
    for statement in split(&forwarded, session.standard_conforming_strings.unwrap_or(true)) {
        let calls = statement.tokens.windows(3).filter(|three| {
            is_identifier(&forwarded, &three[1], "pg_create_physical_replication_slot")
                && three[2].kind == Kind::Open
                && three[0].kind != Kind::Dot
        });
        let names = |word| is_word(&forwarded, &statement.tokens[0], word);
        assert!(calls.count() == 0 || names("grant"), "{}", String::from_utf8_lossy(&forwarded));
    }
}

proptest! {
    #[test]
    fn tokens_cover_every_text(text in text(), session in session()) {
        check_tokens(&text, &session);
    }

    #[test]
    fn nothing_gets_past_us(text in text(), session in session()) {
        check_rewriting(&text, &session);
    }

    #[test]
    fn texts_without_the_names_are_not_touched(text in text(), session in session()) {
        let text = String::from_utf8_lossy(&text).to_ascii_lowercase().replace("replication", "replicant");
        let mut relay = Fake::default();
        prop_assert_eq!(rewrite(text.as_bytes(), &session, &mut relay), Rewritten::default());
        prop_assert!(relay.asked.is_empty());
    }

    #[test]
    fn the_quick_search_finds_what_is_there(before in "[a-zR ]{0,30}", after in "[n_a-z ]{0,20}") {
        let text = format!("{before}select 1 from Pg_Stat_RepLication {after}");
        let (forwarded, _) = rewritten_in(&format!("/* {before} */ {}", &text[before.len()..]), &SqlContext::default());
        prop_assert!(forwarded.contains("WITH pg_stat_replication AS"));
    }
}

#[test]
fn fuzz_overlay() {
    bolero::check!().with_type::<(Vec<u8>, [bool; 6])>().for_each(|(text, flags)| {
        let session = session_of(*flags);
        check_tokens(text, &session);
        check_rewriting(text, &session);
        // Reaches the lexer every time.
        let named = [b"select 1 from pg_stat_replication where ".as_slice(), text].concat();
        check_rewriting(&named, &session);
    });
}
