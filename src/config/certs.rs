//! PEM files that a configuration names.
//!
//! Owns reading extra roots (`[egress] ca_file`, `ringway dev --ca-file`) and a listener's own certificate
//! (`[listen.tls]`), and saying what is wrong with them. Must never accept a file in which nothing can be trusted: a
//! roots file without a certificate is an error, not an empty list; nor repeat anything of a private key.
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::crypto::aws_lc_rs;
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, RootCertStore};
use rustls_pki_types::pem::{Error as PemError, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::error::{ConfigError, ConfigErrors};

/// A certificate chain and its key, fit to serve.
#[derive(Debug)]
pub struct Identity {
    pub key: CertifiedKey,
    /// What will make clients refuse it, but need not keep it from being served: it has expired, say.
    pub warnings: Vec<ConfigError>,
}

/// The certificate chain of one PEM file and the private key of another, which may be the same file.
///
/// # Errors
/// A file cannot be read, holds no such thing, or the two do not belong together.
pub fn load_identity(cert: &Path, key: &Path) -> Result<Identity, ConfigErrors> {
    let read = |path: &Path| std::fs::read(path).map_err(|error| ConfigError::unreadable(path, &error));
    let chain = read(cert).and_then(|pem| parse_chain(&pem).map_err(|message| ConfigError::new(cert, message)));
    let parsed_key = read(key).and_then(|pem| parse_key(&pem, key));
    let (chain, parsed_key) = match (chain, parsed_key) {
        (Ok(chain), Ok(parsed_key)) => (chain, parsed_key),
        (chain, parsed_key) => return Err(ConfigErrors(chain.err().into_iter().chain(parsed_key.err()).collect())),
    };
    let provider = aws_lc_rs::default_provider();
    let signing = provider.key_provider.load_private_key(parsed_key).map_err(|_| unusable_key(key))?;
    let identity = CertifiedKey::new(chain, signing);
    check_match(&identity, cert, key)?;
    let warnings = check_chain(&identity.cert, SystemTime::now());
    let warnings = warnings.into_iter().map(|message| ConfigError::new(cert, message)).collect();
    Ok(Identity { key: identity, warnings })
}

fn parse_chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain = parse_certificates(pem)?;
    for (i, certificate) in chain.iter().enumerate() {
        // What one reads in it later is what clients read, so it must be readable.
        parse_certificate(certificate).ok_or_else(|| format!("certificate {} is damaged", i + 1))?;
    }
    Ok(chain)
}

fn parse_certificate<'a>(certificate: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    X509Certificate::from_der(certificate).ok().map(|(_, certificate)| certificate)
}

fn parse_key(pem: &[u8], path: &Path) -> Result<PrivateKeyDer<'static>, ConfigError> {
    const EXPECTED: &str = "PEM with \"-----BEGIN PRIVATE KEY-----\" is expected";
    let has = |text: &str| pem.windows(text.len()).any(|window| window == text.as_bytes());
    if has("BEGIN ENCRYPTED PRIVATE KEY") || has("Proc-Type: 4,ENCRYPTED") {
        let message = "the private key is encrypted, and there is nobody to ask for its passphrase";
        return Err(ConfigError::new(path, message).with_hint("decrypt it with `openssl pkey -in FILE -out FILE`"));
    }
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        PemError::NoItemsFound => ConfigError::new(path, format!("holds no private key: {EXPECTED}")),
        _ => ConfigError::new(path, "is no PEM file, or a damaged one"),
    })
}

fn unusable_key(path: &Path) -> ConfigError {
    let message = "the private key cannot be used: RSA of 2048 to 8192 bits, ECDSA (P-256, P-384, P-521) or Ed25519 is \
                   expected";
    ConfigError::new(path, message)
}

/// The first certificate is the one that is served, so it must be the key's.
fn check_match(identity: &CertifiedKey, cert: &Path, key: &Path) -> Result<(), ConfigError> {
    let belongs = |certificate: &CertificateDer<'static>| match CertifiedKey::new(
        vec![certificate.clone()],
        identity.key.clone(),
    )
    .keys_match()
    {
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(true),
        Err(rustls::Error::InconsistentKeys(_)) => Ok(false),
        Err(error) => Err(error),
    };
    let first = identity.cert.first().map_or(Ok(false), belongs);
    match first {
        Ok(true) => Ok(()),
        Err(error) => Err(ConfigError::new(cert, format!("certificate 1 cannot be served: {error}"))),
        Ok(false) => Err(match identity.cert.iter().position(|other| belongs(other) == Ok(true)) {
            Some(at) => {
                let message = format!("the certificate of the key is number {} in the file", at + 1);
                ConfigError::new(cert, message).with_hint("the server's own must come first, then who signed it")
            }
            None => ConfigError::new(key, format!("is not the key of the certificate in {}", cert.display())),
        }),
    }
}

