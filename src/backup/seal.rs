//! The repository's encryption: which key a password opens, and how sealed bytes become plain ones.
//!
//! Sealed bytes are `nonce (16) | AES-256-CTR ciphertext | Poly1305-AES tag (16)`. A repository file (snapshot, index,
//! lock, config) is JSON inside, or in version 2 a byte `2` and zstd-compressed JSON. Source: restic's
//! `doc/design.rst`. The key is derived here, because `rustic_core` does it on one processor and it is the longest wait
//! before the first list; seals are opened here, because its readers decompress without a limit and hand the bytes out
//! unchecked.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Read;

use aes256ctr_poly1305aes::aead::AeadInPlace;
use aes256ctr_poly1305aes::{Aes256CtrPoly1305Aes, Key, Nonce, Tag};
use rustic_core::repofile::{KeyFile, MasterKey};
use serde::Deserialize;
use zeroize::{Zeroize, Zeroizing};

use super::sentence;
use super::storage::{Storage, Stored, Why};
use crate::error::Error;
use crate::text;

/// How many keys are tried with a password, as restic does.
const MAX_KEYS: usize = 20;
/// Nonce and tag: what sealing adds to the length.
pub(super) const OVERHEAD: u32 = 32;
/// The most memory that the derivation of one key may ask for; restic itself asks for 32 to 64 MiB.
const MAX_DERIVATION_MEMORY: u64 = 1 << 30;
/// The lanes of a derivation that run at once: each takes its memory again, and restic asks for five to eight of them.
const MAX_DERIVATION_THREADS: usize = 3;
/// The plain length that a repository file may reach; an index file of restic stays under 8 MiB.
pub(super) const MAX_DOCUMENT: usize = 256 << 20;

/// The repository's master key; wiped when dropped.
pub(super) struct Seal(Zeroizing<[u8; 64]>);

impl Seal {
    /// The key that the password opens, and the damage of the others, by the name of the key.
    pub(super) fn find(storage: &Storage, password: &str) -> Result<(Self, BTreeMap<String, String>), Error> {
        #[derive(Deserialize, Default)]
        struct Owner {
            #[serde(default)]
            hostname: String,
        }
        let mut damage = BTreeMap::new();
        let mut keys = Vec::new();
        for (id, size) in storage.list(Stored::Key)? {
            match storage.read_whole(Stored::Key, &id, size) {
                Ok(bytes) => keys.push((id, bytes)),
                Err(failure) if failure.why == Why::Damaged => {
                    damage.insert(Stored::Key.file(&id), sentence(&failure.error));
                }
                Err(failure) if failure.why == Why::Missing => {}
                Err(failure) => return Err(failure.into()),
            }
        }
        // Each try costs 0.4 s: the key that the environment names first, then those that this machine made.
        let hint = std::env::var("RESTIC_KEY_HINT").ok().filter(|hint| !hint.is_empty());
        let here = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        keys.sort_by_cached_key(|(id, bytes)| {
            let owner: Owner = serde_json::from_slice(bytes).unwrap_or_default();
            let hinted = hint.as_ref().is_some_and(|hint| id.to_hex().starts_with(hint));
            (!hinted, owner.hostname != here.trim(), *id)
        });
        let tried = keys.len().min(MAX_KEYS);
        for (id, bytes) in &keys[..tried] {
            match Self::derive(bytes, password) {
                Ok(Some(seal)) => return Ok((seal, damage)),
                Ok(None) => {}
                Err(words) => {
                    let object = Stored::Key.file(id);
                    damage.insert(object.clone(), sentence(&storage.damaged(&object, words).error));
                }
            }
        }
        let damaged: Vec<String> = damage.into_values().collect();
        if !damaged.is_empty() {
            let error = Error::backup(format!("no key of repository {} can be opened", storage.shown));
            let error = damaged.iter().fold(error, |error, words| error.hint(format!("{words}.")));
            return Err(
                error.hint("Put the key file back from a copy of the repository, or use the password of another key.")
            );
        }
        if keys.is_empty() {
            return Err(Error::backup(format!("repository {} has no key", storage.shown))
                .hint("Its folder `keys` is empty: put it back from a copy of the repository."));
        }
        let number = text::counted(tried as u64, "key", "keys");
        Err(Error::operator(format!("the password does not open repository {}", storage.shown)).hint(format!(
            "It was tried with {number}. Check the password file or command, and that it belongs to this repository."
        )))
    }

