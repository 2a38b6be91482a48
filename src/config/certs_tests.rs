//! Certificates and keys of a listener: which are served, which are refused, and in which words.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};

use super::*;

/// A folder of this test's own; gone when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ringway-certs-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// The error without the folder, one line for each problem.
    fn error(&self, cert: &str, key: &str) -> String {
        let error = load_identity(&self.0.join(cert), &self.0.join(key)).expect_err("it was taken");
        error.to_string().replace(&format!("{}/", self.0.display()), "")
    }

    fn warnings(&self, cert: &str, key: &str) -> String {
        let identity = load_identity(&self.0.join(cert), &self.0.join(key)).unwrap();
        ConfigErrors(identity.warnings).to_string().replace(&format!("{}/", self.0.display()), "")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec!["relay.example.com".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// A root, an intermediate that it signed, and a server's certificate that this one signed: (PEM of each, its key).
fn chain() -> ([String; 3], String) {
    let authority = |name| {
        let mut params = params(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    };
    let keys: Vec<KeyPair> = (0..3).map(|_| KeyPair::generate().unwrap()).collect();
    let root = authority("root").self_signed(&keys[0]).unwrap();
    let root_issuer = Issuer::new(authority("root"), &keys[0]);
    let middle = authority("middle").signed_by(&keys[1], &root_issuer).unwrap();
    let middle_issuer = Issuer::new(authority("middle"), &keys[1]);
    let own = params("own").signed_by(&keys[2], &middle_issuer).unwrap();
    ([own.pem(), middle.pem(), root.pem()], keys[2].serialize_pem())
}

#[test]
fn a_chain_with_its_key() {
    let folder = Folder::new("chain");
    let ([own, middle, root], key) = chain();
    folder.write("key.pem", &key);
    folder.write("cert.pem", &format!("some words\n{own}{middle}{root}"));
    assert_eq!(folder.warnings("cert.pem", "key.pem"), "");
    folder.write("both.pem", &format!("{key}{own}{middle}"));
    assert_eq!(folder.warnings("both.pem", "both.pem"), "");
}

#[test]
fn a_chain_in_the_wrong_order() {
    let folder = Folder::new("order");
    let ([own, middle, root], key) = chain();
    folder.write("key.pem", &key);
    folder.write("cert.pem", &format!("{root}{middle}{own}"));
    let expected = "cert.pem: the certificate of the key is number 3 in the file; the server's own must come first, \
                    then who signed it";
    assert_eq!(folder.error("cert.pem", "key.pem"), expected);
    folder.write("cert.pem", &format!("{own}{root}{middle}"));
    let warnings = folder.warnings("cert.pem", "key.pem");
    assert!(warnings.starts_with("cert.pem: certificate 2 of the chain is not the one that signed"), "{warnings}");
}

#[test]
fn what_is_missing_or_damaged() {
    let folder = Folder::new("missing");
    let ([own, ..], key) = chain();
    folder.write("key.pem", &key);
    folder.write("cert.pem", &own);
    folder.write("empty.pem", "");
    folder.write("cut.pem", &own[..own.len() / 2]);
    folder.write("cut-key.pem", &key[..key.len() / 2]);
    folder.write("nonsense.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    folder.write("nonsense-key.pem", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
    for (cert, key, expected) in [
        ("empty.pem", "key.pem", "empty.pem: holds no certificate: PEM with"),
        ("key.pem", "key.pem", "key.pem: holds no certificate: PEM with"),
        ("cert.pem", "cert.pem", "cert.pem: holds no private key: PEM with"),
        ("cut.pem", "key.pem", "cut.pem: is no PEM file, or a damaged one"),
        ("cert.pem", "cut-key.pem", "cut-key.pem: is no PEM file, or a damaged one"),
        ("nonsense.pem", "key.pem", "nonsense.pem: certificate 1 is damaged"),
        ("cert.pem", "nonsense-key.pem", "nonsense-key.pem: the private key cannot be used: RSA of"),
        ("none.pem", "key.pem", "none.pem: cannot be read: No such file"),
        ("empty.pem", "none.pem", "empty.pem: holds no certificate"),
        ("empty.pem", "none.pem", "\nnone.pem: cannot be read: No such file"),
    ] {
        let error = folder.error(cert, key);
        assert!(error.starts_with(expected) || expected.starts_with('\n') && error.contains(expected), "{error}");
    }
}

#[test]
fn a_key_of_another_certificate() {
    let folder = Folder::new("another");
    let ([own, middle, _], _) = chain();
    let (_, other) = chain();
    folder.write("cert.pem", &format!("{own}{middle}"));
    folder.write("key.pem", &other);
    let error = folder.error("cert.pem", "key.pem");
    assert!(error.starts_with("key.pem: is not the key of the certificate in ") && error.ends_with("cert.pem"));
}

#[test]
fn encrypted_keys() {
    let folder = Folder::new("encrypted");
    let ([own, ..], _) = chain();
    folder.write("cert.pem", &own);
    for begin in ["-----BEGIN ENCRYPTED PRIVATE KEY-----", "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED"] {
        folder.write("key.pem", &format!("{begin}\nSECRET\n-----END PRIVATE KEY-----\n"));
        let error = folder.error("cert.pem", "key.pem");
        assert!(error.starts_with("key.pem: the private key is encrypted") && !error.contains("SECRET"), "{error}");
    }
}

#[test]
fn certificates_that_clients_will_refuse() {
    let folder = Folder::new("refused");
    let key = KeyPair::generate().unwrap();
    folder.write("key.pem", &key.serialize_pem());
    let warnings = |params: CertificateParams| {
        folder.write("cert.pem", &params.self_signed(&key).unwrap().pem());
        folder.warnings("cert.pem", "key.pem")
    };
    let mut expired = params("expired");
    expired.not_after = date_time_ymd(2020, 5, 6);
    assert_eq!(warnings(expired), "cert.pem: the certificate expired on 2020-05-06T00:00:00Z");
    let mut early = params("early");
    early.not_before = date_time_ymd(4000, 1, 1);
    assert_eq!(warnings(early), "cert.pem: the certificate is not valid before 4000-01-01T00:00:00Z");
    let nameless = CertificateParams::new(Vec::new()).unwrap();
    assert!(warnings(nameless).contains("no subject alternative name"));
}
