//! A writer of restic repositories that writes whatever it is told: names that are no names, sizes that lie, contents that
//! are not there. It opens a repository that restic made, so that everything is sealed as a holder of the password would.
//!
//! Format: restic's `doc/design.rst`, version 2. `restic check` finds nothing wrong with what is written honestly.

use std::fs;
use std::path::{Path, PathBuf};

use aes256ctr_poly1305aes::aead::AeadInPlace as _;
use aes256ctr_poly1305aes::{Aes256CtrPoly1305Aes, Key, Nonce, Tag};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// The time that forged nodes and snapshots carry.
const TIME: &str = "2026-01-15T10:20:30.123456789Z";

/// A repository that is being added to; [`Forge::finish`] writes what was added.
pub struct Forge {
    root: PathBuf,
    key: [u8; 64],
    nonce: u128,
    pack: Vec<u8>,
    blobs: Vec<Value>,
    header: Vec<u8>,
}

/// How a blob is told of in the index, where that is not the truth.
#[derive(Clone, Copy)]
pub enum Told {
    /// As it is.
    Truth,
    /// With another length once it is decompressed.
    Plain(u32),
}

impl Forge {
    /// Opens a repository with its only key.
    pub fn open(root: &Path, password: &str) -> Self {
        let key = fs::read_dir(root.join("keys")).unwrap().next().unwrap().unwrap().path();
        let key: Value = serde_json::from_slice(&fs::read(key).unwrap()).unwrap();
        let bytes = |value: &Value| BASE64_STANDARD.decode(value.as_str().unwrap()).unwrap();
        let number = |name: &str| u32::try_from(key[name].as_u64().unwrap()).unwrap();
        let log_n = u8::try_from(number("N").ilog2()).unwrap();
        let params = scrypt::Params::new(log_n, number("r"), number("p")).unwrap();
        let mut derived = [0; 64];
        scrypt::scrypt(password.as_bytes(), &bytes(&key["salt"]), &params, &mut derived).unwrap();
        let sealed = bytes(&key["data"]);
        let (nonce, rest) = sealed.split_at(16);
        let (body, tag) = rest.split_at(rest.len() - 16);
        let mut plain = body.to_vec();
        Aes256CtrPoly1305Aes::new(Key::from_slice(&derived))
            .decrypt_in_place_detached(Nonce::from_slice(nonce), b"", &mut plain, Tag::from_slice(tag))
            .unwrap();
        let master: Value = serde_json::from_slice(&plain).unwrap();
        let parts = [bytes(&master["encrypt"]), bytes(&master["mac"]["k"]), bytes(&master["mac"]["r"])];
        Self {
            root: root.to_owned(),
            key: parts.concat().try_into().unwrap(),
            nonce: 1,
            pack: Vec::new(),
            blobs: Vec::new(),
            header: Vec::new(),
        }
    }

    fn seal(&mut self, plain: &[u8]) -> Vec<u8> {
        self.nonce += 1;
        let nonce = self.nonce.to_be_bytes();
        let mut body = plain.to_vec();
        let tag = Aes256CtrPoly1305Aes::new(Key::from_slice(&self.key))
            .encrypt_in_place_detached(Nonce::from_slice(&nonce), b"", &mut body)
            .unwrap();
        [&nonce[..], &body, &tag[..]].concat()
    }

    /// Adds a part of a file. Returns its id.
    pub fn data(&mut self, plain: &[u8]) -> String {
        self.blob("data", &id(plain), plain, Told::Truth)
    }

    /// Adds a blob under any id.
    pub fn blob(&mut self, kind: &str, id: &str, plain: &[u8], told: Told) -> String {
        let compressed = zstd::bulk::compress(plain, 1).unwrap();
        let (offset, sealed) = (self.pack.len(), self.seal(&compressed));
        let plain = if let Told::Plain(length) = told { length } else { u32::try_from(plain.len()).unwrap() };
        self.pack.extend_from_slice(&sealed);
        self.blobs.push(json!({
            "id": id, "type": kind, "offset": offset, "length": sealed.len(), "uncompressed_length": plain,
        }));
        self.header.push(if kind == "tree" { 3 } else { 2 });
        self.header.extend_from_slice(&u32::try_from(sealed.len()).unwrap().to_le_bytes());
        self.header.extend_from_slice(&plain.to_le_bytes());
        let hex = |at: usize| u8::from_str_radix(&id[at..at + 2], 16).unwrap();
        self.header.extend((0..64).step_by(2).map(hex));
        id.to_owned()
    }