    /// Opens a key file with a password. `Ok(None)`: another password belongs to it. Costs about 0.4 s of one processor,
    /// by intent.
    pub(super) fn derive(key_file: &[u8], password: &str) -> Result<Option<Self>, String> {
        let key_file: KeyFile = serde_json::from_slice(key_file).map_err(|error| error.to_string())?;
        let params = derivation(&key_file)?;
        let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get().min(MAX_DERIVATION_THREADS));
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(|error| error.to_string())?;
        let mut derived = Self(Zeroizing::new([0; 64]));
        pool.install(|| scrypt::scrypt(password.as_bytes(), &key_file.salt, &params, &mut *derived.0))
            .map_err(|error| error.to_string())?;
        let Some(plain) = derived.open(&key_file.data).map(Zeroizing::new) else { return Ok(None) };
        let master: MasterKey = serde_json::from_slice(&plain).map_err(|error| error.to_string())?;
        Self::from_parts((master.encrypt, master.mac.k, master.mac.r))
            .map(Some)
            .ok_or_else(|| "its master key has a wrong length".into())
    }

    fn from_parts((mut encrypt, mut k, mut r): (Vec<u8>, Vec<u8>, Vec<u8>)) -> Option<Self> {
        let mut key = Zeroizing::new([0; 64]);
        let fits = encrypt.len() == 32 && k.len() == 16 && r.len() == 16;
        if fits {
            key[..32].copy_from_slice(&encrypt);
            key[32..48].copy_from_slice(&k);
            key[48..].copy_from_slice(&r);
        }
        encrypt.zeroize();
        k.zeroize();
        r.zeroize();
        fits.then_some(Self(key))
    }

    /// Sealed bytes that only this repository's key opens.
    pub(super) fn seal(&self, plain: &[u8]) -> Result<Vec<u8>, String> {
        let mut nonce = [0; 16];
        let random = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut nonce));
        random.map_err(|error| error.to_string())?;
        let mut body = plain.to_vec();
        let tag = Aes256CtrPoly1305Aes::new(Key::from_slice(&*self.0))
            .encrypt_in_place_detached(Nonce::from_slice(&nonce), b"", &mut body)
            .map_err(|error| error.to_string())?;
        Ok([&nonce[..], &body, &tag[..]].concat())
    }

    /// The plain bytes, or `None` when the tag does not match: damaged, or sealed with another key.
    pub(super) fn open(&self, sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, rest) = sealed.split_at_checked(16)?;
        let (body, tag) = rest.split_at_checked(rest.len().checked_sub(16)?)?;
        let mut plain = body.to_vec();
        Aes256CtrPoly1305Aes::new(Key::from_slice(&*self.0))
            .decrypt_in_place_detached(Nonce::from_slice(nonce), b"", &mut plain, Tag::from_slice(tag))
            .ok()?;
        Some(plain)
    }

    /// The JSON of a sealed repository file.
    pub(super) fn document(&self, sealed: &[u8]) -> Result<Vec<u8>, String> {
        let plain = self.open(sealed).ok_or("its authentication tag does not match")?;
        match plain.split_first() {
            Some((b'{' | b'[', _)) => Ok(plain),
            Some((2, compressed)) => decompress_unknown(compressed),
            _ => Err("it is neither JSON nor compressed JSON".into()),
        }
    }

    /// A blob of a pack that is too long to be held plain.
    pub(super) fn packed(&self, sealed: &[u8], compressed_from: Option<u32>) -> Result<Packed, String> {
        let bytes = self.open(sealed).ok_or("its authentication tag does not match")?;
        Ok(Packed { bytes, compressed_from })
    }

    /// A blob of a pack. `compressed_from` is its plain length when the index says that it is compressed; the caller
    /// has limited it.
    pub(super) fn blob(&self, sealed: &[u8], compressed_from: Option<u32>) -> Result<Vec<u8>, String> {
        thread_local! {
            /// Making one takes longer than what most blobs need of it.
            static DECOMPRESSOR: RefCell<zstd::bulk::Decompressor<'static>> = RefCell::default();
        }
        let plain = self.open(sealed).ok_or("its authentication tag does not match")?;
        match compressed_from {
            None => Ok(plain),
            Some(length) => DECOMPRESSOR
                .with_borrow_mut(|decompressor| decompressor.decompress(&plain, length as usize))
                .map_err(|error| error.to_string()),
        }
    }
}

