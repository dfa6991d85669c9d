//! A terminal screen as a picture: cells become an SVG, the SVG becomes a PNG. No display is needed.

use std::fmt::Write as _;
use std::path::Path;

use resvg::{tiny_skia, usvg};

const CELL: (f32, f32) = (9.0, 19.0);
const FONT: &str = "DejaVu Sans Mono";
const BACKGROUND: &str = "#14161b";
const FOREGROUND: &str = "#d8dee9";
const PALETTE: [&str; 16] = [
    "#2e3440", "#e06c75", "#98c379", "#e5c07b", "#61afef", "#c678dd", "#56b6c2", "#d8dee9", "#5c6370", "#ff7b86",
    "#b5e890", "#ffd68a", "#82c7ff", "#e0a0f5", "#7fe0ea", "#ffffff",
];

/// Writes the screen to a PNG file.
pub fn write(screen: &vt100::Screen, path: &Path) {
    let (rows, columns) = screen.size();
    let svg = svg(screen, rows.get(), columns.get());
    let mut options = usvg::Options::default();
    options.fontdb_mut().load_system_fonts();
    let tree = usvg::Tree::from_str(&svg, &options).unwrap();
    let size = tree.size().to_int_size();
    let mut pixels = tiny_skia::Pixmap::new(size.width(), size.height()).unwrap();
    resvg::render(&tree, tiny_skia::Transform::default(), &mut pixels.as_mut());
    pixels.save_png(path).unwrap();
}

fn svg(screen: &vt100::Screen, rows: u16, columns: u16) -> String {
    let (width, height) = (f32::from(columns) * CELL.0 + 16.0, f32::from(rows) * CELL.1 + 16.0);
    let mut svg = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}'>\
         <rect width='100%' height='100%' fill='{BACKGROUND}'/>\
         <g font-family='{FONT}' font-size='15' xml:space='preserve'>"
    );
    for row in 0..rows {
        for column in 0..columns {
            let Some(cell) = screen.cell(row, column) else { continue };
            if cell.is_wide_continuation() {
                continue;
            }
            let (mut ink, mut paper) = (color(cell.fgcolor(), FOREGROUND), color(cell.bgcolor(), BACKGROUND));
            if cell.inverse() {
                std::mem::swap(&mut ink, &mut paper);
            }
            let (x, y) = (8.0 + f32::from(column) * CELL.0, 8.0 + f32::from(row) * CELL.1);
            let wide = if cell.is_wide() { 2.0 } else { 1.0 };
            if paper != BACKGROUND {
                // Half a pixel of overlap hides the seams between neighbours.
                let _ = write!(
                    svg,
                    "<rect x='{x}' y='{y}' width='{}' height='{}' fill='{paper}'/>",
                    CELL.0 * wide + 0.5,
                    CELL.1 + 0.5
                );
            }
            if cell.has_contents() && cell.contents() != " " {
                let weight = if cell.bold() { " font-weight='bold'" } else { "" };
                let opacity = if cell.dim() { " opacity='0.6'" } else { "" };
                let line = if cell.underline() { " text-decoration='underline'" } else { "" };
                let text = cell.contents().replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
                let _ = write!(svg, "<text x='{x}' y='{}' fill='{ink}'{weight}{opacity}{line}>{text}</text>", y + 14.5);
            }
        }
    }
    svg.push_str("</g></svg>");
    svg
}

fn color(color: vt100::Color, default: &str) -> String {
    match color {
        vt100::Color::Default => default.to_owned(),
        vt100::Color::Idx(index @ 0..16) => PALETTE[usize::from(index)].to_owned(),
        vt100::Color::Idx(index @ 16..232) => {
            let level = |step: u8| if step == 0 { 0 } else { 55 + step * 40 };
            let index = index - 16;
            format!("#{:02x}{:02x}{:02x}", level(index / 36), level(index / 6 % 6), level(index % 6))
        }
        vt100::Color::Idx(index) => {
            let grey = 8 + (index - 232) * 10;
            format!("#{grey:02x}{grey:02x}{grey:02x}")
        }
        vt100::Color::Rgb(red, green, blue) => format!("#{red:02x}{green:02x}{blue:02x}"),
    }
}
