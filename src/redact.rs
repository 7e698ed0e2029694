//! Connection strings and URLs as messages may show them: without what should not be known.
//!
//! Messages quote what was typed when it could not be understood, so nothing here relies on its syntax: what looks like a
//! password is one. Too much is hidden rather than too little.

/// What stands in the place of a secret.
const HIDDEN: &str = "***";

/// The text without passwords: `user:***@host`, `password=***`, also where it is no connection string at all.
pub fn redact(text: &str) -> String {
    without_values(&without_user_info(text))
}

/// Whether there is anything to hide.
pub fn holds_secret(text: &str) -> bool {
    redact(text) != text
}

/// Of each word, what is between the first colon (behind a scheme's) and the last `@`: a password in a URI may have `@` and
/// `/` in it although it should not.
fn without_user_info(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for word in text.split_inclusive(char::is_whitespace) {
        let begin = word.find("://").map_or(0, |at| at + 3);
        let secret = word.rfind('@').filter(|at| *at >= begin).and_then(|end| {
            let colon = begin + word[begin..end].find(':')?;
            // Behind a `?` there are no credentials.
            (!word[begin..colon].contains('?')).then_some((colon + 1, end))
        });
        match secret {
            Some((from, to)) => {
                shown.push_str(&word[..from]);
                shown.push_str(HIDDEN);
                shown.push_str(&word[to..]);
            }
            None => shown.push_str(word),
        }
    }
    shown
}

/// Values of names such as `password`, of keywords and of URI parameters.
fn without_values(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(equals) = rest.find('=') {
        let (before, after) = rest.split_at(equals + 1);
        shown.push_str(before);
        rest = after;
        if is_secret(name_at_end(&before[..equals])) {
            let blanks = rest.len() - rest.trim_start().len();
            let value = value_at_start(&rest[blanks..]);
            if value > 0 {
                shown.push_str(&rest[..blanks]);
                shown.push_str(HIDDEN);
                rest = &rest[blanks + value..];
            }
        }
    }
    shown + rest
}

/// The last word, of letters, digits, `-` and `_`.
fn name_at_end(text: &str) -> &str {
    let text = text.trim_end().trim_end_matches(['"', '\'']);
    let begin = text.rfind(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '-');
    begin.map_or(text, |at| text[at..].trim_start_matches(|c: char| !c.is_ascii_alphanumeric() && c != '_'))
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace('-', "_");
    let endings = [
        "password",
        "passwd",
        "passphrase",
        "pwd",
        "token",
        "_key",
        "credential",
        "credentials",
        "signature",
    ];
    // A switch of the object stores.
    if name.ends_with("skip_signature") {
        return false;
    }
    name.contains("secret") || endings.iter().any(|ending| name.ends_with(ending))
}

/// How long the value is: to its quote, or all words up to the next name, as a password with spaces may lack its quotes.
fn value_at_start(text: &str) -> usize {
    if let Some(quote) = text.chars().next().filter(|c| ['\'', '"'].contains(c)) {
        let mut escaped = false;
        let end = text[1..].find(|c| {
            let ends = !escaped && c == quote;
            escaped = !escaped && c == '\\';
            ends
        });
        return end.map_or(text.len(), |at| at + 2);
    }
    let mut end = text.find(|c: char| c.is_whitespace() || "&\"'".contains(c)).unwrap_or(text.len());
    while text[end..].starts_with(char::is_whitespace) {
        let word = text[end..].trim_start();
        let len = word.find(char::is_whitespace).unwrap_or(word.len());
        if len == 0 || word[..len].contains('=') || word[len..].trim_start().starts_with('=') {
            break;
        }
        end = text.len() - word.len() + len;
    }
    end
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn secrets_are_hidden_wherever_they_stand() {
        let check = |text: &str, shown: &str| assert_eq!(redact(text), shown, "{text}");
        check("postgresql://joe:hunter2@host/db", "postgresql://joe:***@host/db");
        check("postgresql://joe:hun@ter/2@host/db", "postgresql://joe:***@host/db");
        check("postgres:/joe:hunter2@host", "postgres:***@host");
        check("joe:hunter2@host:5432", "joe:***@host:5432");
        check("joe:hunter2@host dbname=x", "joe:***@host dbname=x");
        check("s3://key:hunter2@bucket/prefix", "s3://key:***@bucket/prefix");
        check("https://host/x?user=a&password=hunter2&x=1", "https://host/x?user=a&password=***&x=1");
        check("s3://b/p?X-Amz-Signature=hunter2", "s3://b/p?X-Amz-Signature=***");
        check("host=a password=hunter2 user=b", "host=a password=*** user=b");
        check("host=a password = 'hunter\\'2 x' user=b", "host=a password = *** user=b");
        check("password=hunter2 with spaces user=b", "password=*** user=b");
        check("password=hunter2 with spaces", "password=***");
        check("password='hunter2", "password=***");
        check("sslpassword=hunter2", "sslpassword=***");
        check("scram_client_key=aHVudGVyMg==", "scram_client_key=***");
        check("secret-access-key = \"hunter2\"", "secret-access-key = ***");
        check("upstream = \"host=a password=hunter2\"", "upstream = \"host=a password=***\"");
    }

    #[test]
    fn what_is_no_secret_is_shown() {
        for text in [
            "",
            "host",
            "host=a,b port=5432 user=joe passfile=/x sslkey=/y application_name=z",
            "postgresql://joe@host:5432/db?application_name=a:b",
            "az://container@account/prefix",
            "s3://bucket/prefix",
            "[::1]:5432",
            "/var/run/postgresql",
            "password=",
            "ssl-key-file = \"/etc/key\"",
        ] {
            assert_eq!(redact(text), text);
            assert!(!holds_secret(text));
        }
        for text in ["options = { skip-signature = \"true\" }", "aws_skip_signature = true"] {
            assert!(!holds_secret(text), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_and_nothing_is_hidden_twice(text in ".{0,60}") {
            let once = redact(&text);
            let _ = redact(&once);
        }

        #[test]
        fn a_password_in_a_uri_is_never_shown(password in "[a-zA-Z0-9@/:!$?#]{4,12}xyzzy") {
            let shown = redact(&format!("postgresql://joe:{password}@host/db"));
            prop_assert_eq!(shown, "postgresql://joe:***@host/db");
        }
    }
}
