//! HTTP to object stores: requests go to the host that was configured, and to no other.
//!
//! Stores answer with redirects when a region is wrong; anybody in between could. A client that follows them hands
//! session tokens and WAL to whatever host it is told.

use std::future::Future;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};
use object_store::{ClientConfigKey, ClientOptions};
use reqwest::header::HeaderValue;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Makes clients that follow no redirects.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    /// PEM; besides those of the system.
    authorities: Option<Vec<u8>>,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "the store redirects to \"{0}\", which is not followed; set endpoint and region to where the bucket is"
)]
struct Redirected(String);

impl Connector {
    pub(super) fn new(authorities: Option<Vec<u8>>) -> Connector {
        Connector { authorities }
    }

    fn client(&self, options: &ClientOptions) -> reqwest::Result<reqwest::Client> {
        let text = |key| options.get_config_value(&key).unwrap_or_default();
        let is_on = |key| bool::from_str(&text(key)).unwrap_or(false);
        let agent = concat!("walrelay/", env!("CARGO_PKG_VERSION"));
        let mut builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .https_only(!is_on(ClientConfigKey::AllowHttp))
            .http1_only()
            .user_agent(agent);
        if let Some(pem) = &self.authorities {
            builder = builder.tls_certs_merge(reqwest::Certificate::from_pem_bundle(pem)?);
        }
        if is_on(ClientConfigKey::AllowInvalidCertificates) {
            builder = builder.tls_danger_accept_invalid_certs(true);
        }
        if let Some(url) = options.get_config_value(&ClientConfigKey::ProxyUrl) {
            let excludes = reqwest::NoProxy::from_string(&text(ClientConfigKey::ProxyExcludes));
            builder = builder.proxy(reqwest::Proxy::all(url)?.no_proxy(excludes));
        }
        builder.build()
    }
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = self.client(options);
        let client = client.map_err(|source| object_store::Error::Generic {
            store: "HTTP client",
            source: Box::new(source),
        })?;
        Ok(HttpClient::new(Staying(client)))
    }
}

tokio::task_local! {
    /// Uploads in parts that are completed here may replace nothing; set when the store does not know that.
    static NEW_ONLY: Arc<AtomicBool>;
}

/// Runs `complete`, which ends an upload in parts to S3, so that it fails with "precondition" if the object is there. Also
/// tells whether the store knows that; if not, the upload is completed without.
///
/// The library can say this for single requests only. As there, the header is not among the signed ones.
pub(super) async fn only_if_none<T>(complete: impl Future<Output = T>) -> (T, bool) {
    let unknown = Arc::new(AtomicBool::new(false));
    let done = NEW_ONLY.scope(unknown.clone(), complete).await;
    (done, !unknown.load(Ordering::Relaxed))
}

/// A client that stays with its host.
#[derive(Debug)]
struct Staying(reqwest::Client);

#[async_trait]
impl HttpService for Staying {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let unknown = NEW_ONLY.try_with(Arc::clone).ok().filter(|_| completes_upload(&request));
        let Some(unknown) = unknown else { return self.ask(request).await };
        let mut conditional = request.clone();
        conditional.headers_mut().insert("if-none-match", HeaderValue::from_static("*"));
        let answer = self.ask(conditional).await?;
        if answer.status().as_u16() != 501 {
            return Ok(answer);
        }
        unknown.store(true, Ordering::Relaxed);
        self.ask(request).await
    }
}

/// Credentials may be asked for on the way.
fn completes_upload(request: &HttpRequest) -> bool {
    request.method() == "POST" && request.uri().query().is_some_and(|query| query.contains("uploadId="))
}

impl Staying {
    async fn ask(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let answer = self.0.call(request).await?;
        let status = answer.status();
        match answer.headers().get("location") {
            Some(place) if status.is_redirection() => {
                let host = String::from_utf8_lossy(place.as_bytes()).chars().take(200).collect();
                // "Decode" is the kind that is not tried again.
                Err(HttpError::new(HttpErrorKind::Decode, Redirected(host)))
            }
            _ => Ok(answer),
        }
    }
}
