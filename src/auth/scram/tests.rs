use std::num::NonZeroU32;

use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};

use super::client::{ClientBinding, ClientError, ClientSecret, MAX_ITERATIONS, ScramClient};
use super::server::{MockSecret, ScramServer, ServerError, ServerSecret, mechanisms};
use super::*;

const RFC_NONCE: &str = "rOprNGfwEbeRWgbNEkqO";
const RFC_SERVER_NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
const RFC_CLIENT_FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
const RFC_SERVER_FIRST: &str =
    "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
const RFC_CLIENT_FINAL: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                                p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
const RFC_SERVER_FINAL: &str = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

fn rfc_verifier() -> Verifier {
    let salt = BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
    Verifier::from_password(b"pencil", &salt, DEFAULT_ITERATIONS)
}

fn rfc_client() -> ScramClient {
    let secret = ClientSecret::Password(b"pencil".to_vec());
    ScramClient::with_nonce(secret, ClientBinding::Unsupported, "user", RFC_NONCE.to_owned())
}

fn password(text: &str) -> ClientSecret {
    ClientSecret::Password(text.as_bytes().to_vec())
}

fn mock() -> MockSecret {
    MockSecret::random().unwrap()
}

fn cheap(text: &str) -> Verifier {
    Verifier::from_password(text.as_bytes(), b"0123456789abcdef", NonZeroU32::new(2).unwrap())
}

fn server(mechanism: &str, verifier: &Verifier, end_point: Option<&[u8]>) -> ScramServer {
    let secret = ServerSecret::Verifier(verifier.clone());
    ScramServer::new(mechanism, "rep", secret, end_point.map(<[u8]>::to_vec), &mock()).unwrap()
}

/// Our client against our server.
fn exchange(client: ScramClient, server: ScramServer) -> Result<Keys, ServerError> {
    let challenged = server.client_first(&client.message())?;
    let proved = client.server_first(challenged.message()).expect("our server's challenge is well-formed");
    let accepted = challenged.client_final(&proved.message())?;
    let keys = proved.server_final(&accepted.message).expect("our server signs what it accepts");
    assert_eq!(keys, accepted.keys);
    Ok(keys)
}

#[test]
fn client_speaks_the_example_of_rfc_7677() {
    let client = rfc_client();
    assert_eq!(client.message(), RFC_CLIENT_FIRST.as_bytes());
    let proved = client.server_first(RFC_SERVER_FIRST.as_bytes()).unwrap();
    assert_eq!(String::from_utf8(proved.message()).unwrap(), RFC_CLIENT_FINAL);
    proved.server_final(RFC_SERVER_FINAL.as_bytes()).unwrap();
}

#[test]
fn server_speaks_the_example_of_rfc_7677() {
    let challenged = server(SCRAM_SHA_256, &rfc_verifier(), None)
        .client_first_with_nonce(RFC_CLIENT_FIRST.as_bytes(), RFC_SERVER_NONCE)
        .unwrap();
    assert_eq!(challenged.message(), RFC_SERVER_FIRST.as_bytes());
    let accepted = challenged.client_final(RFC_CLIENT_FINAL.as_bytes()).unwrap();
    assert_eq!(accepted.message, RFC_SERVER_FINAL.as_bytes());
}

#[test]
fn client_and_server_agree_with_every_binding() {
    let verifier = cheap("secret");
    let hash = [7; 32];
    for (mechanism, binding, end_point) in [
        (SCRAM_SHA_256, ClientBinding::Unsupported, None),
        (SCRAM_SHA_256, ClientBinding::NotOffered, None),
        (SCRAM_SHA_256, ClientBinding::Unsupported, Some(&hash[..])),
        (SCRAM_SHA_256_PLUS, ClientBinding::ServerEndPoint(hash.to_vec()), Some(&hash[..])),
    ] {
        let client = ScramClient::new(password("secret"), binding.clone()).unwrap();
        exchange(client, server(mechanism, &verifier, end_point)).unwrap();
        let client = ScramClient::new(password("wrong"), binding).unwrap();
        let error = exchange(client, server(mechanism, &verifier, end_point)).unwrap_err();
        assert_eq!(error, ServerError::InvalidProof);
    }
}

