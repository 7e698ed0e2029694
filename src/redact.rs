//! Connection strings, URLs, headers and commands as messages may show them: without what should not be known.
//!
//! Messages quote what was typed when it could not be understood, and what programs have said, so nothing here relies on a
//! syntax: what looks like a password is one. Too much is hidden rather than too little.

/// What stands in the place of a secret.
const HIDDEN: &str = "***";
const QUOTES: [char; 2] = ['"', '\''];
/// A word that is as long as this and looks like a token is one.
const TOKEN: usize = 16;

/// The text without passwords: `user:***@host`, `password=***`, `Authorization: ***`, `--token ***`, also where it is no
/// connection string at all.
pub fn redact(text: &str) -> String {
    let text = without_values(&without_user_info(text));
    without_arguments(&without_schemes(&without_headers(&text)))
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
    without(text, '=', |named, rest| {
        let name = name_at_end(named);
        let is_parameter = before_name(named, name).ends_with(['?', '&']);
        let value = value_at_start(rest);
        match is_secret(name) {
            // A message goes on behind a URL; only what people make up may have spaces.
            true if is_parameter && !is_made_up(name) => value.min(word_at_start(rest)),
            true => value,
            // Of some interfaces.
            false if is_parameter && name.eq_ignore_ascii_case("key") => value.min(word_at_start(rest)),
            false => 0,
        }
    })
}

/// Of lines of headers, of JSON and of YAML, what is behind the colon of such a name; of headers that say who asks, all of it.
fn without_headers(text: &str) -> String {
    without(text, ':', |named, rest| {
        let name = name_at_end(named);
        let before = before_name(named, name);
        // A path, and what is wrong with the file; and what was hidden as a user's.
        let is_other = before.ends_with('/') || rest.starts_with(['/', ':']) || rest.starts_with("***@");
        if is_other || !is_secret(name) {
            return 0;
        }
        match before.chars().next_back().filter(|c| QUOTES.contains(c)) {
            _ if rest.starts_with(QUOTES) => quoted_at_start(rest),
            // The header is an argument, and the value what is left of it.
            Some(quote) if says_who_asks(name) => rest.find([quote, '\n']).unwrap_or(rest.len()),
            None if says_who_asks(name) => rest.find('\n').unwrap_or(rest.len()),
            _ => word_at_start(rest),
        }
    })
}

/// What is behind each of these signs and its blanks, hidden as far as `length` says of what is before the sign and what is behind it.
fn without(text: &str, sign: char, length: impl Fn(&str, &str) -> usize) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(sign) {
        let (before, after) = rest.split_at(at + sign.len_utf8());
        shown.push_str(before);
        rest = after;
        let value = rest.trim_start();
        let hidden = length(&before[..at], value);
        if hidden > 0 {
            shown.push_str(&rest[..rest.len() - value.len()]);
            shown.push_str(HIDDEN);
            rest = &value[hidden..];
        }
    }
    shown + rest
}

/// `Bearer` and `Basic` wherever they stand, with what can only be a token.
fn without_schemes(text: &str) -> String {
    let is_of_token = |c: char| c.is_ascii_alphanumeric() || "-._~+/=".contains(c);
    each_with_next(text, |word, next| {
        let word = word.trim_start_matches(['"', '\'', '(']);
        let is_scheme = word.eq_ignore_ascii_case("bearer") || word.eq_ignore_ascii_case("basic");
        let token = next.find(|c| !is_of_token(c)).unwrap_or(next.len());
        (is_scheme && token >= TOKEN).then_some((0, token))
    })
}

/// Of commands: `--password x` with a blank between, and what curl and others take for a user.
fn without_arguments(text: &str) -> String {
    each_with_next(text, |word, next| {
        let option = word.strip_prefix("--").unwrap_or_default();
        if next.starts_with(['-', '|', '>', '<', ';', '&']) {
            return None;
        }
        if ["-u", "--user", "--proxy-user"].contains(&word) {
            let value = argument_at_start(next);
            return next[..value].find(':').map(|colon| (colon + 1, value));
        }
        let is_name = option.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        let takes_one = is_name && !option.starts_with("no-") && is_secret(option);
        takes_one.then(|| (0, argument_at_start(next)))
    })
}

/// Each word and what follows on it: from where to where in that something is to be hidden.
fn each_with_next(text: &str, hidden: impl Fn(&str, &str) -> Option<(usize, usize)>) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let (word, behind) = rest.split_at(rest.find(char::is_whitespace).unwrap_or(rest.len()));
        let next = behind.trim_start();
        shown.push_str(&rest[..rest.len() - next.len()]);
        rest = next;
        if let Some((from, to)) = hidden(word, next)
            && from < to
        {
            shown.push_str(&next[..from]);
            shown.push_str(HIDDEN);
            rest = &next[to..];
        }
    }
    shown
}

