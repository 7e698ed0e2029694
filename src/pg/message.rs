//! The few messages of a login and of simple queries, decoded from exactly the bytes of their frame.
//!
//! By hand and not with pgwire's types: those read integers without asking whether they are there, and refuse
//! texts that are not UTF-8, which servers with another `lc_messages` encoding send before a login is through.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::error::ServerError;

/// CopyDone, whole.
pub(crate) const COPY_DONE: &[u8] = b"c\0\0\0\x04";

/// Longest text of an error or a notice that is kept, bytes.
const MAX_FIELD: usize = 4096;

/// A body that is shorter or longer than its fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Malformed;

/// Authentication request, `R`.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Authentication {
    Ok,
    CleartextPassword,
    Md5Password { salt: [u8; 4] },
    Sasl { mechanisms: Vec<String> },
    SaslContinue(Bytes),
    SaslFinal(Bytes),
    Other(u32),
}

impl Authentication {
    pub(crate) fn decode(mut body: Bytes) -> Result<Authentication, Malformed> {
        let request = match u32(&mut body)? {
            0 => Authentication::Ok,
            3 => Authentication::CleartextPassword,
            5 => {
                let salt = body.split_to(body.len().min(4));
                Authentication::Md5Password { salt: salt[..].try_into().map_err(|_| Malformed)? }
            }
            10 => Authentication::Sasl { mechanisms: mechanisms(&mut body)? },
            11 => Authentication::SaslContinue(std::mem::take(&mut body)),
            12 => Authentication::SaslFinal(std::mem::take(&mut body)),
            other => {
                body.clear();
                Authentication::Other(other)
            }
        };
        finish(&body, request)
    }
}

fn mechanisms(body: &mut Bytes) -> Result<Vec<String>, Malformed> {
    let mut names = Vec::new();
    loop {
        match text(body)? {
            name if name.is_empty() => return Ok(names),
            name => names.push(name),
        }
    }
}

/// Name and value of ParameterStatus, `S`.
pub(crate) fn parameter_status(mut body: Bytes) -> Result<(String, String), Malformed> {
    let pair = (text(&mut body)?, text(&mut body)?);
    finish(&body, pair)
}

/// Process id and cancel key of BackendKeyData, `K`.
pub(crate) fn backend_key_data(mut body: Bytes) -> Result<(u32, Bytes), Malformed> {
    Ok((u32(&mut body)?, body))
}

/// The protocol version of NegotiateProtocolVersion, `v`, major in the upper half. The options that the server
/// does not know are checked for form only: we ask for none.
pub(crate) fn negotiate_protocol_version(mut body: Bytes) -> Result<u32, Malformed> {
    let version = u32(&mut body)?;
    let count = u32(&mut body)?;
    for _ in 0..count {
        text(&mut body)?;
    }
    finish(&body, version)
}

/// Fields of ErrorResponse and NoticeResponse, `E` and `N`.
pub(crate) fn server_error(mut body: Bytes) -> Result<ServerError, Malformed> {
    let mut error = ServerError::default();
    loop {
        let field = u8(&mut body)?;
        if field == 0 {
            return finish(&body, error);
        }
        let value = shortened(text(&mut body)?);
        match field {
            b'V' => error.severity = value,
            // The translated severity, until the other turns up.
            b'S' if error.severity.is_empty() => error.severity = value,
            b'C' => error.sqlstate = value,
            b'M' => error.message = value,
            b'D' => error.detail = Some(value),
            b'H' => error.hint = Some(value),
            b'R' => error.routine = Some(value),
            _ => {}
        }
    }
}

fn shortened(mut text: String) -> String {
    if text.len() > MAX_FIELD {
        let end = (0..=MAX_FIELD).rev().find(|&end| text.is_char_boundary(end));
        text.truncate(end.unwrap_or_default());
        text.shrink_to_fit();
        text.push_str(" ...");
    }
    text
}

/// Column names of RowDescription, `T`.
pub(crate) fn row_description(mut body: Bytes) -> Result<Vec<String>, Malformed> {
    /// Table, column, type, size, modifier and format.
    const AFTER_NAME: usize = 18;
    let count = u16(&mut body)?;
    let mut names = Vec::new();
    for _ in 0..count {
        names.push(text(&mut body)?);
        if body.len() < AFTER_NAME {
            return Err(Malformed);
        }
        body.advance(AFTER_NAME);
    }
    finish(&body, names)
}

