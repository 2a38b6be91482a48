//! Telling the service manager how the process is, in the protocol of sd_notify(3): one datagram a message, to the
//! socket that `NOTIFY_SOCKET` names. Without that variable nothing is sent.
use std::{
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};

/// How long a message may wait to be taken.
const PATIENCE: Duration = Duration::from_secs(1);

/// The connection to the service manager, if there is one.
#[derive(Debug)]
pub struct Notifier(Option<(UnixDatagram, SocketAddr)>);

impl Notifier {
    /// As the environment says. A socket that cannot be used is logged and is none.
    pub fn from_env() -> Self {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else { return Self(None) };
        match connect(name.as_bytes()) {
            Ok(socket) => Self(Some(socket)),
            Err(error) => {
                tracing::warn!("NOTIFY_SOCKET={}: {error}; systemd is told nothing", name.display());
                Self(None)
            }
        }
    }

    pub fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// Everything listens, or the reload is over.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={}", one_line(status)));
    }

    /// Files are being read again; [`Notifier::ready`] follows.
    pub fn reloading(&self) {
        // CLOCK_MONOTONIC, by which systemd tells this reload from one before.
        let now = clock_gettime(ClockId::Monotonic);
        let now_us = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1000;
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={now_us}\nSTATUS=Reloading"));
    }

    /// The process ends, which may take so long whatever the unit's TimeoutStopSec= says.
    pub fn stopping(&self, at_most: Duration, status: &str) {
        let at_most_us = at_most.as_micros();
        self.send(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={at_most_us}\nSTATUS={}", one_line(status)));
    }

    pub fn status(&self, status: &str) {
        self.send(&format!("STATUS={}", one_line(status)));
    }

    /// All threads do their work.
    pub fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    fn send(&self, message: &str) {
        if let Some((socket, address)) = &self.0
            && let Err(error) = socket.send_to_addr(message.as_bytes(), address)
        {
            tracing::debug!("systemd was not told {:?}: {error}", message.lines().next().unwrap_or_default());
        }
    }
}

/// How long the service manager waits for a sign of life (`WatchdogSec=` of the unit), if it does.
pub fn watchdog() -> Option<Duration> {
    let variable = |name| std::env::var(name).ok();
    watchdog_of(variable("WATCHDOG_USEC")?.as_str(), variable("WATCHDOG_PID").as_deref(), std::process::id())
}

fn watchdog_of(usec: &str, of: Option<&str>, pid: u32) -> Option<Duration> {
    let meant = of.is_none_or(|of| of.parse() == Ok(pid));
    let usec: u64 = usec.parse().ok()?;
    (meant && usec > 0).then(|| Duration::from_micros(usec))
}

fn connect(name: &[u8]) -> io::Result<(UnixDatagram, SocketAddr)> {
    use std::{ffi::OsStr, path::Path};
    let address = match name {
        // An abstract address, whose first byte is written as "@".
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(Path::new(OsStr::from_bytes(name)))?,
        _ => return Err(io::Error::new(io::ErrorKind::Unsupported, "is no path and no abstract address")),
    };
    let socket = UnixDatagram::unbound()?;
    // A service manager that does not read must not hold us up for long.
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok((socket, address))
}

/// A line break would begin the next variable.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    fn received(name: &[u8], listener: UnixDatagram, say: impl Fn(&Notifier)) -> String {
        say(&Notifier(Some(connect(name).unwrap())));
        let mut bytes = [0; 1000];
        let len = listener.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..len].to_vec()).unwrap()
    }

    #[test]
    fn an_abstract_address_is_reached() {
        let name = format!("ringway-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let listener = UnixDatagram::bind_addr(&address).unwrap();
        let got = received(format!("@{name}").as_bytes(), listener, |notifier| notifier.ready("one\ntwo"));
        assert_eq!(got, "READY=1\nSTATUS=one two");
    }

    #[test]
    fn other_addresses_are_refused() {
        for name in ["", "relative/path", "vsock:2:1234"] {
            connect(name.as_bytes()).unwrap_err();
        }
    }

    #[test]
    fn the_watchdog_is_ours_only() {
        assert_eq!(watchdog_of("3000000", Some("7"), 7), Some(Duration::from_secs(3)));
        assert_eq!(watchdog_of("3000000", None, 7), Some(Duration::from_secs(3)));
        for (usec, pid) in [("3000000", Some("8")), ("0", Some("7")), ("soon", Some("7")), ("1", Some(""))] {
            assert_eq!(watchdog_of(usec, pid, 7), None, "{usec} {pid:?}");
        }
    }
}