    /// Adds a folder. Returns its id.
    pub fn tree(&mut self, nodes: &[Value]) -> String {
        let mut json = serde_json::to_vec(&json!({ "nodes": nodes })).unwrap();
        json.push(b'\n');
        self.blob("tree", &id(&json), &json, Told::Truth)
    }

    /// A file of some content.
    pub fn file(&mut self, name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Value {
        let content = content.as_ref();
        let parts = if content.is_empty() { Vec::new() } else { vec![self.data(content)] };
        let mut node = node("file", name);
        (node["size"], node["content"]) = (content.len().into(), json!(parts));
        node
    }

    /// A folder with some nodes.
    pub fn folder(&mut self, name: impl AsRef<[u8]>, nodes: &[Value]) -> Value {
        let subtree = self.tree(nodes);
        folder_of(name, &subtree)
    }

    /// Writes everything, and a snapshot that has the nodes in the folder of that path. Returns the snapshot's id.
    pub fn finish(mut self, path: &Path, nodes: &[Value]) -> String {
        let mut tree = self.tree(nodes);
        for name in path.iter().skip(1).collect::<Vec<_>>().into_iter().rev() {
            tree = self.tree(&[folder_of(std::os::unix::ffi::OsStrExt::as_bytes(name), &tree)]);
        }
        let (header, mut pack) = (std::mem::take(&mut self.header), std::mem::take(&mut self.pack));
        let header = self.seal(&header);
        pack.extend_from_slice(&header);
        pack.extend_from_slice(&u32::try_from(header.len()).unwrap().to_le_bytes());
        let name = id(&pack);
        let folder = self.root.join("data").join(&name[..2]);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(&name), pack).unwrap();
        let blobs = std::mem::take(&mut self.blobs);
        self.document("index", &json!({ "packs": [{ "id": name, "blobs": blobs }] }));
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        let snapshot = json!({
            "time": TIME, "tree": tree, "paths": [path], "hostname": host.trim(), "username": "forger",
            "tags": ["fileserver"],
        });
        self.document("snapshots", &snapshot)
    }

    fn document(&mut self, folder: &str, json: &Value) -> String {
        let compressed = zstd::bulk::compress(&serde_json::to_vec(json).unwrap(), 1).unwrap();
        let sealed = self.seal(&[&[2][..], &compressed].concat());
        let name = id(&sealed);
        fs::write(self.root.join(folder).join(&name), sealed).unwrap();
        name
    }
}

/// The id that honest bytes have.
pub fn id(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A node without content.
pub fn node(kind: &str, name: impl AsRef<[u8]>) -> Value {
    json!({
        "name": quoted(name.as_ref()), "type": kind, "mode": 0o644, "mtime": TIME, "atime": TIME, "ctime": TIME,
        "uid": 0, "gid": 0, "user": "root", "group": "root", "inode": 1, "device_id": 1, "links": 1, "content": null,
    })
}

/// A folder by what is in it.
pub fn folder_of(name: impl AsRef<[u8]>, subtree: &str) -> Value {
    let mut node = node("dir", name);
    (node["mode"], node["subtree"]) = ((0o755_u32 | 1 << 31).into(), subtree.into());
    node
}

/// A symlink.
pub fn symlink(name: impl AsRef<[u8]>, target: &str) -> Value {
    let mut node = node("symlink", name);
    (node["mode"], node["linktarget"]) = ((0o777_u32 | 1 << 27).into(), target.into());
    node
}

/// An extended attribute for a node.
pub fn attribute(name: &str, value: &[u8]) -> Value {
    json!({ "name": name, "value": BASE64_STANDARD.encode(value) })
}

/// As Go quotes it, without the quotes: restic's way to store any bytes in JSON.
fn quoted(name: &[u8]) -> String {
    let plain = |byte: &u8| byte.is_ascii_graphic() && !b"\\\"".contains(byte) || *byte == b' ';
    name.iter().map(|byte| if plain(byte) { char::from(*byte).to_string() } else { format!("\\x{byte:02x}") }).collect()
}