#[test]
fn learnt_keys_log_in_again() {
    let verifier = cheap("secret");
    let first = ScramClient::new(password("secret"), ClientBinding::Unsupported).unwrap();
    let keys = exchange(first, server(SCRAM_SHA_256, &verifier, None)).unwrap();
    let second = ScramClient::new(ClientSecret::Keys(keys), ClientBinding::Unsupported).unwrap();
    assert_eq!(exchange(second, server(SCRAM_SHA_256, &verifier, None)).unwrap(), keys);
}

#[test]
fn unknown_users_look_like_mistyped_passwords() {
    let mock = mock();
    let challenge = |user: &str| {
        let server = ScramServer::new(SCRAM_SHA_256, user, ServerSecret::Unknown, None, &mock).unwrap();
        server.client_first(b"n,,n=,r=abc").unwrap()
    };
    let parameters = |user: &str| {
        let message = String::from_utf8(challenge(user).message().to_vec()).unwrap();
        message.split_once(',').unwrap().1.to_owned()
    };
    assert_eq!(parameters("nobody"), parameters("nobody"));
    assert_ne!(parameters("nobody"), parameters("somebody"));
    assert!(parameters("nobody").ends_with(",i=4096"));

    let client = ScramClient::new(password(""), ClientBinding::Unsupported).unwrap();
    let server = ScramServer::new(SCRAM_SHA_256, "nobody", ServerSecret::Unknown, None, &mock).unwrap();
    assert_eq!(exchange(client, server).unwrap_err(), ServerError::InvalidProof);
}

#[test]
fn mock_keys_open_nothing() {
    // StoredKey of a mock verifier is all zeroes; a proof that leads to a ClientKey hashing to it does not exist,
    // and the exchange is doomed besides.
    let secret = ClientSecret::Keys(Keys { client_key: Key::new([0; 32]), server_key: Key::new([0; 32]) });
    let client = ScramClient::new(secret, ClientBinding::Unsupported).unwrap();
    let server = ScramServer::new(SCRAM_SHA_256, "nobody", ServerSecret::Unknown, None, &mock()).unwrap();
    assert_eq!(exchange(client, server).unwrap_err(), ServerError::InvalidProof);
}

#[test]
fn a_plain_password_serves_too() {
    let mock = mock();
    for (typed, result) in [("pass", true), ("Pass", false)] {
        let server = ScramServer::from_password(SCRAM_SHA_256, "rep", b"pass", None, &mock).unwrap();
        let client = ScramClient::new(password(typed), ClientBinding::NotOffered).unwrap();
        assert_eq!(exchange(client, server).is_ok(), result);
    }
}

#[test]
fn postgres_protocol_logs_in_at_our_server() {
    let verifier = cheap("päss wörd");
    let hash = [9; 48];
    for (mechanism, binding, end_point) in [
        (SCRAM_SHA_256, ChannelBinding::unsupported(), None),
        (SCRAM_SHA_256, ChannelBinding::unrequested(), None),
        (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(hash.to_vec()), Some(&hash[..])),
    ] {
        let mut client = ScramSha256::new("päss wörd".as_bytes(), binding);
        let challenged = server(mechanism, &verifier, end_point).client_first(client.message()).unwrap();
        client.update(challenged.message()).unwrap();
        let accepted = challenged.client_final(client.message()).unwrap();
        client.finish(&accepted.message).unwrap();
    }
}

