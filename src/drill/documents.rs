//! What the files of a drill hold: documents that other programs can open, made by ourselves, the same ones every time.

use std::fmt::Write as _;
use std::io::Write as _;

use crate::error::{Error, Result};

/// Numbers that look like chance and are the same in every run (`SplitMix64`).
#[derive(Debug)]
pub(super) struct Noise(u64);

impl Noise {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 up to, and without, `end`, which is at least 1.
    pub(super) fn below(&mut self, end: u32) -> u32 {
        // The upper half: as many bits as the answer can have.
        let scaled = (self.next() >> 32) * u64::from(end);
        u32::try_from(scaled >> 32).unwrap_or(0)
    }

    pub(super) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(u32::try_from(from.len()).unwrap_or(1)) as usize]
    }

    /// Bytes without any structure, as something encrypted has.
    pub(super) fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend(self.next().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}

const PLACES: [&str; 9] =
    ["Amberlo", "Bessin", "Dakoma", "Erevale", "Fontaine-Basse", "Gulmari", "Korvane", "Lindiwe", "São Aniceto"];
const ITEMS: [&str; 6] = ["blankets", "rice 25 kg", "water filters", "school kits", "tarpaulins", "cash grants"];
const SENTENCES: [&str; 8] = [
    "The road is open again for lorries.",
    "Two wells were dry; the team comes back on Monday.",
    "Agreed: the list is read out to the committee before anything is handed out.",
    "Nobody was at the store, the count is to be done again.",
    "The school asked for forty more kits.",
    "Prices at the market went up by a tenth.",
    "All signatures are in the folder.",
    "To be decided: who keeps the second key.",
];

/// A document that fits its name: the extension says what it is.
pub(super) fn document(name: &str, noise: &mut Noise) -> Result<Vec<u8>> {
    let (title, extension) = name.rsplit_once('.').unwrap_or((name, ""));
    Ok(match extension {
        "pdf" => pdf(&format!("{title}, reference {:06}", noise.below(1_000_000))),
        "png" => png(48, 32 + noise.below(32), noise)?,
        "csv" => csv(noise).into_bytes(),
        "geojson" => {
            let (x, y) = (noise.below(100_000), noise.below(100_000));
            let place = noise.pick(&PLACES);
            format!(
                "{{\"type\":\"Feature\",\"properties\":{{\"place\":\"{place}\"}},\"geometry\":{{\"type\":\"Point\",\
                 \"coordinates\":[1.{x:05},2.{y:05}]}}}}\n"
            )
            .into_bytes()
        }
        "html" => format!("<!doctype html>\n<title>{title}</title>\n<p>{}</p>\n", sentences(noise)).into_bytes(),
        _ => format!("{title}\n\n{}\n", sentences(noise)).into_bytes(),
    })
}

fn sentences(noise: &mut Noise) -> String {
    let count = 6 + noise.below(30);
    let mut text = String::new();
    for number in 0..count {
        let _ = write!(text, "{}. {}: {}\n   ", number + 1, noise.pick(&PLACES), noise.pick(&SENTENCES));
    }
    text.trim_end().to_owned()
}

fn csv(noise: &mut Noise) -> String {
    let mut text = "number,place,item,quantity,amount\n".to_owned();
    for number in 1..20 + noise.below(60) {
        let (place, item) = (noise.pick(&PLACES), noise.pick(&ITEMS));
        let quantity = 1 + noise.below(400);
        let _ = writeln!(text, "{number},{place},{item},{quantity},{}.{:02}", quantity * 7, noise.below(100));
    }
    text
}

/// A PDF of one page with one line of text, in the letters that every reader has.
pub(super) fn pdf(text: &str) -> Vec<u8> {
    // Parentheses and backslashes would end the text.
    let text: String =
        text.chars().filter(|letter| letter.is_ascii_alphanumeric() || " ,.:-".contains(*letter)).collect();
    let drawing = format!("BT /F1 24 Tf 72 720 Td ({text}) Tj ET");
    let objects = [
        "<< /Type /Catalog /Pages 2 0 R >>".into(),
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>".into(),
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>"
            .into(),
        format!("<< /Length {} >>\nstream\n{drawing}\nendstream", drawing.len()),
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>".to_owned(),
    ];
    let mut file = "%PDF-1.4\n".to_owned();
    let mut table = format!("xref\n0 {}\n0000000000 65535 f \n", objects.len() + 1);
    for (number, object) in (1..).zip(&objects) {
        let _ = writeln!(table, "{:010} 00000 n ", file.len());
        let _ = write!(file, "{number} 0 obj\n{object}\nendobj\n");
    }
    let start = file.len();
    let trailer = format!("trailer\n<< /Size {} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n", objects.len() + 1);
    (file + &table + &trailer).into_bytes()
}

/// A picture in three bytes a pixel: hills under a sky, as far as a few pixels go.
fn png(width: u32, height: u32, noise: &mut Noise) -> Result<Vec<u8>> {
    let ground = height / 3 + noise.below(height / 3);
    let mut rows = Vec::new();
    for y in 0..height {
        // Each row begins with its filter: none.
        rows.push(0);
        for _ in 0..width {
            let shade = u8::try_from(noise.below(24)).unwrap_or(0);
            rows.extend(if y < ground { [120 + shade, 170 + shade, 220] } else { [110, 130 + shade, 70 + shade] });
        }
    }
    let mut packed = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    let packed = packed.write_all(&rows).and_then(|()| packed.finish());
    let packed = packed.map_err(|error| Error::bug("a picture cannot be packed").detail(error))?;
    let mut header = [width.to_be_bytes(), height.to_be_bytes()].concat();
    // Eight bits a colour, three colours, and the only ways there are to pack, filter and interlace.
    header.extend([8, 2, 0, 0, 0]);
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, body) in [(b"IHDR", header), (b"IDAT", packed), (b"IEND", Vec::new())] {
        let mut sum = flate2::Crc::new();
        sum.update(kind);
        sum.update(&body);
        file.extend(u32::try_from(body.len()).unwrap_or(0).to_be_bytes());
        file.extend(kind);
        file.extend(body);
        file.extend(sum.sum().to_be_bytes());
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_what_their_names_say_and_the_same_every_time() {
        let made = |name| document(name, &mut Noise::new(7)).unwrap();
        for (name, kind) in [("a report (final).pdf", "application/pdf"), ("IMG_01.png", "image/png")] {
            assert_eq!(infer::get(&made(name)).unwrap().mime_type(), kind);
            assert_eq!(made(name), made(name));
        }
        assert!(std::str::from_utf8(&made("survey.csv")).unwrap().lines().all(|line| line.matches(',').count() == 4));
        let _: serde_json::Value = serde_json::from_slice(&made("well.geojson")).unwrap();
        let picture = made("IMG_01.png");
        let mut unpacked = Vec::new();
        let body = &picture[33 + 8..];
        std::io::Read::read_to_end(&mut flate2::read::ZlibDecoder::new(body), &mut unpacked).unwrap();
        assert_eq!(unpacked.len() % (48 * 3 + 1), 0);
        let mut noise = Noise::new(1);
        assert!((0..1000).all(|_| noise.below(3) < 3));
    }
}
