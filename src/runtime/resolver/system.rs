//! The system's side of name resolution: /etc/hosts and /etc/resolv.conf, and the DNS client made from them.
//!
//! Files are read and looked at on the resolver's thread only, on demand and at most once every few seconds. One that
//! cannot be used keeps what was read before, and is logged.

use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fs, io};

use hickory_resolver::config::{ResolveHosts, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::system_conf::parse_resolv_conf;
use hickory_resolver::{Hosts, TokioResolver};
use tokio::time::timeout;

use super::{Answer, ResolveError};

/// Where the configuration is, and the limits. Only tests need others than the default.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub hosts: PathBuf,
    pub resolv_conf: PathBuf,
    /// The port of every name server, which resolv.conf cannot tell.
    pub port: u16,
    /// How often the files are looked at, at most.
    pub recheck_after: Duration,
    /// How long one family is waited for when the other is there: the Resolution Delay of RFC 8305, 3.
    pub resolution_delay: Duration,
    /// Lookups at a time. Each has up to two sockets open, a few more while it repeats a query.
    pub max_lookups: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            hosts: "/etc/hosts".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            port: 53,
            recheck_after: Duration::from_secs(3),
            resolution_delay: Duration::from_millis(50),
            max_lookups: 4096,
        }
    }
}

/// Answers that are kept, each for its TTL.
const CACHE_ANSWERS: u64 = 8192;

/// What names are answered from, as the files were at one time.
#[derive(Clone, Default)]
pub(super) struct System {
    hosts: Arc<Hosts>,
    /// `None`: no resolv.conf could be used so far.
    pub(super) dns: Option<Dns>,
}

impl System {
    /// The host's line or lines in the hosts file. As with getaddrinfo, one family there means that DNS is not asked
    /// for the other.
    pub(super) fn in_hosts_file(&self, name: &Name) -> Option<Answer> {
        let mut answer = Answer::default();
        for family in [RecordType::AAAA, RecordType::A] {
            let found = self.hosts.lookup_static_host(&Query::query(name.clone(), family));
            for ip in found.iter().flat_map(|found| found.answers()).filter_map(|record| record.data.ip_addr()) {
                match ip {
                    IpAddr::V4(ip) => answer.v4.push(ip),
                    IpAddr::V6(ip) => answer.v6.push(ip),
                }
            }
        }
        (answer != Answer::default()).then_some(answer)
    }
}

/// A DNS client, and the names to try with it.
#[derive(Clone)]
pub(super) struct Dns {
    pub(super) client: TokioResolver,
    resolution_delay: Duration,
    search: Vec<Name>,
    ndots: usize,
}

impl Dns {
    /// The names to ask for, in order (resolv.conf(5), `search` and `ndots`), each complete.
    ///
    /// Not left to hickory: it walks the list for each family alone, so that the two might end at different names.
    pub(super) fn candidates(&self, name: &Name) -> impl Iterator<Item = Name> {
        let mut complete = name.clone();
        complete.set_fqdn(true);
        let dots = usize::from(name.num_labels()).saturating_sub(1);
        let (first, last) = if dots >= self.ndots { (Some(complete), None) } else { (None, Some(complete)) };
        let domains: &[Name] = if name.is_fqdn() { &[] } else { &self.search };
        // A name that is too long with a domain is no candidate; `search .` says "as it is", which is one already.
        let searched = domains.iter().filter(|domain| !domain.is_root()).filter_map(move |domain| {
            let mut name = name.clone().append_domain(domain).ok()?;
            name.set_fqdn(true);
            Some(name)
        });
        first.into_iter().chain(searched).chain(last)
    }

    /// Waits for the second family: to its end if the first has nothing to dial.
    pub(super) async fn other_family<T>(
        &self,
        first_found: bool,
        second: impl Future<Output = Result<T, ResolveError>>,
    ) -> Result<T, ResolveError> {
        if !first_found {
            return second.await;
        }
        timeout(self.resolution_delay, second).await.unwrap_or(Err(ResolveError::NoAnswer))
    }
}