#[test]
fn our_client_logs_in_at_pgwires_server() {
    use pgwire::api::auth::sasl::scram::{ScramSecret, ScramServerAuth};
    let verifier = cheap("secret");
    for typed in ["secret", "wrong"] {
        let stored = ScramSecret::Verifier {
            salt: verifier.salt.clone(),
            iterations: 2,
            stored_key: verifier.stored_key.0.to_vec(),
            server_key: verifier.server_key.0.to_vec(),
        };
        let client = ScramClient::new(password(typed), ClientBinding::Unsupported).unwrap();
        let (challenge, waiting) =
            ScramServerAuth::new().on_client_first_message_with_secret(&client.message(), stored).unwrap();
        let proved = client.server_first(challenge.as_bytes()).unwrap();
        let verdict = waiting.on_client_final_message(&proved.message());
        assert_eq!(verdict.is_ok(), typed == "secret");
        if let Ok(message) = verdict {
            proved.server_final(message.as_bytes()).unwrap();
        }
    }
}

#[test]
fn removing_the_offer_of_plus_is_noticed() {
    let client = ScramClient::new(password("secret"), ClientBinding::NotOffered).unwrap();
    let server = server(SCRAM_SHA_256, &cheap("secret"), Some(&[1; 32]));
    let error = exchange(client, server).unwrap_err();
    assert_eq!(error, ServerError::BindingDowngrade);
    assert!(error.detail().unwrap().starts_with("The client supports SCRAM channel binding"));
}

#[test]
fn another_certificate_fails_the_binding() {
    let client = ScramClient::new(password("s"), ClientBinding::ServerEndPoint(vec![1; 32])).unwrap();
    let server = server(SCRAM_SHA_256_PLUS, &cheap("s"), Some(&[2; 32]));
    assert_eq!(exchange(client, server).unwrap_err(), ServerError::BindingMismatch);
}

#[test]
fn only_offered_mechanisms_may_be_chosen() {
    for (mechanism, end_point) in [("SCRAM-SHA-1", None), (SCRAM_SHA_256_PLUS, None), ("", Some(vec![1]))] {
        let error = ScramServer::new(mechanism, "rep", ServerSecret::Unknown, end_point, &mock());
        assert_eq!(error.err(), Some(ServerError::InvalidMechanism), "{mechanism}");
    }
    assert_eq!(mechanisms(true), [SCRAM_SHA_256_PLUS, SCRAM_SHA_256]);
    assert_eq!(mechanisms(false), [SCRAM_SHA_256]);
}

#[test]
fn server_refuses_bad_first_messages_with_postgresqls_words() {
    let check = |mechanism, message: &[u8], expected: &str| {
        let end_point = (mechanism == SCRAM_SHA_256_PLUS).then_some(&[1; 32][..]);
        let error = server(mechanism, &cheap("s"), end_point).client_first(message).unwrap_err();
        let text =
            [Some(error.to_string()).as_deref(), error.detail()].map(Option::unwrap_or_default).join("|");
        assert_eq!(text.trim_end_matches('|'), expected, "{}", message.escape_ascii());
    };
    let plain = |message: &[u8], expected| check(SCRAM_SHA_256, message, expected);
    plain(b"", "malformed SCRAM message|The message is empty.");
    plain(b"n,,n=,r=a\0", "malformed SCRAM message|Message length does not match input length.");
    plain(b"x,,n=,r=a", "malformed SCRAM message|Unexpected channel-binding flag \"'x'\".");
    plain(b"n", "malformed SCRAM message|Comma expected, but found character \"0x00\".");
    plain(b"nn,n=,r=a", "malformed SCRAM message|Comma expected, but found character \"'n'\".");
    plain(b"n,a=me,n=,r=a", "client uses authorization identity, but it is not supported");
    plain(b"n,x,n=,r=a", "malformed SCRAM message|Unexpected attribute \"'x'\" in client-first-message.");
    plain(b"n,,m=ext,n=,r=a", "client requires an unsupported SCRAM extension");
    plain(b"n,,r=a", "malformed SCRAM message|Expected attribute \"n\" but found \"'r'\".");
    plain(b"n,,n=", "malformed SCRAM message|Expected attribute \"r\" but found \"0x00\".");
    plain(b"n,,n,r=a", "malformed SCRAM message|Expected character \"=\" for attribute \"n\".");
    plain(b"n,,n=,r=a b", "non-printable characters in SCRAM nonce");
    plain(b"n,,n=,r=\xff", "non-printable characters in SCRAM nonce");
    plain(
        b"n,,n=,r=a,7=x",
        "malformed SCRAM message|Attribute expected, but found invalid character \"'7'\".",
    );
    plain(
        b"p=tls-server-end-point,,n=,r=a",
        "malformed SCRAM message|The client selected SCRAM-SHA-256 without channel binding, but the SCRAM message \
         includes channel binding data.",
    );
    check(
        SCRAM_SHA_256_PLUS,
        b"n,,n=,r=a",
        "malformed SCRAM message|The client selected SCRAM-SHA-256-PLUS, but the SCRAM message does not include \
         channel binding data.",
    );
    check(
        SCRAM_SHA_256_PLUS,
        b"p=tls-unique,,n=,r=a",
        "unsupported SCRAM channel-binding type \"tls-unique\"",
    );
}

