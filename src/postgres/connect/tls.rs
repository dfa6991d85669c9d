//! How a connection is protected, and against whom. The checks are rustls's own; what is written here only decides which
//! of them are asked for.
//!
//! Unless the operator says otherwise, a server on another machine must prove its name (`verify-full`), and nothing falls
//! back to less. What the operator asks for is done, and a weaker mode is said on the screen.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme, version};
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::conninfo::{Conninfo, Host};
use crate::error::{Error, Result};

/// What to try with one server, in order, and what to say about it.
pub struct Protection {
    pub attempts: &'static [SslMode],
    pub connector: MakeRustlsConnect,
    pub warning: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

enum Roots {
    System,
    File(PathBuf),
}

pub fn protection(conninfo: &Conninfo, host: &Host) -> Result<Protection> {
    let provider = Arc::new(ring::default_provider());
    let Host::Tcp { name, .. } = host else {
        // A socket has no network to protect it from. The connector is never asked.
        let connector = MakeRustlsConnect::new(unverified(&provider)?);
        return Ok(Protection { attempts: &[SslMode::Disable], connector, warning: None });
    };
    let given = conninfo.value("sslmode").map(mode).transpose()?;
    let roots = roots(conninfo, given)?;
    let mode = match (given, &roots) {
        (Some(mode), _) => mode,
        (None, Some(_)) if conninfo.value("sslrootcert").is_some() => Mode::VerifyFull,
        (None, _) if host.is_local() => Mode::Prefer,
        (None, _) => Mode::VerifyFull,
    };
    let verifier: Arc<dyn ServerCertVerifier> = match (mode, roots) {
        (Mode::VerifyFull, roots) => chain(&provider, &roots.unwrap_or(Roots::System))?,
        (Mode::VerifyCa | Mode::Require, Some(roots)) => Arc::new(AnyName(chain(&provider, &roots)?)),
        (Mode::VerifyCa, None) => {
            return Err(Error::operator(
                "sslmode=verify-ca needs sslrootcert, the certificate of the authority to trust",
            )
            .hint("Add sslrootcert=FILE, or use sslmode=verify-full with the system's authorities."));
        }
        _ => Arc::new(Unverified(provider.signature_verification_algorithms)),
    };
    Ok(Protection {
        attempts: match mode {
            Mode::Disable => &[SslMode::Disable],
            Mode::Allow => &[SslMode::Disable, SslMode::Require],
            Mode::Prefer => &[SslMode::Prefer, SslMode::Disable],
            Mode::Require | Mode::VerifyCa | Mode::VerifyFull => &[SslMode::Require],
        },
        connector: MakeRustlsConnect::new(client(conninfo, &provider, verifier)?),
        warning: if host.is_local() { None } else { weakness(mode, name) },
    })
}

fn mode(text: &str) -> Result<Mode> {
    Ok(match text {
        "disable" => Mode::Disable,
        "allow" => Mode::Allow,
        "prefer" => Mode::Prefer,
        "require" => Mode::Require,
        "verify-ca" => Mode::VerifyCa,
        "verify-full" => Mode::VerifyFull,
        _ => {
            return Err(Error::operator("sslmode of the database connection is not known")
                .hint("Use disable, allow, prefer, require, verify-ca or verify-full."));
        }
    })
}

fn weakness(mode: Mode, name: &str) -> Option<String> {
    let why = match mode {
        Mode::Disable => "sslmode=disable: everything, rows included, crosses the network readable",
        Mode::Allow => "sslmode=allow: rows may cross the network readable, and nobody checks who answers",
        Mode::Prefer => {
            "sslmode=prefer: whoever is in between can switch encryption off, and nobody checks who answers"
        }
        Mode::Require => "sslmode=require: encrypted, but the server does not have to prove its name",
        Mode::VerifyCa => "sslmode=verify-ca: any server of that authority could answer",
        Mode::VerifyFull => return None,
    };
    Some(format!("the connection to {name} uses {why}"))
}

/// The authorities to trust. As in libpq, a root certificate in the home folder makes `require` verify the chain.
fn roots(conninfo: &Conninfo, given: Option<Mode>) -> Result<Option<Roots>> {
    match conninfo.value("sslrootcert") {
        Some("system") if !matches!(given, None | Some(Mode::VerifyFull)) => {
            Err(Error::operator("sslrootcert=system needs sslmode=verify-full")
                .hint("Anybody can get a certificate from a public authority, so only the name tells servers apart."))
        }
        Some("system") => Ok(Some(Roots::System)),
        Some(file) => Ok(Some(Roots::File(file.into()))),
        None => Ok(conninfo.home_file(".postgresql/root.crt").filter(|file| file.exists()).map(Roots::File)),
    }
}

fn chain(provider: &Arc<CryptoProvider>, roots: &Roots) -> Result<Arc<WebPkiServerVerifier>> {
    let mut store = RootCertStore::empty();
    let from = match roots {
        Roots::File(file) => {
            for certificate in certificates(file)? {
                store.add(certificate).map_err(|error| {
                    Error::operator(format!("{} holds a certificate that cannot be used", file.display())).detail(error)
                })?;
            }
            file.display().to_string()
        }
        Roots::System => {
            store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            "this machine's list of authorities".to_owned()
        }
    };
    if store.is_empty() {
        return Err(Error::operator(format!("{from} holds no certificate"))
            .hint("Give the certificate of the authority that signed the server's: sslrootcert=FILE."));
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider))
        .build()
        .map_err(|error| Error::operator(format!("{from} cannot be used")).detail(error))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let failed = |why: &dyn std::fmt::Display| {
        Error::operator(format!("cannot read certificates from {}", file.display()))
            .detail(why)
            .hint("It must be a PEM file that you may read; sslrootcert and sslcert name it.")
    };
    let text = fs::read(file).map_err(|error| failed(&error))?;
    CertificateDer::pem_slice_iter(&text).collect::<Result<_, _>>().map_err(|error| failed(&error))
}

