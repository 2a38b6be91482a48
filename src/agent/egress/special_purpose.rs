//! The address blocks that are not the public internet, and the IPv4 addresses that hide inside IPv6 ones.
//!
//! Owns the tables, taken from IANA's special-purpose registries for IPv4 and IPv6 (RFC 6890 and its updates) and the
//! multicast ones. Blocks that the registries call globally reachable (AS112, AMT) are left out, except where they lie
//! inside a larger block that is refused whole. Must never know a rule of the operator's: that is `egress`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

/// Whether `ip` is global unicast. Expects the canonical form (no `::ffff:a.b.c.d`), and no NAT64 address.
pub(super) fn is_global(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !REFUSED_V4.iter().any(|net| net.contains(&ip)),
        IpAddr::V6(ip) => GLOBAL_V6.contains(&ip) && !REFUSED_V6.iter().any(|net| net.contains(&ip)),
    }
}

/// The IPv4 address that a NAT64 gateway connects to for this address under the well-known prefix (RFC 6052, 2.1).
pub(super) fn nat64(ip: IpAddr) -> Option<Ipv4Addr> {
    match ip {
        IpAddr::V6(ip) if NAT64.contains(&ip) => Some(low_bits(u128::from(ip))),
        _ => None,
    }
}

/// The other addresses that a connection to `ip` may end at. A rule against one of them is a rule against `ip`.
pub(super) fn ends_at(ip: IpAddr) -> [Option<IpAddr>; 2] {
    let v6 = match ip {
        // Linux connects to its own loopback address when asked for the unspecified one.
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => return [Some(Ipv4Addr::LOCALHOST.into()), None],
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => return [Some(Ipv6Addr::LOCALHOST.into()), None],
        IpAddr::V4(_) => return [None, None],
        IpAddr::V6(v6) => v6,
    };
    let bits = u128::from(v6);
    if let Some(inside) = nat64(ip) {
        [Some(inside.into()), None]
    } else if SIX_TO_FOUR.contains(&v6) {
        [Some(low_bits(bits >> 80).into()), None]
    } else if TEREDO.contains(&v6) {
        // RFC 4380, 4: the server's address, and the client's with every bit inverted.
        [Some(low_bits(bits >> 64).into()), Some(low_bits(!bits).into())]
    } else {
        [None, None]
    }
}

/// The lowest 32 bits as an IPv4 address.
fn low_bits(bits: u128) -> Ipv4Addr {
    Ipv4Addr::from_bits((bits & u128::from(u32::MAX)) as u32)
}

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

/// A block whose prefix fits into the first three groups; all of those here do.
const fn v6(a: u16, b: u16, c: u16, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), prefix)
}

const REFUSED_V4: [Ipv4Net; 17] = [
    v4(0, 0, 0, 0, 8),          // "this network", RFC 791
    v4(10, 0, 0, 0, 8),         // private, RFC 1918
    v4(100, 64, 0, 0, 10),      // carrier-grade NAT, RFC 6598 (Alibaba Cloud's metadata too)
    v4(127, 0, 0, 0, 8),        // loopback, RFC 1122
    v4(168, 63, 129, 16, 32),   // Azure's metadata and wire server: public in form, the host's own in fact
    v4(169, 254, 0, 0, 16),     // link-local, RFC 3927; 169.254.169.254 is most clouds' metadata
    v4(172, 16, 0, 0, 12),      // private, RFC 1918
    v4(192, 0, 0, 0, 24),       // protocol assignments, RFC 6890 (Oracle Cloud's metadata too)
    v4(192, 0, 2, 0, 24),       // documentation, RFC 5737
    v4(192, 88, 99, 0, 24),     // 6to4 relay anycast, RFC 7526
    v4(192, 168, 0, 0, 16),     // private, RFC 1918
    v4(198, 18, 0, 0, 15),      // benchmarking, RFC 2544
    v4(198, 51, 100, 0, 24),    // documentation, RFC 5737
    v4(203, 0, 113, 0, 24),     // documentation, RFC 5737
    v4(224, 0, 0, 0, 4),        // multicast, RFC 5771
    v4(240, 0, 0, 0, 4),        // reserved, RFC 1112
    v4(255, 255, 255, 255, 32), // limited broadcast, RFC 8190
];

