use ringway::{config::gateway::*, config::keys::KeyEntry, gateway::Gateway, runtime::{driver, threads::{self, Threads}}, cli::process, echo, agent::egress::Rule};
use std::time::Duration;
#[global_allocator]
static A: mimalloc::MiMalloc = mimalloc::MiMalloc;
fn main() -> std::process::ExitCode {
    let _logs = ringway::telemetry::log::start().unwrap();
    threads::raise_open_files();
    let s = Duration::from_secs;
    let want = if std::env::var("EPOLL").is_ok() { Driver::Epoll } else { Driver::Auto };
    let config = GatewayConfig { node_id: "scraping-de1".into(), public_url: None, runtime: Runtime { workers: 2, driver: want }, listen: Listen { addr: vec!["127.0.0.1:8080".parse().unwrap()] }, keys: KeysFile { file: "".into() },
      embedded_agent: Some(EmbeddedAgent { slug: "de1".into(), country: "DE".into(), node_id: "scraping-de1".into() }),
      egress: Egress { allow: vec![Rule::Net("127.0.0.0/8".parse().unwrap())], deny: vec![], ca_file: None },
      limits: Limits { header_timeout: s(10), connect_timeout: s(10), target_timeout: s(15), max_sessions: 100000, max_pending: 10000, drain: s(30), tcp_keepalive: s(60) } };
    use sha2::Digest;
    let keys = vec![KeyEntry { id: "t".into(), sha256: sha2::Sha256::digest("k").into(), rate: 1e6, burst: 1000000, max_sessions: None, expires: None }];
    let mut threads = Threads::new().unwrap();
    let driver = driver::Driver::choose(config.runtime.driver).unwrap();
    driver.log();
    let mut echoes = Threads::new().unwrap();
    let e = echo::start("127.0.0.1:8081".parse().unwrap(), &driver, &mut echoes).unwrap();
    let g = Gateway::start(config, keys, &driver, &mut threads).unwrap();
    process::announce(g.addresses[0], "public");
    process::announce(e, "echo");
    process::supervise(&threads, s(30), || g.shared.begin_drain())
}