/// The last word, of letters, digits, `-` and `_`.
fn name_at_end(text: &str) -> &str {
    let text = text.trim_end().trim_end_matches(QUOTES);
    let begin = text.rfind(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '-');
    begin.map_or(text, |at| text[at..].trim_start_matches(|c: char| !c.is_ascii_alphanumeric() && c != '_'))
}

/// What is before that name, with its quotes.
fn before_name<'a>(text: &'a str, name: &str) -> &'a str {
    text.trim_end().trim_end_matches(QUOTES).strip_suffix(name).unwrap_or_default()
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
        "apikey",
        "accesskey",
        "accountkey",
        "sharedkey",
        "credential",
        "credentials",
        "signature",
    ];
    // A switch of the object stores.
    if name.ends_with("skip_signature") {
        return false;
    }
    let short = ["pass", "sig", "jwt"].contains(&name.as_str());
    short || says_who_asks(&name) || name.contains("secret") || endings.iter().any(|end| name.ends_with(end))
}

/// A password, which people make up: it may have spaces.
fn is_made_up(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["password", "passwd", "passphrase", "pwd", "pass"].iter().any(|end| name.ends_with(end))
}

/// A header that logs in: `Authorization`, `Proxy-Authorization`, cookies.
fn says_who_asks(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["authorization", "cookie"].iter().any(|end| name.ends_with(end))
}

fn word_at_start(text: &str) -> usize {
    text.find(|c: char| c.is_whitespace() || "&\"'".contains(c)).unwrap_or(text.len())
}

/// With its quotes, the last of which may be missing.
fn quoted_at_start(text: &str) -> usize {
    let quote = text.chars().next().unwrap_or('"');
    let mut escaped = false;
    let end = text.char_indices().skip(1).find(|(_, c)| {
        let ends = !escaped && *c == quote;
        escaped = !escaped && *c == '\\';
        ends
    });
    end.map_or(text.len(), |(at, _)| at + 1)
}

/// A shell's word, more or less.
fn argument_at_start(text: &str) -> usize {
    if text.starts_with(QUOTES) {
        quoted_at_start(text)
    } else {
        text.find(char::is_whitespace).unwrap_or(text.len())
    }
}

/// How long the value is: to its quote, or all words up to the next name, as a password with spaces may lack its quotes.
fn value_at_start(text: &str) -> usize {
    if text.starts_with(QUOTES) {
        return quoted_at_start(text);
    }
    let mut end = word_at_start(text);
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
    fn secrets_of_requests_are_hidden_and_what_became_of_the_requests_is_shown() {
        let check = |text: &str, shown: &str| assert_eq!(redact(text), shown, "{text}");
        check("> Authorization: Basic aHVudGVyMg==\n< 403", "> Authorization: ***\n< 403");
        check("authorization:hunter2", "authorization:***");
        check(
            "curl -H \"Authorization: Bearer hun.ter\" https://h",
            "curl -H \"Authorization: ***\" https://h",
        );
        check("{\"Authorization\": \"Bearer a b\", \"x\": 1}", "{\"Authorization\": ***, \"x\": 1}");
        check("Proxy-Authorization: Digest response=\"hunter2\"", "Proxy-Authorization: ***");
        let signed =
            "Authorization: AWS4-HMAC-SHA256 Credential=AKIA/x/s3, SignedHeaders=host, Signature=abc";
        check(signed, "Authorization: ***");
        check("Cookie: a=hunter2; b=hunter2", "Cookie: ***");
        check("X-Amz-Security-Token: hunter2 sent", "X-Amz-Security-Token: *** sent");
        check("X-Vault-Token:hunter2", "X-Vault-Token:***");
        check(
            "{\"secretAccessKey\": \"hunter2\", \"region\": \"x\"}",
            "{\"secretAccessKey\": ***, \"region\": \"x\"}",
        );
        check("password: hunter2", "password: ***");
        check("sent Bearer eyJhbGciOiJIUzI1NiJ9.e30.x and was refused", "sent Bearer *** and was refused");
        check(
            "https://a/c?sv=1&sig=hun%2Fter&se=2 returned 403",
            "https://a/c?sv=1&sig=***&se=2 returned 403",
        );
        check(
            "GET https://b/k?X-Amz-Signature=hunter2: 403 Forbidden",
            "GET https://b/k?X-Amz-Signature=*** 403 Forbidden",
        );
        check("https://h/x?key=hunter2 is gone", "https://h/x?key=*** is gone");
        check("AccountName=a;AccountKey=hunter2==", "AccountName=a;AccountKey=***");
        check("tool --token hunter2 --to x", "tool --token *** --to x");
        check("tool --password 'hunter 2' x", "tool --password *** x");
        check("curl -u joe:hunter2 https://h", "curl -u joe:*** https://h");
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
            "could not read \"/run/secrets/token\": No such file or directory",
            "Basic authentication is off; a bearer of news",
            "pg_dump --no-password host",
            "psql --password --host h -u joe",
            "tell the server the Authorization header",
            "s3://token::x",
            "monkey=1&turkey=2",
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