#[test]
fn server_ignores_optional_extensions() {
    let challenged = server(SCRAM_SHA_256, &rfc_verifier(), None).client_first(b"n,,n=,r=a,x=1,y=2").unwrap();
    assert!(challenged.message().starts_with(b"r=a"));
}

#[test]
fn server_refuses_bad_final_messages() {
    let check = |message: &str, expected: &str| {
        let server = server(SCRAM_SHA_256, &rfc_verifier(), None);
        let challenged =
            server.client_first_with_nonce(RFC_CLIENT_FIRST.as_bytes(), RFC_SERVER_NONCE).unwrap();
        let error = challenged.client_final(message.as_bytes()).unwrap_err();
        assert_eq!(error.detail().map_or_else(|| error.to_string(), str::to_owned), expected, "{message}");
    };
    let (without_proof, _) = RFC_CLIENT_FINAL.rsplit_once(",p=").unwrap();
    check("", "The message is empty.");
    check("r=x", "Expected attribute \"c\" but found \"'r'\".");
    check(without_proof, "Attribute expected, but found end of string.");
    check(
        &RFC_CLIENT_FINAL.replace("biws", "eSws"),
        "unexpected SCRAM channel-binding attribute in client-final-message",
    );
    check(&RFC_CLIENT_FINAL.replace("$k0", "$k1"), "Nonce does not match.");
    check(&RFC_CLIENT_FINAL.replace("$k0", "$k"), "Nonce does not match.");
    check(&format!("{without_proof},p=AAAA"), "Malformed proof in client-final-message.");
    check(&format!("{without_proof},p=!"), "Malformed proof in client-final-message.");
    check(&format!("{RFC_CLIENT_FINAL},x=1"), "Garbage found at the end of client-final-message.");
    check(&RFC_CLIENT_FINAL.replace("p=dH", "p=eH"), "password authentication failed");
    // An extension is signed like the rest: the proof of the message without it does not fit.
    check(&RFC_CLIENT_FINAL.replace(",p=", ",x=1,p="), "password authentication failed");
}

#[test]
fn client_refuses_bad_challenges() {
    let check = |message: &str, expected: &str| {
        let error = rfc_client().server_first(message.as_bytes()).err().unwrap();
        assert_eq!(error.to_string(), expected, "{message}");
    };
    check("", "malformed SCRAM message (empty message)");
    check("s=AAAA", "malformed SCRAM message (attribute \"r\" expected)");
    check("m=x,r=a", "malformed SCRAM message (attribute \"r\" expected)");
    check("r", "malformed SCRAM message (expected character \"=\" for attribute \"r\")");
    check("r=other,s=AAAA,i=1", "invalid SCRAM response (nonce mismatch)");
    check("r=rOprNGfwEbeRWgbNEkq,s=AAAA,i=1", "invalid SCRAM response (nonce mismatch)");
    check(&RFC_SERVER_FIRST.replace("s=W", "s=?"), "malformed SCRAM message (invalid salt)");
    for iterations in ["0", "-1", "x", "", "4294967296"] {
        let message = RFC_SERVER_FIRST.replace("4096", iterations);
        check(&message, "malformed SCRAM message (invalid iteration count)");
    }
    check(
        &format!("{RFC_SERVER_FIRST},x"),
        "malformed SCRAM message (garbage at end of server-first-message)",
    );
    let greedy = RFC_SERVER_FIRST.replace("4096", "10000001");
    let error = rfc_client().server_first(greedy.as_bytes()).err().unwrap();
    assert_eq!(error, ClientError::TooManyIterations { iterations: MAX_ITERATIONS + 1 });
}

