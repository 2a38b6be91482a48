//! PEM files that a configuration names.
//!
//! Owns reading extra roots (`[egress] ca_file`, `ringway dev --ca-file`) and saying what is wrong with them. Must never
//! accept a file in which nothing can be trusted: a roots file without a certificate is an error, not an empty list.
use std::path::Path;

use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::{Error as PemError, PemObject};

use super::error::{ConfigError, ConfigErrors};

/// The certificates of a PEM file, each of them usable as a root; never empty.
pub fn load_roots(path: &Path) -> Result<Vec<CertificateDer<'static>>, ConfigErrors> {
    let pem = std::fs::read(path).map_err(|error| ConfigError::unreadable(path, &error))?;
    parse_roots(&pem).map_err(|message| ConfigError::new(path, message).into())
}

fn parse_roots(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certs: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, PemError>>()
        .map_err(|_| "is no PEM file, or a damaged one".to_owned())?;
    if certs.is_empty() {
        return Err("holds no certificate: PEM with \"-----BEGIN CERTIFICATE-----\" is expected".to_owned());
    }
    let mut roots = RootCertStore::empty();
    for (i, cert) in certs.iter().enumerate() {
        let number = i + 1;
        roots.add(cert.clone()).map_err(|error| format!("certificate {number} cannot be used as a root: {error}"))?;
    }
    Ok(certs)
}

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