/// The content of a blob that is decrypted, and compressed still.
pub(super) struct Packed {
    bytes: Vec<u8>,
    compressed_from: Option<u32>,
}

impl Packed {
    /// Reads it from its beginning, and never more than the index promises and one byte.
    pub(super) fn read(&self) -> Result<Box<dyn Read + '_>, String> {
        let Some(length) = self.compressed_from else { return Ok(Box::new(&*self.bytes)) };
        let decoder = zstd::stream::read::Decoder::with_buffer(&*self.bytes).map_err(|error| error.to_string())?;
        Ok(Box::new(decoder.take(u64::from(length) + 1)))
    }
}

/// Refuses parameters that would make the derivation panic, or ask for more memory or time than any real key does: a
/// key file is the one file that is read before anything in the repository can be authenticated.
fn derivation(key_file: &KeyFile) -> Result<scrypt::Params, String> {
    let (n, r, p) = (u64::from(key_file.n), u64::from(key_file.r), u64::from(key_file.p));
    let memory = n.saturating_mul(r).saturating_mul(128);
    let sane = key_file.kdf == "scrypt" && n.is_power_of_two() && n > 1 && r > 0 && p > 0 && p <= 64;
    let refused = || format!("its key derivation is not usable: {} N={n} r={r} p={p}", key_file.kdf);
    if !sane || memory > MAX_DERIVATION_MEMORY {
        return Err(refused());
    }
    let log_n = u8::try_from(key_file.n.ilog2()).map_err(|_| refused())?;
    scrypt::Params::new(log_n, key_file.r, key_file.p).map_err(|_| refused())
}

fn decompress_unknown(compressed: &[u8]) -> Result<Vec<u8>, String> {
    let mut plain = Vec::new();
    let decoder = zstd::stream::read::Decoder::new(compressed).map_err(|error| error.to_string())?;
    decoder.take(MAX_DOCUMENT as u64 + 1).read_to_end(&mut plain).map_err(|error| error.to_string())?;
    if plain.len() > MAX_DOCUMENT { Err("it is larger than any file of its kind".into()) } else { Ok(plain) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_file(n: u32, r: u32, p: u32) -> String {
        format!(r#"{{"kdf":"scrypt","N":{n},"r":{r},"p":{p},"data":"AAAA","salt":"AAAA"}}"#)
    }

    #[test]
    fn a_key_file_that_asks_for_too_much_is_refused_before_it_is_used() {
        for (n, r, p) in [(0, 8, 1), (3, 8, 1), (1 << 31, 8, 1), (32768, u32::MAX, 1), (2, 1, u32::MAX)] {
            let error = Seal::derive(key_file(n, r, p).as_bytes(), "x").err().unwrap();
            assert!(error.starts_with("its key derivation is not usable"), "{error}");
        }
    }

    #[test]
    fn short_sealed_bytes_are_damage_and_no_panic() {
        let seal = Seal(Zeroizing::new([7; 64]));
        for length in 0..40 {
            assert_eq!(seal.open(&vec![0; length]), None);
        }
    }
}