#[test]
fn client_refuses_a_server_that_does_not_know_the_verifier() {
    let check = |message: &str, expected: &str| {
        let proved = rfc_client().server_first(RFC_SERVER_FIRST.as_bytes()).unwrap();
        assert_eq!(proved.server_final(message.as_bytes()).unwrap_err().to_string(), expected, "{message}");
    };
    check(&RFC_SERVER_FINAL.replace("v=6", "v=7"), "incorrect server signature");
    check("v=AAAA", "malformed SCRAM message (invalid server signature)");
    check("v", "malformed SCRAM message (expected character \"=\" for attribute \"v\")");
    check("", "malformed SCRAM message (empty message)");
    check("e=invalid-proof", "error received from server in SCRAM exchange: invalid-proof");
    check(
        &format!("{RFC_SERVER_FINAL},x"),
        "malformed SCRAM message (garbage at end of server-final-message)",
    );
}

#[test]
fn verifiers_have_postgresqls_text_form() {
    let text = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:\
                wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
    assert_eq!(rfc_verifier().to_string(), text);
    assert_eq!(text.parse::<Verifier>().unwrap(), rfc_verifier());
    assert!(!format!("{:?}", rfc_verifier()).contains("WG5d"));
    let generated = Verifier::generate(b"secret").unwrap();
    assert_ne!(generated, Verifier::generate(b"secret").unwrap());
    assert_eq!(generated.to_string().parse::<Verifier>().unwrap(), generated);
    assert!(generated.matches_password(b"secret"));
    assert!(!generated.matches_password(b"Secret"));
    for broken in [
        "",
        "secret",
        "SCRAM-SHA-1$4096:AAAA$AAAA:AAAA",
        &text.replace("4096", "0"),
        &text.replace("4096", "x"),
        &text.replace("==$", "==="),
        &text[..text.len() - 4],
        &text.replace("SCRAM-SHA-256$", "SCRAM-SHA-256"),
    ] {
        assert_eq!(broken.parse::<Verifier>(), Err(ParseVerifierError), "{broken}");
    }
}

#[test]
fn passwords_are_normalised_as_postgresql_does() {
    let check = |input: &[u8], expected: &[u8]| {
        assert_eq!(&*saslprep(input), expected, "{}", input.escape_ascii());
    };
    check(b"secret", b"secret");
    check("I\u{ad}X".as_bytes(), b"IX");
    check("\u{2168}".as_bytes(), b"IX");
    check("a\u{a0}b".as_bytes(), b"a b");
    // What cannot be prepared stays as it is.
    check(b"caf\xe9", b"caf\xe9");
    check("a\u{7}b".as_bytes(), "a\u{7}b".as_bytes());
    check("\u{627}1".as_bytes(), "\u{627}1".as_bytes());
    check("\u{ad}".as_bytes(), "\u{ad}".as_bytes());
    check(b"", b"");
}

proptest::proptest! {
    #[test]
    fn no_bytes_panic(first: Vec<u8>, second: Vec<u8>) {
        let _ = server(SCRAM_SHA_256, &cheap("s"), None).client_first(&first);
        let challenged = server(SCRAM_SHA_256, &cheap("s"), None).client_first(b"n,,n=,r=a").unwrap();
        proptest::prop_assert!(challenged.client_final(&second).is_err());
        proptest::prop_assert!(rfc_client().server_first(&first).is_err());
        let proved = rfc_client().server_first(RFC_SERVER_FIRST.as_bytes()).unwrap();
        proptest::prop_assert!(proved.server_final(&second).is_err());
    }
}
