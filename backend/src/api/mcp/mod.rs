//! `/api/mcp`: the queries as tools for language models (Model Context Protocol, its HTTP transport without sessions).
//!
//! Every tool asks a path of the API itself, so that limits, tenants and answers are the same; names and arguments of the
//! tools are Tempo's. Off unless the configuration says otherwise.

mod docs;
mod tools;

use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};

use super::ApiState;
use super::error::ApiError;

/// Versions of the protocol that are spoken, the newest first.
const VERSIONS: [&str; 3] = ["2025-06-18", "2025-03-26", "2024-11-05"];

/// Numbers of JSON-RPC.
const NO_JSON: i32 = -32_700;
const NO_REQUEST: i32 = -32_600;
const NO_METHOD: i32 = -32_601;
const BAD_PARAMETERS: i32 = -32_602;

pub(super) async fn call(
    State(state): State<ApiState>,
    method: Method,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ApiError> {
    if !state.limits.mcp {
        return Err(ApiError::NoSuchPath);
    }
    state.tenants(&headers)?;
    if method != Method::POST {
        // Nothing is ever told that was not asked for, and there are no sessions to end.
        return Ok((StatusCode::METHOD_NOT_ALLOWED, [(ALLOW, "POST")]).into_response());
    }
    let Ok(message) = serde_json::from_slice::<Value>(&body) else {
        return Ok(answer(&error(&Value::Null, NO_JSON, "the body is not JSON")));
    };
    let (id, method) = (message.get("id"), message.get("method").and_then(Value::as_str));
    match (id, method) {
        (_, None) => Ok(answer(&error(id.unwrap_or(&Value::Null), NO_REQUEST, "the body is no request"))),
        // A notification.
        (None, Some(_)) => Ok(StatusCode::ACCEPTED.into_response()),
        (Some(id), Some(method)) => {
            let parameters = message.get("params").unwrap_or(&Value::Null);
            let reply = match result(&state, &headers, method, parameters).await {
                Ok(result) => json!({ "jsonrpc": "2.0", "id": id, "result": result }),
                Err((code, text)) => error(id, code, &text),
            };
            Ok(answer(&reply))
        }
    }
}

fn answer(message: &Value) -> Response {
    ([(CONTENT_TYPE, "application/json")], message.to_string()).into_response()
}

fn error(id: &Value, code: i32, message: &str) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "error": { "code": code, "message": message } })
}

async fn result(
    state: &ApiState,
    headers: &HeaderMap,
    method: &str,
    parameters: &Value,
) -> Result<Value, (i32, String)> {
    let text = |name: &str| parameters.get(name).and_then(Value::as_str).unwrap_or_default();
    match method {
        "initialize" => {
            let asked = text("protocolVersion");
            let version = VERSIONS.into_iter().find(|version| *version == asked).unwrap_or(VERSIONS[0]);
            Ok(json!({
                "protocolVersion": version,
                "capabilities": { "tools": {}, "resources": {} },
                "serverInfo": { "name": "coati", "version": env!("CARGO_PKG_VERSION") },
            }))
        }
        "ping" => Ok(json!({})),
        "tools/list" => Ok(json!({ "tools": tools::list() })),
        "tools/call" => {
            let arguments = parameters.get("arguments").unwrap_or(&Value::Null);
            match tools::call(state, headers, text("name"), arguments).await {
                Some(Ok(found)) => Ok(json!({ "content": [{ "type": "text", "text": found }], "isError": false })),
                Some(Err(why)) => Ok(json!({ "content": [{ "type": "text", "text": why }], "isError": true })),
                None => Err((BAD_PARAMETERS, format!("no tool is called {:?}", text("name")))),
            }
        }
        "resources/list" => Ok(json!({ "resources": docs::list() })),
        "resources/read" => match docs::read(text("uri")) {
            Some(content) => {
                let content = json!({ "uri": text("uri"), "mimeType": "text/markdown", "text": content });
                Ok(json!({ "contents": [content] }))
            }
            None => Err((BAD_PARAMETERS, format!("there is no resource {:?}", text("uri")))),
        },
        _ => Err((NO_METHOD, format!("there is no method {method:?}"))),
    }
}
