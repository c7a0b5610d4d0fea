//! One call of gRPC at a time, each over a connection of its own: a driver may have been started anew since the last
//! (github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md).

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use http::HeaderMap;
use prost::Message;
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};

/// The longest answer, in bytes, as gRPC's own clients have it.
const LONGEST: usize = 4 << 20;

/// How long until a driver that can't answer now is asked again; each time twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// Why a call failed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What the driver says, by gRPC's number; none where it did not say anything.
    code: Option<u32>,
    words: String,
}

const ABORTED: u32 = 10;
const UNAVAILABLE: u32 = 14;

impl Failure {
    fn silent(words: impl fmt::Display) -> Self {
        Self { code: None, words: words.to_string() }
    }

    /// Whether the same call may go well a moment later: the driver is at work on the volume, is being started, or went away.
    fn is_passing(&self) -> bool {
        self.code.is_none_or(|code| code == ABORTED || code == UNAVAILABLE)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            Some(code) => write!(f, "{} (gRPC code {code})", self.words),
            None => f.write_str(&self.words),
        }
    }
}

/// Calls `method` of who listens at `socket`, again and again until it goes well, fails for good, or `deadline` comes.
pub(crate) fn call<A: Message + Default>(
    socket: &Path,
    method: &str,
    request: &impl Message,
    deadline: Instant,
) -> Result<A, Failure> {
    let runtime: Runtime =
        Builder::new_current_thread().enable_io().enable_time().build().map_err(Failure::silent)?;
    let mut pause = FIRST_PAUSE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let answer = runtime.block_on(async {
            tokio::time::timeout(left, unary(socket, method, frame(request)))
                .await
                .unwrap_or_else(|_| Err(Failure::silent("it did not answer in time")))
        });
        match answer {
            Err(failure) if failure.is_passing() && Instant::now() + pause < deadline => {
                std::thread::sleep(pause);
                pause *= 2;
            }
            Err(failure) => return Err(failure),
            Ok(bytes) => {
                return A::decode(bytes)
                    .map_err(|e| Failure::silent(format!("its answer is malformed: {e}")));
            }
        }
    }
}

/// A message with its prefix: not compressed, and how long it is.
fn frame(message: &impl Message) -> Bytes {
    let mut bytes = BytesMut::with_capacity(message.encoded_len() + 5);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.encoded_len()).unwrap_or(u32::MAX));
    bytes.put_slice(&message.encode_to_vec());
    bytes.freeze()
}

async fn unary(socket: &Path, method: &str, frame: Bytes) -> Result<Bytes, Failure> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|e| Failure::silent(format!("connecting to {}: {e}", socket.display())))?;
    let (client, connection) = h2::client::handshake(stream).await.map_err(Failure::silent)?;
    tokio::spawn(connection);
    let request = http::Request::post(format!("http://localhost{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .map_err(Failure::silent)?;
    let mut client = client.ready().await.map_err(Failure::silent)?;
    let (response, mut stream) = client.send_request(request, false).map_err(Failure::silent)?;
    stream.send_data(frame, true).map_err(Failure::silent)?;
    let (head, mut body) = response.await.map_err(Failure::silent)?.into_parts();
    let mut bytes = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.map_err(Failure::silent)?;
        body.flow_control().release_capacity(chunk.len()).map_err(Failure::silent)?;
        bytes.put_slice(&chunk);
        if bytes.len() > LONGEST {
            return Err(Failure {
                code: Some(0),
                words: format!("its answer is longer than {LONGEST} bytes"),
            });
        }
    }
    let trailers = body.trailers().await.map_err(Failure::silent)?.unwrap_or_default();
    judge(&head.headers, &trailers)?;
    message(bytes.freeze())
}

/// Whether a call went well. Who fails at once says so in the headers.
fn judge(headers: &HeaderMap, trailers: &HeaderMap) -> Result<(), Failure> {
    let of =
        |name: &str| trailers.get(name).or_else(|| headers.get(name)).and_then(|value| value.to_str().ok());
    match of("grpc-status").and_then(|code| code.parse().ok()) {
        Some(0) => Ok(()),
        Some(code) => {
            Err(Failure { code: Some(code), words: decoded(of("grpc-message").unwrap_or("no reason")) })
        }
        None => Err(Failure::silent("its answer has no status")),
    }
}

fn message(mut bytes: Bytes) -> Result<Bytes, Failure> {
    let is_whole = bytes.len() >= 5
        && bytes[0] == 0
        && bytes[1..5] == u32::try_from(bytes.len() - 5).unwrap_or(u32::MAX).to_be_bytes();
    if !is_whole {
        return Err(Failure { code: Some(0), words: "its answer is no message".to_owned() });
    }
    Ok(bytes.split_off(5))
}

/// Percent-encoded words.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code =
            after.get(..2).and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 16).ok());
        match (first, code) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    // One line, whatever a driver says.
    String::from_utf8_lossy(&bytes).replace(|c: char| c.is_control(), " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::{CapacityRange, Expand, Publish};

    #[test]
    fn messages_are_as_csi_numbers_their_fields() {
        let publish = Publish {
            volume_id: "v".to_owned(),
            target_path: "/t".to_owned(),
            readonly: true,
            secrets: [("k".to_owned(), "s".to_owned())].into(),
            ..Publish::default()
        };
        // volume_id = 1, target_path = 4, readonly = 6, secrets = 7.
        assert_eq!(publish.encode_to_vec(), b"\x0a\x01v\x22\x02/t\x30\x01\x3a\x06\x0a\x01k\x12\x01s");
        let expand =
            Expand { capacity_range: Some(CapacityRange { required_bytes: 5 }), ..Expand::default() };
        assert_eq!(expand.encode_to_vec(), b"\x1a\x02\x08\x05");
        assert_eq!(&frame(&expand)[..], b"\0\0\0\0\x04\x1a\x02\x08\x05");
    }

    #[test]
    fn a_reason_is_one_line() {
        assert_eq!(decoded("no%20such%0Avolume 100%"), "no such volume 100%");
    }

    #[test]
    fn what_is_no_message_is_told() {
        assert_eq!(&message(Bytes::from_static(b"\0\0\0\0\x02ab")).unwrap()[..], b"ab");
        for wrong in [&b""[..], b"\0\0\0\0", b"\x01\0\0\0\0", b"\0\0\0\0\x05ab"] {
            assert!(message(Bytes::copy_from_slice(wrong)).is_err());
        }
    }
}
