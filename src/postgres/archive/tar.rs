//! The members of a tar archive: names and places, from one walk over the headers.

use std::collections::HashMap;
use std::ops::Range;

use super::input::Input;
use crate::error::Result;

const BLOCK: u64 = 512;

/// A dump in tar format begins with its table of contents.
pub fn is_dump(first_bytes: &[u8]) -> bool {
    first_bytes.starts_with(b"toc.dat\0") && first_bytes.get(257..262) == Some(b"ustar")
}

/// Where the bytes of each member are. A header with a wrong checksum is an error. An archive that is cut off is not yet:
/// the members before the cut are whole, and whoever reads the one at the cut, or one after it, is told.
pub fn members(input: &mut Input) -> Result<HashMap<String, Range<u64>>> {
    const WHAT: &str = "the header of a tar member";
    let mut members = HashMap::new();
    while input.remaining() >= BLOCK {
        let mut block = [0; 512];
        input.exact(&mut block, WHAT)?;
        if block.iter().all(|byte| *byte == 0) {
            break;
        }
        let header = tar::Header::from_byte_slice(&block);
        let size = header.entry_size().map_err(|_| input.damaged(WHAT))?;
        // The checksum counts its own field as eight spaces.
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        let own: u32 = block[148..156].iter().map(|byte| u32::from(*byte)).sum();
        if header.cksum().ok() != Some(sum - own + 8 * u32::from(b' ')) {
            return Err(input.damaged(WHAT));
        }
        let name = String::from_utf8_lossy(&header.path_bytes()).into_owned();
        let start = input.position();
        let padded = size.checked_next_multiple_of(BLOCK).ok_or_else(|| input.damaged(WHAT))?;
        let end = start.checked_add(padded).ok_or_else(|| input.damaged(WHAT))?;
        members.insert(name, start..start + size);
        if end > input.length() {
            break;
        }
        input.skip(padded, WHAT)?;
    }
    Ok(members)
}
