//! Object stores from their URLs, options and surroundings.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};

use super::connect::Connector;
use super::place::ObjectPlace;

/// The options of a target are wrong.
#[derive(Debug, thiserror::Error)]
pub enum OptionError {
    /// No such option for this kind of target.
    #[error("unknown option \"{name}\" for this kind of target")]
    Unknown {
        /// The option.
        name: String,
    },
    /// The store cannot be used with these options.
    #[error("{0}")]
    Store(String),
    /// A profile cannot be used.
    #[error("profile \"{profile}\": {reason}")]
    Profile {
        /// The profile.
        profile: String,
        /// Why not, and what to do.
        reason: String,
    },
}

/// Insists that there are no other options.
pub(super) fn none_but_known(options: &BTreeMap<String, String>, known: &[&str]) -> Result<(), OptionError> {
    match options.keys().find(|name| !known.contains(&name.as_str())) {
        Some(name) => Err(OptionError::Unknown { name: name.clone() }),
        None => Ok(()),
    }
}

/// The store behind a URL, and the path in it.
pub(super) fn store(place: &ObjectPlace) -> Result<(Arc<dyn ObjectStore>, ObjectPath), OptionError> {
    let unusable = |error: &dyn std::fmt::Display| OptionError::Store(super::one_line(&error.to_string()));
    // Two providers are compiled in by way of others' features; without a choice TLS would refuse to work.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let prefix = ObjectPath::from_url_path(place.url.path()).map_err(|error| unusable(&error))?;
    let store: Arc<dyn ObjectStore> = match place.url.scheme() {
        "s3" => Arc::new(s3(place)?.build().map_err(|error| unusable(&error))?),
        "gs" => {
            let builder = GoogleCloudStorageBuilder::from_env().with_url(place.url.as_str());
            let builder = fold(
                place,
                builder.with_client_options(client(place)).with_http_connector(connector(place)?),
                |builder, key, value| Ok(builder.with_config(GoogleConfigKey::from_str(key)?, value)),
            )?;
            Arc::new(builder.with_retry(retry()).build().map_err(|error| unusable(&error))?)
        }
        "az" => {
            let builder = MicrosoftAzureBuilder::from_env().with_url(place.url.as_str());
            let builder = fold(
                place,
                builder.with_client_options(client(place)).with_http_connector(connector(place)?),
                |builder, key, value| Ok(builder.with_config(AzureConfigKey::from_str(key)?, value)),
            )?;
            Arc::new(builder.with_retry(retry()).build().map_err(|error| unusable(&error))?)
        }
        _ => Arc::new(InMemory::new()),
    };
    Ok((store, prefix))
}

/// Credentials: options, then the profile, then what the environment says, then the instance's role.
fn s3(place: &ObjectPlace) -> Result<AmazonS3Builder, OptionError> {
    let mut builder = AmazonS3Builder::from_env().with_url(place.url.as_str());
    builder = builder.with_client_options(client(place)).with_http_connector(connector(place)?);
    builder = builder.with_retry(retry());
    for (key, value) in super::profile::settings(place.options.get("profile").map(String::as_str))? {
        builder = builder.with_config(key, value);
    }
    fold(place, builder, |builder, key, value| match key {
        "path_style" => Ok(builder.with_virtual_hosted_style_request(value == "false")),
        key => Ok(builder.with_config(AmazonS3ConfigKey::from_str(key)?, value)),
    })
}

/// Hands options to a builder, but those for the connection.
fn fold<B>(
    place: &ObjectPlace,
    builder: B,
    set: impl Fn(B, &str, &str) -> Result<B, object_store::Error>,
) -> Result<B, OptionError> {
    place.options.iter().filter(|(key, _)| !["profile", "ca_file"].contains(&key.as_str())).try_fold(
        builder,
        |builder, (key, value)| {
            set(builder, key, value).map_err(|_| OptionError::Unknown { name: key.replace('_', "-") })
        },
    )
}

/// Requests have deadlines of their own, by size. HTTP without TLS is used only where the URL says so.
fn client(place: &ObjectPlace) -> ClientOptions {
    let in_environment = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"];
    let in_environment = in_environment.iter().find_map(|name| std::env::var(name).ok());
    let endpoint = place.options.get("endpoint").cloned().or(in_environment);
    let plain = endpoint.is_some_and(|url| url.starts_with("http://"));
    ClientOptions::new().with_timeout_disabled().with_allow_http(plain)
}

fn connector(place: &ObjectPlace) -> Result<Connector, OptionError> {
    let Some(path) = place.options.get("ca_file") else { return Ok(Connector::new(None)) };
    let pem = crate::permissions::read_limited(path.as_ref())
        .map_err(|error| OptionError::Store(format!("could not read \"{path}\": {error}")))?;
    reqwest::Certificate::from_pem_bundle(&pem)
        .map_err(|error| OptionError::Store(format!("\"{path}\": {error}")))?;
    Ok(Connector::new(Some(pem)))
}

/// A hiccup is retried at once; for more there are queues that know their order.
fn retry() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(2),
            ..BackoffConfig::default()
        },
        max_retries: 2,
        retry_timeout: Duration::from_secs(10),
    }
}
