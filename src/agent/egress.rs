//! Which targets may be reached: the guard against clients that use the relay to get at what only this machine can
//! reach (server-side request forgery).
//!
//! Two steps, both needed: [`Egress::check_name`] before a name is resolved, [`Egress::filter`] on the addresses it
//! resolved to. The addresses that `filter` returns are the ones to dial; resolving again would let a name server give
//! another answer the second time. The order is always `deny`, `allow`, then the default: global unicast only.
//!
//! Pure: no I/O, no clock. Must never resolve a name, and never trust one to mean an address.

mod special_purpose;

use std::collections::HashSet;
use std::iter;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::config::EgressRule as Rule;

use special_purpose::{ends_at, is_global, nat64};

/// What is known of a host before its addresses are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Not to be resolved, nor dialled.
    Refused,
    /// Resolve it and let [`Egress::filter`] judge the addresses. `host_allowed`: `allow` lists the name, so they may
    /// be private.
    Resolve { host_allowed: bool },
}

/// Every address of a target is forbidden.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the egress policy forbids the target")]
pub struct Forbidden;

/// The policy, made once from the configuration and shared by all workers.
#[derive(Debug, Default)]
pub struct Egress {
    allow: Rules,
    deny: Rules,
}

impl Egress {
    pub fn new(allow: Vec<Rule>, deny: Vec<Rule>) -> Self {
        Self { allow: Rules::new(allow), deny: Rules::new(deny) }
    }

    /// Judges a host name before it is resolved. `deny` covers subdomains, `allow` is exact.
    ///
    /// A host that ends in a number but is no address (`0x7f.1`, `2130706433`) is refused: getaddrinfo, and a proxy
    /// that uses it, would read it as one. The `url` crate rewrites these for `ws://` and `wss://`, but not for the
    /// schemes of a proxy, and our own resolver would send them to DNS. An address in its usual form goes on, to be
    /// judged by `filter` as what the resolver returns for it.
    pub fn check_name(&self, host: &str) -> Verdict {
        let host = normalise(host);
        if self.deny.lists_domain_of(&host) || (ends_in_number(&host) && host.parse::<IpAddr>().is_err()) {
            return Verdict::Refused;
        }
        Verdict::Resolve { host_allowed: self.allow.hosts.contains(&host) }
    }

    /// Judges a target's name that a proxy will resolve, out of our sight: names that mean something only inside the
    /// proxy's network are refused unless `allow` lists them. (A target that is an address goes to [`Egress::vet`].)
    pub fn check_name_behind_proxy(&self, host: &str) -> Result<(), Forbidden> {
        let host = normalise(host);
        if let Ok(ip) = host.parse() {
            return if self.vet(false, ip) { Ok(()) } else { Err(Forbidden) };
        }
        match self.check_name(&host) {
            Verdict::Refused => Err(Forbidden),
            Verdict::Resolve { host_allowed: false } if is_internal(&host) => Err(Forbidden),
            Verdict::Resolve { .. } => Ok(()),
        }
    }

    /// Whether `ip` may be dialled.
    ///
    /// A NAT64 address is judged as the IPv4 address inside, since that is where the connection ends. 6to4 and Teredo
    /// are refused by default; an IPv4 rule in `deny` catches them too, but one in `allow` does not open them.
    pub fn vet(&self, host_allowed: bool, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        if iter::once(ip).chain(ends_at(ip).into_iter().flatten()).any(|ip| self.deny.contains(ip)) {
            return false;
        }
        let judged = nat64(ip).map_or(ip, IpAddr::V4);
        host_allowed || self.allow.contains(judged) || self.allow.names_nat64(ip) || is_global(judged)
    }

    /// The addresses, in their order and canonical form, that may be dialled. No address at all is not forbidden.
    pub fn filter(&self, host_allowed: bool, addrs: Vec<IpAddr>) -> Result<Vec<IpAddr>, Forbidden> {
        let any = !addrs.is_empty();
        let kept: Vec<_> =
            addrs.into_iter().map(|ip| ip.to_canonical()).filter(|ip| self.vet(host_allowed, *ip)).collect();
        if any && kept.is_empty() { Err(Forbidden) } else { Ok(kept) }
    }
}

/// A list of rules, split by kind.
#[derive(Debug, Default)]
struct Rules {
    v4: Vec<Ipv4Net>,
    v6: Vec<Ipv6Net>,
    hosts: HashSet<String>,
}

impl Rules {
    fn new(rules: Vec<Rule>) -> Self {
        let mut sorted = Self::default();
        for rule in rules {
            match rule {
                Rule::Net(IpNet::V4(net)) => sorted.v4.push(net),
                Rule::Net(IpNet::V6(net)) => match unmapped(net) {
                    Some(net) => sorted.v4.push(net),
                    None => sorted.v6.push(net),
                },
                Rule::Host(host) => {
                    sorted.hosts.insert(normalise(&host));
                }
            }
        }
        sorted
    }