/// What IANA has opened for global unicast (RFC 4291, 2.4). All else is refused without being listed: `::`, `::1`,
/// IPv4-compatible `::/96`, `64:ff9b:1::/48`, discard `100::/64`, SRv6 `5f00::/16`, ULA `fc00::/7`, link-local
/// `fe80::/10`, site-local `fec0::/10`, multicast `ff00::/8`, and what is not assigned.
const GLOBAL_V6: Ipv6Net = v6(0x2000, 0, 0, 3);

const REFUSED_V6: [Ipv6Net; 4] = [
    v6(0x2001, 0, 0, 23), // protocol assignments, RFC 2928: Teredo, benchmarking, ORCHID, AMT, drone IDs, ...
    v6(0x2001, 0xdb8, 0, 32), // documentation, RFC 3849
    SIX_TO_FOUR,
    v6(0x3fff, 0, 0, 20), // documentation, RFC 9637
];

const SIX_TO_FOUR: Ipv6Net = v6(0x2002, 0, 0, 16); // RFC 3056, 2
const TEREDO: Ipv6Net = v6(0x2001, 0, 0, 32); // RFC 4380, 2.6
const NAT64: Ipv6Net = v6(0x64, 0xff9b, 0, 96); // RFC 6052, 2.1

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The first and last address of each block, and its neighbours on both sides.
    #[test]
    fn edges_of_every_block() {
        let table: &[(&str, bool)] = &[
            ("0.0.0.0", false),
            ("0.255.255.255", false),
            ("1.0.0.0", true),
            ("9.255.255.255", true),
            ("10.0.0.0", false),
            ("10.255.255.255", false),
            ("11.0.0.0", true),
            ("100.63.255.255", true),
            ("100.64.0.0", false),
            ("100.100.100.200", false),
            ("100.127.255.255", false),
            ("100.128.0.0", true),
            ("126.255.255.255", true),
            ("127.0.0.0", false),
            ("127.255.255.255", false),
            ("128.0.0.0", true),
            ("168.63.129.15", true),
            ("168.63.129.16", false),
            ("168.63.129.17", true),
            ("169.253.255.255", true),
            ("169.254.0.0", false),
            ("169.254.169.254", false),
            ("169.254.255.255", false),
            ("169.255.0.0", true),
            ("172.15.255.255", true),
            ("172.16.0.0", false),
            ("172.31.255.255", false),
            ("172.32.0.0", true),
            ("191.255.255.255", true),
            ("192.0.0.0", false),
            ("192.0.0.9", false),
            ("192.0.0.255", false),
            ("192.0.1.0", true),
            ("192.0.1.255", true),
            ("192.0.2.0", false),
            ("192.0.2.255", false),
            ("192.0.3.0", true),
            ("192.31.196.1", true), // AS112, globally reachable
            ("192.52.193.1", true), // AMT, globally reachable
            ("192.88.98.255", true),
            ("192.88.99.0", false),
            ("192.88.99.255", false),
            ("192.88.100.0", true),
            ("192.167.255.255", true),
            ("192.168.0.0", false),
            ("192.168.255.255", false),
            ("192.169.0.0", true),
            ("198.17.255.255", true),
            ("198.18.0.0", false),
            ("198.19.255.255", false),
            ("198.20.0.0", true),
            ("198.51.99.255", true),
            ("198.51.100.0", false),
            ("198.51.100.255", false),
            ("198.51.101.0", true),
            ("203.0.112.255", true),
            ("203.0.113.0", false),
            ("203.0.113.255", false),
            ("203.0.114.0", true),
            ("223.255.255.255", true),
            ("224.0.0.0", false),
            ("239.255.255.255", false),
            ("240.0.0.0", false),
            ("255.255.255.254", false),
            ("255.255.255.255", false),
            ("::", false),
            ("::1", false),
            ("::8.8.8.8", false), // IPv4-compatible
            ("64:ff9a:ffff:ffff:ffff:ffff:ffff:ffff", false),
            ("64:ff9b:0:0:0:1::", false),
            ("64:ff9b:1::808:808", false),
            ("64:ff9b:1:ffff:ffff:ffff:ffff:ffff", false),
            ("100::", false),
            ("100::ffff:ffff:ffff:ffff", false),
            ("100:0:0:1::1", false),
            ("1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", false),
            ("2000::", true),
            ("2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff", true),
            ("2001::", false),
            ("2001:0:ffff:ffff:ffff:ffff:ffff:ffff", false), // Teredo
            ("2001:1::1", false),
            ("2001:2::1", false),     // benchmarking
            ("2001:20::1", false),    // ORCHIDv2
            ("2001:4:112::1", false), // AS112, inside the block refused whole
            ("2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", false),
            ("2001:200::", true),
            ("2001:db7:ffff:ffff:ffff:ffff:ffff:ffff", true),
            ("2001:db8::", false),
            ("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", false),
            ("2001:db9::", true),
            ("2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff", true),
            ("2002::", false),
            ("2002:808:808::1", false),
            ("2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff", false),
            ("2003::", true),
            ("2620:4f:8000::1", true), // AS112, globally reachable
            ("3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff", true),
            ("3fff::", false),
            ("3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff", false),
            ("3fff:1000::", true),
            ("3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", true),
            ("4000::", false),
            ("5f00::", false),
            ("5f00:ffff:ffff:ffff:ffff:ffff:ffff:ffff", false),
            ("fc00::", false),
            ("fd00:ec2::254", false), // EC2's metadata
            ("fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", false),
            ("fe80::", false),
            ("febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", false),
            ("fec0::", false),
            ("feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", false),
            ("ff00::", false),
            ("ff02::1", false),
            ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", false),
        ];
        for (ip, global) in table {
            assert_eq!(is_global(ip.parse().unwrap()), *global, "{ip}");
        }
    }

    #[test]
    fn nat64_is_the_well_known_96_and_nothing_beside_it() {
        let table = [
            ("64:ff9b::", Some("0.0.0.0")),
            ("64:ff9b::a00:1", Some("10.0.0.1")),
            ("64:ff9b::ffff:ffff", Some("255.255.255.255")),
            ("64:ff9b::1:0:0", None),
            ("64:ff9a:ffff:ffff:ffff:ffff:ffff:ffff", None),
            ("64:ff9b:1::a00:1", None),
            ("10.0.0.1", None),
        ];
        for (ip, inside) in table {
            assert_eq!(nat64(ip.parse().unwrap()), inside.map(|ip| ip.parse().unwrap()), "{ip}");
        }
    }

    #[test]
    fn addresses_behind_addresses() {
        // The Teredo example is RFC 4380's form: server 65.54.227.120, client 192.0.2.45.
        let table: [(&str, [Option<&str>; 2]); 7] = [
            ("0.0.0.0", [Some("127.0.0.1"), None]),
            ("::", [Some("::1"), None]),
            ("10.0.0.1", [None, None]),
            ("64:ff9b::a00:1", [Some("10.0.0.1"), None]),
            ("2002:a00:1::5", [Some("10.0.0.1"), None]),
            ("2001:0:4136:e378:8000:63bf:3fff:fdd2", [Some("65.54.227.120"), Some("192.0.2.45")]),
            ("2001:200::a00:1", [None, None]),
        ];
        for (ip, behind) in table {
            assert_eq!(ends_at(ip.parse().unwrap()), behind.map(|ip| ip.map(|ip| ip.parse().unwrap())), "{ip}");
        }
    }
}