/// What clients will not like. `now` is when they look.
fn check_chain(chain: &[CertificateDer<'_>], now: SystemTime) -> Vec<String> {
    let parsed: Vec<_> = chain.iter().filter_map(parse_certificate).collect();
    let mut warnings = Vec::new();
    for (i, certificate) in parsed.iter().enumerate() {
        let name = if i == 0 { "the certificate".to_owned() } else { format!("certificate {} of the chain", i + 1) };
        let validity = certificate.validity();
        let [from, until] = [validity.not_before, validity.not_after].map(|time| moment(time.timestamp()));
        if now > until {
            warnings.push(format!("{name} expired on {}", humantime::format_rfc3339_seconds(until)));
        }
        if now < from {
            warnings.push(format!("{name} is not valid before {}", humantime::format_rfc3339_seconds(from)));
        }
        // RFC 8446 section 4.4.2: each should certify the one in front of it.
        if i > 0 && parsed[i - 1].issuer().as_raw() != certificate.subject().as_raw() {
            warnings.push(format!("{name} is not the one that signed the one in front of it"));
        }
    }
    if parsed.first().is_some_and(|own| !matches!(own.subject_alternative_name(), Ok(Some(_)))) {
        warnings.push(
            "the certificate has no subject alternative name, so it is for no host that a client asks for".into(),
        );
    }
    warnings
}

/// A time in seconds since 1970, within what can be written down.
fn moment(timestamp: i64) -> SystemTime {
    const LAST_SECOND_OF_9999: u64 = 253_402_300_799;
    UNIX_EPOCH + Duration::from_secs(u64::try_from(timestamp).unwrap_or(0).min(LAST_SECOND_OF_9999))
}

/// The certificates of a PEM file, each of them usable as a root; never empty.
pub fn load_roots(path: &Path) -> Result<Vec<CertificateDer<'static>>, ConfigErrors> {
    let pem = std::fs::read(path).map_err(|error| ConfigError::unreadable(path, &error))?;
    parse_roots(&pem).map_err(|message| ConfigError::new(path, message).into())
}

fn parse_certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certs: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, PemError>>()
        .map_err(|_| "is no PEM file, or a damaged one".to_owned())?;
    if certs.is_empty() {
        return Err("holds no certificate: PEM with \"-----BEGIN CERTIFICATE-----\" is expected".to_owned());
    }
    Ok(certs)
}

fn parse_roots(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certs = parse_certificates(pem)?;
    let mut roots = RootCertStore::empty();
    for (i, cert) in certs.iter().enumerate() {
        let number = i + 1;
        roots.add(cert.clone()).map_err(|error| format!("certificate {number} cannot be used as a root: {error}"))?;
    }
    Ok(certs)
}

#[cfg(test)]
#[path = "certs_tests.rs"]
mod identity_tests;

#[cfg(test)]
mod tests {
    use super::*;

    fn root_pem() -> String {
        rcgen::generate_simple_self_signed(["relay.example.com".to_owned()]).unwrap().cert.pem()
    }

    #[test]
    fn certificates_are_read() {
        let two = root_pem() + "some words between\n" + &root_pem();
        assert_eq!(parse_roots(two.as_bytes()).unwrap().len(), 2);
    }

    #[test]
    fn files_without_a_usable_root_are_refused() {
        for pem in ["", "not PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert!(parse_roots(pem.as_bytes()).is_err(), "{pem:?}");
        }
        let pem = root_pem();
        assert!(parse_roots(&pem.as_bytes()[..pem.len() / 2]).is_err());
        let error = load_roots(Path::new("/nonexistent/ca.pem")).unwrap_err().to_string();
        assert!(error.starts_with("/nonexistent/ca.pem: cannot be read"), "{error}");
    }
}