    fn contains(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => self.v4.iter().any(|net| net.contains(&ip)),
            IpAddr::V6(ip) => self.v6.iter().any(|net| net.contains(&ip)),
        }
    }

    /// Whether a rule written for NAT64 addresses covers `ip`. A wide one (`::/0`) does not count: whoever writes it
    /// thinks of IPv6, and would open all of private IPv4.
    fn names_nat64(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V6(v6) if nat64(ip).is_some() => {
                self.v6.iter().any(|net| net.prefix_len() >= 96 && net.contains(&v6))
            }
            _ => false,
        }
    }

    /// Whether the host, or a domain that it is in, is listed.
    fn lists_domain_of(&self, host: &str) -> bool {
        iter::successors(Some(host), |domain| Some(domain.split_once('.')?.1)).any(|domain| self.hosts.contains(domain))
    }
}

/// The IPv4 net that a net of mapped addresses (`::ffff:10.0.0.0/104`) stands for: addresses come here unmapped.
fn unmapped(net: Ipv6Net) -> Option<Ipv4Net> {
    let prefix = net.prefix_len().checked_sub(96)?;
    Ipv4Net::new(net.addr().to_ipv4_mapped()?, prefix).ok()
}

/// Names compare without case and without the root's dot (RFC 4343; RFC 1034, 3.1).
fn normalise(host: &str) -> String {
    host.trim_end_matches('.').to_ascii_lowercase()
}

/// The URL Standard's "ends in a number" (4.2): the last label is decimal, or `0x` and hexadecimal. No top-level domain
/// is (RFC 3696, 2).
fn ends_in_number(host: &str) -> bool {
    let last = host.rsplit('.').next().unwrap_or_default();
    let hex = last.strip_prefix("0x").is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
    hex || (!last.is_empty() && last.bytes().all(|b| b.is_ascii_digit()))
}

