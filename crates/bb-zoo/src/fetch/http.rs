//! Downloads, continued where they broke off.

use std::io;
use std::time::{Duration, Instant};

use ureq::Agent;
use ureq::http::HeaderMap;
use ureq::tls::{RootCerts, TlsConfig};

use super::{Fault, Pace, Part};

/// How often a connection that brought bytes and broke is made again.
const ATTEMPTS: usize = 20;

impl Part<'_> {
    /// Takes what is missing from a server; the outer error is one of the disk.
    pub(super) fn download(&mut self, address: &str) -> io::Result<Result<(), Fault>> {
        let agent: Agent = Agent::config_builder()
            // A redirection must not lose what protects the reader's privacy; the content is protected by its hash.
            .https_only(address.starts_with("https://"))
            // Behind a proxy that opens connections, only the system knows whom to trust.
            .tls_config(
                TlsConfig::builder()
                    .root_certs(RootCerts::PlatformVerifier)
                    .build(),
            )
            .http_status_as_error(false)
            .user_agent(concat!("bb-zoo/", env!("CARGO_PKG_VERSION")))
            // A compressed body has another length.
            .accept_encoding("identity")
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .build()
            .into();
        let mut pace = Pace::new(self.wanted.bytes, Instant::now());
        for _ in 0..ATTEMPTS {
            if self.len == self.wanted.bytes {
                break;
            }
            let before = self.len;
            match self.attempt(&agent, address, &mut pace)? {
                // A connection that ends early is not always an error for the client.
                Ok(()) if self.len == before => break,
                // With new bytes, or after a restart, it is worth another try.
                Ok(()) => {}
                Err(Fault::Connection { .. })
                    if self.len > before || (self.len == 0 && before > 0) => {}
                Err(fault) => return Ok(Err(fault)),
            }
        }
        let (found, expected) = (self.len, self.wanted.bytes);
        Ok(if found == expected {
            Ok(())
        } else {
            Err(Fault::Connection {
                reason: format!("the connection broke after {found} of {expected} bytes"),
            })
        })
    }

    /// One request for what is missing.
    fn attempt(
        &mut self,
        agent: &Agent,
        address: &str,
        pace: &mut Pace,
    ) -> io::Result<Result<(), Fault>> {
        let broken = |error: ureq::Error| Fault::Connection {
            reason: error.to_string(),
        };
        let mut request = agent.get(address);
        if self.len > 0 {
            request = request.header("Range", format!("bytes={}-", self.len));
        }
        let mut response = match request.call() {
            Ok(response) => response,
            Err(error) => return Ok(Err(broken(error))),
        };
        match response.status().as_u16() {
            // The server begins at the beginning, whatever it was asked for.
            200 => self.restart()?,
            206 if continues(response.headers(), self.len, self.wanted.bytes) => {}
            206 | 416 => {
                // It has another file, or there are more bytes than it has: the next attempt begins anew.
                let had = self.len;
                self.restart()?;
                let reason = format!("the server does not continue at byte {had}");
                return Ok(Err(Fault::Connection { reason }));
            }
            status => return Ok(Err(Fault::Status { status })),
        }
        if let Some(rest) = number(response.headers(), "content-length") {
            let (found, expected) = (self.len.saturating_add(rest), self.wanted.bytes);
            // A web page in place of the file is named as such, so its beginning is read first.
            if found != expected && self.len > 0 {
                self.restart()?;
                return Ok(Err(Fault::Size { found, expected }));
            }
            if found != expected {
                let mut head = io::Read::take(response.body_mut().as_reader(), HEAD);
                let mut bytes = Vec::new();
                let read = io::Read::read_to_end(&mut head, &mut bytes);
                return Ok(Err(match crate::sniff::instead(&bytes) {
                    Some(what) if read.is_ok() && !bytes.is_empty() => Fault::Sniffed { what },
                    _ => Fault::Size { found, expected },
                }));
            }
        }
        self.take(&mut response.body_mut().as_reader(), pace)
    }
}

const HEAD: u64 = crate::sniff::HEAD as u64;

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

/// Whether a partial answer is what is missing: `bytes <begin>-<last>/<all>`.
fn continues(headers: &HeaderMap, begin: u64, all: u64) -> bool {
    let range = headers.get("content-range").and_then(|v| v.to_str().ok());
    let Some((bounds, total)) = range
        .and_then(|range| range.strip_prefix("bytes "))
        .and_then(|range| range.split_once('/'))
    else {
        return false;
    };
    let starts = bounds.split_once('-').map(|(first, _)| first.parse());
    starts == Some(Ok(begin)) && (total == "*" || total.parse() == Ok(all))
}