/// Keeps a [`System`] up to date.
pub(super) struct Watcher {
    settings: Settings,
    hosts: Stamp,
    resolv_conf: Stamp,
    checked: Instant,
    system: Arc<System>,
}

impl Watcher {
    pub(super) fn new(settings: Settings) -> Self {
        let (hosts, resolv_conf) = (Stamp::Unread, Stamp::Unread);
        let mut watcher = Self { settings, hosts, resolv_conf, checked: Instant::now(), system: Arc::default() };
        watcher.check();
        watcher
    }

    /// The system as it is now, or was a few seconds ago.
    pub(super) fn current(&mut self) -> Arc<System> {
        if self.checked.elapsed() >= self.settings.recheck_after {
            self.check();
        }
        self.system.clone()
    }

    fn check(&mut self) {
        self.checked = Instant::now();
        let Settings { hosts, resolv_conf, .. } = &self.settings;
        if self.hosts.changed(hosts)
            && let Some(hosts) = usable(hosts, read_hosts(hosts))
        {
            Arc::make_mut(&mut self.system).hosts = Arc::new(hosts);
        }
        if self.resolv_conf.changed(resolv_conf)
            && let Some(dns) = usable(resolv_conf, read_resolv_conf(&self.settings))
        {
            Arc::make_mut(&mut self.system).dns = Some(dns);
        }
    }
}

fn usable<T>(path: &Path, read: io::Result<T>) -> Option<T> {
    read.inspect_err(|error| tracing::warn!(path = %path.display(), %error, "not used for name resolution")).ok()
}

fn read_hosts(path: &Path) -> io::Result<Hosts> {
    // One comment in another encoding must not cost the lines behind it.
    let text = String::from_utf8_lossy(&fs::read(path)?).into_owned();
    let mut hosts = Hosts::default();
    hosts.read_hosts_conf(text.as_bytes())?;
    Ok(hosts)
}

fn read_resolv_conf(settings: &Settings) -> io::Result<Dns> {
    let (config, mut options) = parse_resolv_conf(fs::read(&settings.resolv_conf)?).map_err(io::Error::other)?;
    let (domain, search, mut servers) = config.into_parts();
    for connection in servers.iter_mut().flat_map(|server| &mut server.connections) {
        connection.port = settings.port;
    }
    options.use_hosts_file = ResolveHosts::Never; // ours
    options.cache_size = CACHE_ANSWERS;
    // resolv.conf(5) counts all tries, hickory those behind the first.
    options.attempts = options.attempts.saturating_sub(1);
    // Of one TCP connection to a name server; at its default of 32 hanging names would hold up others.
    options.max_active_requests = 2 * settings.max_lookups;
    let ndots = options.ndots;

    let config = ResolverConfig::from_name_servers(servers);
    let client = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        .with_options(options)
        .build()
        .map_err(io::Error::other)?;
    // The host's own domain counts only where the file says nothing.
    let search = if search.is_empty() { domain.into_iter().collect() } else { search };
    Ok(Dns { client, resolution_delay: settings.resolution_delay, search, ndots })
}

/// What tells that a file has changed. The inode is in it since most writers put a new file in place.
#[derive(Debug, PartialEq, Eq)]
enum Stamp {
    Unread,
    Missing,
    File { inode: u64, len: u64, mtime: (i64, i64) },
}

impl Stamp {
    /// Takes the file's stamp, before it is read: what is written meanwhile shows the next time.
    fn changed(&mut self, path: &Path) -> bool {
        let now = match fs::metadata(path) {
            Ok(meta) => Self::File { inode: meta.ino(), len: meta.len(), mtime: (meta.mtime(), meta.mtime_nsec()) },
            Err(_) => Self::Missing,
        };
        let changed = *self != now;
        *self = now;
        changed
    }
}
