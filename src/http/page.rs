//! The page: files that are part of the program, and what browsers are told of them.

use axum::Router;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::front::{Admitted, Asked};

/// Nothing comes from elsewhere, nothing in the page's own text is run, and nobody shows the page inside of theirs.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// For everything that a browser may show.
pub(super) const GUARDS: [(HeaderName, &str); 4] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// A file of the page.
#[derive(Debug)]
pub(super) struct Asset {
    pub(super) path: &'static str,
    kind: &'static str,
    pub(super) text: &'static str,
}

/// All there are.
pub(super) const ASSETS: [Asset; 5] = [
    Asset { path: "/", kind: "text/html; charset=utf-8", text: include_str!("page/page.html") },
    Asset { path: "/page.css", kind: "text/css; charset=utf-8", text: include_str!("page/page.css") },
    Asset { path: "/page.js", kind: "text/javascript; charset=utf-8", text: include_str!("page/page.js") },
    Asset { path: "/plot.js", kind: "text/javascript; charset=utf-8", text: include_str!("page/plot.js") },
    Asset { path: "/icon.svg", kind: "image/svg+xml", text: include_str!("page/icon.svg") },
];

/// A route for each.
pub(super) fn routes(router: Router<Asked>) -> Router<Asked> {
    ASSETS.iter().fold(router, |router, asset| {
        let answer = move |_: Admitted, headers: HeaderMap| async move { asset.answer(&headers) };
        router.route(asset.path, get(answer))
    })
}

impl Asset {
    /// The file; or that it is the one that the browser has, which asks each time, since another version has others of these names.
    fn answer(&self, asked: &HeaderMap) -> Response {
        let tag = format!("\"{:016x}\"", self.tag());
        let has_it = asked.get(header::IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == tag.as_bytes());
        let head = [(header::ETAG, tag.as_str()), (header::CACHE_CONTROL, "no-cache")];
        if has_it {
            return (StatusCode::NOT_MODIFIED, GUARDS, head).into_response();
        }
        (GUARDS, head, [(header::CONTENT_TYPE, self.kind)], self.text).into_response()
    }

    /// FNV-1a: other content has another one.
    fn tag(&self) -> u64 {
        let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        self.text.bytes().fold(0xcbf2_9ce4_8422_2325, step)
    }
}
