//! Every shape that an exchange may have on the wire.

use super::*;

/// What the spans of an exchange must say.
#[derive(Clone, Copy)]
struct Expected {
    method: &'static str,
    /// Empty if there was no answer.
    status: &'static str,
    /// `error.type` if the exchange broke off.
    broken: bool,
    request_bytes: Option<u64>,
    response_bytes: Option<u64>,
}

const GET: Expected =
    Expected { method: "GET", status: "200", broken: false, request_bytes: Some(0), response_bytes: Some(100) };

/// Paths that one connection asks for, what it sends, and what the span of each path must say.
type Case = (&'static [&'static str], Vec<Vec<u8>>, Expected);

fn cases() -> Vec<Case> {
    let head = |path: &str| format!("HEAD {path} HTTP/1.1\r\nHost: awkward\r\n\r\n").into_bytes();
    let post =
        |path: &str, headers: &str| format!("POST {path} HTTP/1.1\r\nHost: awkward\r\n{headers}\r\n\r\n").into_bytes();
    let cookie = "c".repeat(3000);
    let posted = Expected { method: "POST", status: "201", response_bytes: Some(0), ..GET };
    let one = |path: &'static [&'static str; 1]| path.iter().map(|path| get(path)).collect::<Vec<_>>();
    vec![
        (&["/a/plain"], one(&["/a/plain"]), GET),
        (&["/a/missing"], one(&["/a/missing"]), Expected { status: "404", response_bytes: Some(7), ..GET }),
        (&["/a/broken"], one(&["/a/broken"]), Expected { status: "500", response_bytes: Some(6), ..GET }),
        (&["/a/head"], vec![head("/a/head")], Expected { method: "HEAD", response_bytes: Some(0), ..GET }),
        (&["/a/no-content"], one(&["/a/no-content"]), Expected { status: "204", response_bytes: Some(0), ..GET }),
        (&["/a/not-modified"], one(&["/a/not-modified"]), Expected { status: "304", response_bytes: Some(0), ..GET }),
        (&["/a/chunked"], one(&["/a/chunked"]), Expected { response_bytes: None, ..GET }),
        (&["/a/chunks-at-once"], one(&["/a/chunks-at-once"]), Expected { response_bytes: None, ..GET }),
        (&["/a/until-close"], one(&["/a/until-close"]), Expected { response_bytes: Some(300), ..GET }),
        (&["/a/http10"], vec![b"GET /a/http10 HTTP/1.0\r\n\r\n".to_vec()], GET),
        (&["/a/slowly"], one(&["/a/slowly"]), Expected { response_bytes: Some(3), ..GET }),
        (&["/a/many-pieces"], one(&["/a/many-pieces"]), Expected { response_bytes: Some(2000), ..GET }),
        (&["/a/writev"], one(&["/a/writev"]), Expected { response_bytes: Some(200), ..GET }),
        (&["/a/sendmsg"], one(&["/a/sendmsg"]), GET),
        (&["/a/sendfile"], one(&["/a/sendfile"]), Expected { response_bytes: Some(100_000), ..GET }),
        (&["/a/early-hints"], one(&["/a/early-hints"]), GET),
        (&["/a/silent"], one(&["/a/silent"]), Expected { status: "", broken: true, response_bytes: None, ..GET }),
        (&["/a/half"], one(&["/a/half"]), Expected { broken: true, response_bytes: Some(10), ..GET }),
        (&["/odd/plain"], vec![b"GET /odd/plain HTTP/1.1\r\nno colon here\r\n\r\n".to_vec()], GET),
        (&["/bytewise/plain"], get("/bytewise/plain").into_iter().map(|byte| vec![byte]).collect(), GET),
        (&["/large/plain"], vec![format!("GET /large/plain HTTP/1.1\r\nCookie: {cookie}\r\n\r\n").into_bytes()], GET),
        (
            &["/length/created"],
            vec![post("/length/created", "Content-Length: 11"), b"hello world".to_vec()],
            Expected { request_bytes: Some(11), ..posted },
        ),
        (
            &["/at-once/created"],
            vec![[post("/at-once/created", "Content-Length: 11"), b"hello world".to_vec()].concat()],
            Expected { request_bytes: Some(11), ..posted },
        ),
        (
            &["/continue/created"],
            vec![post("/continue/created", "Expect: 100-continue\r\nContent-Length: 11"), b"hello world".to_vec()],
            Expected { request_bytes: Some(11), ..posted },
        ),
        (
            &["/in-chunks/created"],
            vec![
                post("/in-chunks/created", "Transfer-Encoding: chunked"),
                b"5\r\nhello\r\n".to_vec(),
                b"6\r\n world\r\n0\r\n\r\n".to_vec(),
            ],
            Expected { request_bytes: None, ..posted },
        ),
        (
            &["/one/plain", "/two/plain", "/three/plain"],
            vec![get("/one/plain"), get("/two/plain"), get("/three/plain")],
            GET,
        ),
        (&["/pipe-1/plain", "/pipe-2/plain"], vec![[get("/pipe-1/plain"), get("/pipe-2/plain")].concat()], GET),
    ]
}

