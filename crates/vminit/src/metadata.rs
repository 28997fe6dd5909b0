//! The machine's metadata: from the metadata service (MMDS V2) or from the boot document.

use crate::http;
use crate::util::{refuse, Context, Deadline};
use firebuild_protocol::json::parse_object;
use firebuild_protocol::message::{BootDocument, Entrypoint, Metadata, Mmds};
use firebuild_protocol::{ErrorCode, TaskError};
use std::net::IpAddr;
use std::time::Duration;

/// What a machine is to run, and as what.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    pub metadata: Metadata,
    pub entrypoint: Entrypoint,
}

/// Get the metadata as the boot document says.
pub fn load(document: &BootDocument, deadline: Deadline) -> Result<Profile, TaskError> {
    let metadata = match (&document.mmds, &document.metadata) {
        (Some(mmds), _) => fetch(mmds, deadline)?,
        (None, Some(metadata)) => metadata.clone(),
        (None, None) => Metadata::default(),
    };
    let entrypoint = parse_entrypoint(&metadata.entrypoint_json)?;
    Ok(Profile { metadata, entrypoint })
}

fn parse_entrypoint(text: &str) -> Result<Entrypoint, TaskError> {
    if text.is_empty() {
        return Ok(Entrypoint::default());
    }
    let object = parse_object(text.as_bytes())
        .map_err(|error| TaskError::new(ErrorCode::BadRequest, format!("EntrypointJSON: {error}")))?;
    serde_json::from_value(object.into())
        .map_err(|error| TaskError::new(ErrorCode::BadRequest, format!("EntrypointJSON: {error}")))
}

/// Ask until there is an answer: the interface has come up a moment ago.
fn fetch(mmds: &Mmds, deadline: Deadline) -> Result<Metadata, TaskError> {
    const PAUSE: Duration = Duration::from_millis(50);
    let address: IpAddr = mmds
        .address
        .parse()
        .map_err(|_| TaskError::new(ErrorCode::BadRequest, format!("{:?} is no address", mmds.address)))?;
    loop {
        match fetch_once(address, deadline) {
            Err(TaskError::Refused { code: ErrorCode::Io, .. }) if deadline.remaining() > PAUSE => {
                std::thread::sleep(PAUSE);
            }
            other => return other,
        }
    }
}

fn fetch_once(address: IpAddr, deadline: Deadline) -> Result<Metadata, TaskError> {
    // An attempt that hangs must leave time for another.
    const ATTEMPT: Duration = Duration::from_secs(3);
    let deadline = Deadline::after(deadline.remaining().min(ATTEMPT));
    let ttl = [("X-metadata-token-ttl-seconds", "60")];
    let token = expect_ok(http::request(address, "PUT", "/latest/api/token", &ttl, deadline)?)?;
    let token = std::str::from_utf8(&token)
        .map_err(|_| TaskError::new(ErrorCode::Protocol, "the metadata service's token is no text"))?;
    let headers = [("X-metadata-token", token.trim()), ("Accept", "application/json")];
    let body = expect_ok(http::request(address, "GET", "/latest/meta-data", &headers, deadline)?)?;
    let object =
        parse_object(&body).map_err(|error| TaskError::new(ErrorCode::BadRequest, format!("metadata: {error}")))?;
    serde_json::from_value(object.into()).map_err(std::io::Error::from).doing("metadata")
}

fn expect_ok(response: http::Response) -> Result<Vec<u8>, TaskError> {
    if response.status == 200 {
        return Ok(response.body);
    }
    let body: String = String::from_utf8_lossy(&response.body).chars().take(200).collect();
    refuse(ErrorCode::Protocol, format!("the metadata service says {}: {body}", response.status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entrypoint() {
        let text =
            r#"{"Cmd":["b"],"EntryPoint":["a"],"Env":{"K":"v"},"Shell":null,"User":"redis","Workdir":"/w","X":1}"#;
        let entrypoint = parse_entrypoint(text).unwrap();
        assert_eq!(entrypoint.argv(), ["a", "b"]);
        assert_eq!(entrypoint.user.as_deref(), Some("redis"));
        assert!(parse_entrypoint("").unwrap().argv().is_empty());
        assert!(parse_entrypoint("[]").is_err());
        assert!(parse_entrypoint(r#"{"Cmd":"b"}"#).is_err());
    }
}