/// Values of DataRow, `D`, in text format.
pub(crate) fn data_row(mut body: Bytes) -> Result<Vec<Option<Bytes>>, Malformed> {
    let count = u16(&mut body)?;
    let mut values = Vec::new();
    for _ in 0..count {
        values.push(match u32(&mut body)? {
            u32::MAX => None,
            len => Some(take(&mut body, len)?),
        });
    }
    finish(&body, values)
}

/// Tag of CommandComplete, `C`.
pub(crate) fn command_complete(mut body: Bytes) -> Result<String, Malformed> {
    let tag = text(&mut body)?;
    finish(&body, tag)
}

/// SSLRequest.
pub(crate) const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// StartupMessage of protocol 3.0.
pub(crate) fn startup(parameters: &[(&str, &[u8])]) -> BytesMut {
    const VERSION: u32 = 3 << 16;
    framed(None, |body| {
        body.put_u32(VERSION);
        for (name, value) in parameters {
            put_text(body, name.as_bytes());
            put_text(body, value);
        }
        body.put_u8(0);
    })
}

/// CancelRequest.
pub(crate) fn cancel_request(pid: u32, key: &[u8]) -> BytesMut {
    const CODE: u32 = 80_877_102;
    framed(None, |body| {
        body.put_u32(CODE);
        body.put_u32(pid);
        body.put_slice(key);
    })
}

/// PasswordMessage.
pub(crate) fn password(password: &[u8]) -> BytesMut {
    framed(Some(b'p'), |body| put_text(body, password))
}

/// SASLInitialResponse.
pub(crate) fn sasl_initial_response(mechanism: &str, response: &[u8]) -> BytesMut {
    framed(Some(b'p'), |body| {
        put_text(body, mechanism.as_bytes());
        body.put_u32(u32::try_from(response.len()).expect("a SCRAM message is some hundred bytes"));
        body.put_slice(response);
    })
}

/// SASLResponse.
pub(crate) fn sasl_response(response: &[u8]) -> BytesMut {
    framed(Some(b'p'), |body| body.put_slice(response))
}

/// Query. A zero byte would end the text for the server, so it ends it here.
pub(crate) fn query(sql: &str) -> BytesMut {
    framed(Some(b'Q'), |body| put_text(body, sql.split('\0').next().unwrap_or_default().as_bytes()))
}

/// Terminate.
pub(crate) fn terminate() -> BytesMut {
    framed(Some(b'X'), |_| {})
}

fn framed(kind: Option<u8>, write: impl FnOnce(&mut BytesMut)) -> BytesMut {
    let mut message = BytesMut::new();
    message.extend(kind);
    let start = message.len();
    message.put_u32(0);
    write(&mut message);
    let len = u32::try_from(message.len() - start).expect("what we send is far below 4 GB");
    message[start..start + 4].copy_from_slice(&len.to_be_bytes());
    message
}

fn put_text(body: &mut BytesMut, text: &[u8]) {
    body.put_slice(text);
    body.put_u8(0);
}

fn finish<T>(rest: &Bytes, value: T) -> Result<T, Malformed> {
    if rest.is_empty() { Ok(value) } else { Err(Malformed) }
}

fn u8(body: &mut Bytes) -> Result<u8, Malformed> {
    body.try_get_u8().map_err(|_| Malformed)
}

fn u16(body: &mut Bytes) -> Result<u16, Malformed> {
    body.try_get_u16().map_err(|_| Malformed)
}

fn u32(body: &mut Bytes) -> Result<u32, Malformed> {
    body.try_get_u32().map_err(|_| Malformed)
}

fn take(body: &mut Bytes, len: u32) -> Result<Bytes, Malformed> {
    let len = usize::try_from(len).map_err(|_| Malformed)?;
    if len > body.len() {
        return Err(Malformed);
    }
    Ok(body.split_to(len))
}

/// A text up to its zero byte, in whatever encoding.
fn text(body: &mut Bytes) -> Result<String, Malformed> {
    let end = body.iter().position(|byte| *byte == 0).ok_or(Malformed)?;
    let text = String::from_utf8_lossy(&body[..end]).into_owned();
    body.advance(end + 1);
    Ok(text)
}