#[test]
fn every_shape_of_exchange_is_one_span_on_either_side() -> Result<()> {
    let mut scene = Scene::start()?;
    let cases = cases();
    for (paths, pieces, expected) in &cases {
        let pieces: Vec<_> = pieces.iter().map(Vec::as_slice).collect();
        let answer = scene.server.exchange(&pieces).with_context(|| format!("{paths:?}"))?;
        ensure!(answer.contains(expected.status), "{paths:?}: {answer:?}");
    }
    let paths = cases.iter().map(|(paths, ..)| paths.len() as u64).sum::<u64>();
    let spans = scene.finish(2 * paths)?;

    let mut wrong = Vec::new();
    for (path, expected) in
        cases.iter().flat_map(|(paths, _, expected)| paths.iter().map(move |path| (*path, expected)))
    {
        for kind in ["SPAN_KIND_SERVER", "SPAN_KIND_CLIENT"] {
            let found: Vec<_> = spans.iter().filter(|span| span.kind == kind && span.path() == path).collect();
            match found.as_slice() {
                [span] => wrong.extend(expected.differences(span).map(|what| format!("{kind} {path}: {what}"))),
                several => wrong.push(format!("{kind} {path}: {} spans", several.len())),
            }
        }
    }
    if spans.len() as u64 != 2 * paths {
        wrong.push(format!(
            "{} spans of {paths} exchanges: {:?}",
            spans.len(),
            spans.iter().map(Seen::path).collect::<Vec<_>>()
        ));
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

impl Expected {
    fn differences(&self, span: &Seen) -> impl Iterator<Item = String> {
        let bytes = |bytes: Option<u64>| bytes.map(|bytes| bytes.to_string());
        let kind_of_status = |status: &str| status.chars().next();
        let fails = self.broken
            || match kind_of_status(self.status) {
                Some('4') => span.kind == "SPAN_KIND_CLIENT",
                Some('5') => true,
                _ => false,
            };
        let error_type = span.attribute("error.type");
        let broken_off = ["connection_closed", "connection_reset"].contains(&error_type);
        [
            ("http.request.method", Some(self.method.to_owned())),
            ("http.response.status_code", Some(self.status.to_owned())),
            ("http.request.body.size", bytes(self.request_bytes)),
            ("http.response.body.size", bytes(self.response_bytes)),
        ]
        .into_iter()
        .filter_map(|(key, wanted)| {
            let found = span.attribute(key);
            // A size of nothing need not be told.
            let same = wanted.is_none_or(|wanted| wanted == found || wanted == "0" && found.is_empty());
            (!same).then(|| format!("{key} is {found:?}"))
        })
        .chain((broken_off != self.broken).then(|| format!("error.type is {error_type:?}")))
        .chain(
            ((span.status == "STATUS_CODE_ERROR") != fails || span.status == "STATUS_CODE_OK")
                .then(|| format!("status is {:?}", span.status)),
        )
        .collect::<Vec<_>>()
        .into_iter()
    }
}