fn client(
    conninfo: &Conninfo,
    provider: &Arc<CryptoProvider>,
    verifier: Arc<dyn ServerCertVerifier>,
) -> Result<ClientConfig> {
    let versions: &[_] = match conninfo.value("ssl_min_protocol_version") {
        None | Some("TLSv1" | "TLSv1.1" | "TLSv1.2") => &[&version::TLS13, &version::TLS12],
        Some("TLSv1.3") => &[&version::TLS13],
        Some(_) => {
            return Err(Error::operator("ssl_min_protocol_version of the database connection is not known")
                .hint("Use TLSv1.2 or TLSv1.3."));
        }
    };
    let builder = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(versions)
        .map_err(|error| Error::bug("TLS cannot be set up").detail(error))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity(conninfo)? {
        None => builder.with_no_client_auth(),
        Some((certificates, key)) => builder
            .with_client_auth_cert(certificates, key)
            .map_err(|error| Error::operator("the client certificate and its key cannot be used").detail(error))?,
    };
    // Servers that are reached by sslnegotiation=direct insist on it.
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Ok(config)
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// The certificate by which we prove who we are; the files are libpq's.
fn identity(conninfo: &Conninfo) -> Result<Option<Identity>> {
    let file = |keyword, below| {
        let given = conninfo.value(keyword).map(PathBuf::from);
        given.or_else(|| conninfo.home_file(below).filter(|file| file.exists()))
    };
    let Some(certificate) = file("sslcert", ".postgresql/postgresql.crt") else { return Ok(None) };
    let Some(key) = file("sslkey", ".postgresql/postgresql.key") else {
        return Err(Error::operator(format!("there is a certificate {} but no key for it", certificate.display()))
            .hint("Add sslkey=FILE to the connection string."));
    };
    let failed = |why: &dyn std::fmt::Display| {
        Error::operator(format!("cannot read the private key {}", key.display()))
            .detail(why)
            .hint("It must be a PEM file without a passphrase that you may read; sslkey names it.")
    };
    let facts = fs::metadata(&key).map_err(|error| failed(&error))?;
    let loose = if facts.uid() == 0 { 0o037 } else { 0o077 };
    if facts.permissions().mode() & loose != 0 {
        return Err(Error::operator(format!("the private key {} can be read by others", key.display()))
            .hint(format!("Run chmod 0600 {}.", key.display())));
    }
    let secret = PrivateKeyDer::from_pem_file(&key).map_err(|error| failed(&error))?;
    Ok(Some((certificates(&certificate)?, secret)))
}

fn unverified(provider: &Arc<CryptoProvider>) -> Result<ClientConfig> {
    let verifier = Arc::new(Unverified(provider.signature_verification_algorithms));
    let builder = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::bug("TLS cannot be set up").detail(error))?;
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

/// Encryption without asking who is there, which is what `require` means in libpq. Signatures are still checked.
#[derive(Debug)]
struct Unverified(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

/// `verify-ca`: everything that rustls checks, except that the name does not have to fit.
#[derive(Debug)]
struct AnyName(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // rustls checks the name last, so a wrong name means that the chain, the dates and the use were in order.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            outcome => outcome,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warning(text: &str) -> Option<String> {
        let home = [("HOME".to_owned(), "/nonexistent".to_owned())].into();
        let conninfo = Conninfo::with_environment(text, &home).unwrap();
        protection(&conninfo, &conninfo.targets().unwrap()[0].host).unwrap().warning
    }

    #[test]
    fn a_server_on_another_machine_is_not_reached_weakly_in_silence() {
        for mode in ["disable", "allow", "prefer", "require"] {
            let said = warning(&format!("host=db.example.org sslmode={mode}")).unwrap();
            assert!(said.contains("db.example.org") && said.contains(mode), "{said}");
            assert_eq!(warning(&format!("host=127.0.0.1 sslmode={mode}")), None);
        }
    }
}