/// Names of one network only: without a dot, or under a domain that public DNS does not hold (RFC 6761, 6.3; RFC 6762;
/// ICANN's reservation of `internal`).
fn is_internal(host: &str) -> bool {
    match host.rsplit_once('.') {
        None => true,
        Some((_, top)) => ["localhost", "local", "internal"].contains(&top),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn rules(list: &[&str]) -> Vec<Rule> {
        list.iter().map(|rule| rule.parse().map(Rule::Net).unwrap_or_else(|_| Rule::Host((*rule).to_owned()))).collect()
    }

    fn egress(allow: &[&str], deny: &[&str]) -> Egress {
        Egress::new(rules(allow), rules(deny))
    }

    fn vet(egress: &Egress, ip: &str) -> bool {
        egress.vet(false, ip.parse().unwrap())
    }

    fn mapped(ip: Ipv4Addr) -> IpAddr {
        ip.to_ipv6_mapped().into()
    }

    fn in_nat64(ip: Ipv4Addr) -> IpAddr {
        Ipv6Addr::from_bits((0x0064_ff9b << 96) | u128::from(ip.to_bits())).into()
    }

    fn in_6to4(ip: Ipv4Addr) -> IpAddr {
        Ipv6Addr::from_bits((0x2002 << 112) | (u128::from(ip.to_bits()) << 80) | 1).into()
    }

    fn in_teredo(server: Ipv4Addr, client: Ipv4Addr) -> IpAddr {
        let (server, client) = (u128::from(server.to_bits()), u128::from(!client.to_bits()));
        Ipv6Addr::from_bits((0x2001 << 112) | (server << 64) | client).into()
    }

    #[test]
    fn numeric_spellings_of_loopback_end_up_refused() {
        let egress = egress(&[], &[]);
        let spellings = ["0x7f.1", "2130706433", "017700000001", "0x7f000001", "127.1", "127.0.0.1.", "１２７.0.0.1"];
        for spelling in spellings {
            let url = url::Url::parse(&format!("ws://{spelling}/")).unwrap();
            let Some(url::Host::Ipv4(ip)) = url.host() else { panic!("{spelling}: {url}") };
            assert_eq!(egress.filter(false, vec![ip.into()]), Err(Forbidden), "{spelling}");

            // What the `url` crate leaves alone, in the URL of a proxy for one.
            let name = spelling.trim_end_matches('.');
            if name.is_ascii() && name.parse::<IpAddr>().is_err() {
                assert_eq!(egress.check_name(spelling), Verdict::Refused, "{spelling}");
            }
        }
        let url = url::Url::parse("ws://[::ffff:7f00:1]/").unwrap();
        let Some(url::Host::Ipv6(ip)) = url.host() else { panic!("{url}") };
        assert_eq!(egress.filter(false, vec![ip.into()]), Err(Forbidden));
    }

    #[test]
    fn a_name_that_getaddrinfo_would_take_for_a_number_is_refused() {
        let egress = egress(&[], &[]);
        for name in ["1", "1.2.3", "256.1.1.1", "0127.0.0.1", "foo.0x10", "0x", "a.1.", "0X7F.1"] {
            assert_eq!(egress.check_name(name), Verdict::Refused, "{name}");
        }
        for name in ["1.example", "0x7f.com", "127.0.0.1.nip.io", "0xg", "10.0.0.1", "::1", "::ffff:1.2.3.4"] {
            assert_eq!(egress.check_name(name), Verdict::Resolve { host_allowed: false }, "{name}");
        }
    }

    #[test]
    fn deny_covers_subdomains_and_allow_is_exact() {
        let egress = egress(&["db.corp.example", "ok.bad.example"], &["bad.example", "Odd.Example."]);
        let refused =
            ["bad.example", "BAD.example.", "a.bad.example", "a.b.Bad.Example", "ok.bad.example", "odd.example"];
        for name in refused {
            assert_eq!(egress.check_name(name), Verdict::Refused, "{name}");
        }
        for name in ["db.corp.example", "DB.corp.example."] {
            assert_eq!(egress.check_name(name), Verdict::Resolve { host_allowed: true }, "{name}");
        }
        for name in ["notbad.example", "example", "bad.example.com", "x.db.corp.example", "corp.example", "", "."] {
            assert_eq!(egress.check_name(name), Verdict::Resolve { host_allowed: false }, "{name}");
        }
    }

    #[test]
    fn names_behind_a_proxy_must_be_public_or_allowed() {
        let egress = egress(&["printer.local", "intranet", "10.0.0.0/8"], &["bad.example"]);
        for host in ["example.com", "printer.local", "intranet", "10.1.2.3", "8.8.8.8", "localhost.example"] {
            assert_eq!(egress.check_name_behind_proxy(host), Ok(()), "{host}");
        }
        let refused = ["localhost", "a.localhost", "db", "db.", "x.local", "m.internal", "a.bad.example"];
        for host in refused.into_iter().chain(["2130706433", "192.168.0.1", "::1", "::ffff:127.0.0.1"]) {
            assert_eq!(egress.check_name_behind_proxy(host), Err(Forbidden), "{host}");
        }
    }

    #[test]
    fn an_allowed_name_may_be_private_but_not_denied() {
        let egress = egress(&[], &["10.9.0.0/16", "::/128"]);
        let ip = |ip: &str| ip.parse::<IpAddr>().unwrap();
        assert!(egress.vet(true, ip("10.0.0.1")));
        assert!(egress.vet(true, ip("169.254.169.254")));
        assert!(!egress.vet(true, ip("10.9.0.1")));
        assert!(!egress.vet(true, ip("::ffff:10.9.0.1")));
        assert!(!egress.vet(false, ip("10.0.0.1")));
    }

    #[test]
    fn an_ipv4_rule_in_deny_catches_every_form_of_its_addresses() {
        let inside = Ipv4Addr::new(198, 41, 0, 4);
        let outside = Ipv4Addr::new(8, 8, 8, 8);
        for deny in ["198.41.0.0/24", "::ffff:198.41.0.0/120"] {
            let egress = egress(&["0.0.0.0/0", "::/0"], &[deny]);
            for ip in [inside.into(), mapped(inside), in_nat64(inside), in_6to4(inside)] {
                assert!(!egress.vet(true, ip), "{ip}");
            }
            for ip in [in_teredo(outside, inside), in_teredo(inside, outside)] {
                assert!(!egress.vet(true, ip), "{ip}");
            }
            for ip in [outside.into(), mapped(outside), in_nat64(outside), in_6to4(outside)] {
                assert!(egress.vet(false, ip), "{ip}");
            }
        }
    }

    #[test]
    fn allow_opens_what_it_names_and_no_more() {
        let v4 = egress(&["::ffff:10.0.0.0/104"], &[]);
        for ip in ["10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::a01:203"] {
            assert!(vet(&v4, ip), "{ip}");
        }
        for ip in ["192.168.0.1", "2002:a01:203::1", "64:ff9b::c0a8:1", "::a01:203"] {
            assert!(!vet(&v4, ip), "{ip}");
        }
        let v6 = egress(&["::/0"], &[]);
        assert!(vet(&v6, "fd00::1") && vet(&v6, "2002:a01:203::1") && vet(&v6, "64:ff9b:1::1"));
        assert!(!vet(&v6, "10.0.0.1") && !vet(&v6, "::ffff:10.0.0.1") && !vet(&v6, "64:ff9b::a00:1"));
        let translated = egress(&["64:ff9b::a00:0/104"], &[]);
        assert!(vet(&translated, "64:ff9b::a00:1") && !vet(&translated, "10.0.0.1"));
    }

    #[test]
    fn the_unspecified_address_is_this_machine() {
        let egress = egress(&["0.0.0.0/0", "::/0"], &["127.0.0.1/32", "::1/128"]);
        assert!(!vet(&egress, "0.0.0.0") && !vet(&egress, "::") && !vet(&egress, "::ffff:0.0.0.0"));
        assert!(vet(&egress, "127.0.0.2"));
    }

    #[test]
    fn filter_keeps_the_order_and_fails_only_when_nothing_is_left() {
        let egress = egress(&[], &[]);
        let list = |ips: &[&str]| ips.iter().map(|ip| ip.parse().unwrap()).collect::<Vec<IpAddr>>();
        let mixed = list(&["2606:4700::1", "10.0.0.1", "::ffff:8.8.8.8", "::1", "1.1.1.1"]);
        assert_eq!(egress.filter(false, mixed), Ok(list(&["2606:4700::1", "8.8.8.8", "1.1.1.1"])));
        assert_eq!(egress.filter(false, list(&["10.0.0.1", "::1"])), Err(Forbidden));
        assert_eq!(egress.filter(false, vec![]), Ok(vec![]));
    }

    fn any_v4() -> impl Strategy<Value = Ipv4Addr> {
        // Half of them near the special blocks, which a random address seldom hits.
        let seeds =
            vec![0u32, 0x0a00_0000, 0x6440_0000, 0x7f00_0001, 0xa9fe_a9fe, 0xac10_0000, 0xc0a8_0000, 0xe000_0000];
        let near = (prop::sample::select(seeds), -3i32..3);
        prop_oneof![any::<u32>(), near.prop_map(|(seed, step)| seed.wrapping_add_signed(step))]
            .prop_map(Ipv4Addr::from_bits)
    }

    fn any_ip() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            any_v4().prop_map(IpAddr::V4),
            any_v4().prop_map(mapped),
            any_v4().prop_map(in_nat64),
            any_v4().prop_map(in_6to4),
            (any_v4(), any_v4()).prop_map(|(server, client)| in_teredo(server, client)),
            any::<u128>().prop_map(|bits| Ipv6Addr::from_bits(bits).into()),
        ]
    }

    fn any_net() -> impl Strategy<Value = Rule> {
        (any_ip(), 0u8..=128).prop_map(|(ip, prefix)| {
            let prefix = if ip.is_ipv4() { prefix % 33 } else { prefix };
            Rule::Net(IpNet::new(ip, prefix).unwrap())
        })
    }

    fn any_v4_net() -> impl Strategy<Value = Rule> {
        (any_v4(), 0u8..=32).prop_map(|(ip, prefix)| Rule::Net(IpNet::new(ip.into(), prefix).unwrap()))
    }

    proptest! {
        #[test]
        fn mapped_and_nat64_forms_have_the_verdict_of_the_ipv4_address(
            ip in any_v4(),
            allow in prop::collection::vec(any_v4_net(), 0..3),
            deny in prop::collection::vec(any_v4_net(), 0..3),
            host_allowed: bool,
        ) {
            let egress = Egress::new(allow, deny);
            let verdict = egress.vet(host_allowed, ip.into());
            prop_assert_eq!(egress.vet(host_allowed, mapped(ip)), verdict);
            // 0.0.0.0 is this machine only when dialled from it, not from behind a NAT64 gateway.
            if !ip.is_unspecified() {
                prop_assert_eq!(egress.vet(host_allowed, in_nat64(ip)), verdict);
            }
        }

        #[test]
        fn deny_beats_allow(
            ip in any_ip(),
            prefix in 0u8..=32,
            mut allow in prop::collection::vec(any_net(), 0..3),
            host_allowed: bool,
        ) {
            allow.push(Rule::Net(IpNet::from(ip)));
            let deny = Rule::Net(IpNet::new(ip, if ip.is_ipv4() { prefix } else { 96 + prefix }).unwrap());
            prop_assert!(!Egress::new(allow, vec![deny]).vet(host_allowed, ip));
        }

        #[test]
        fn nothing_panics_and_filter_agrees_with_vet(
            host in "\\PC*",
            ips in prop::collection::vec(any_ip(), 0..4),
            allow in prop::collection::vec(any_net(), 0..3),
            deny in prop::collection::vec(any_net(), 0..3),
        ) {
            let egress = Egress::new(allow, deny);
            let _ = (egress.check_name(&host), egress.check_name_behind_proxy(&host));
            let passing = ips.iter().filter(|ip| egress.vet(false, **ip)).count();
            match egress.filter(false, ips.clone()) {
                Ok(kept) => prop_assert_eq!(kept.len(), passing),
                Err(Forbidden) => prop_assert!(passing == 0 && !ips.is_empty()),
            }
        }
    }
}
