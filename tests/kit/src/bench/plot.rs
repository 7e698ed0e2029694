//! Bars in SVG files.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::figures::{WALRELAY, show};

const WIDTH: i32 = 760;
const BAR: i32 = 22;
/// Where bars begin and where the longest ends.
const LEFT: i32 = 260;
const RIGHT: i32 = WIDTH - 90;
const OURS: RGBColor = RGBColor(0x2b, 0x6c, 0xb0);
const THEIRS: RGBColor = RGBColor(0xa0, 0xae, 0xc0);
const INK: RGBColor = RGBColor(0x2d, 0x37, 0x48);

/// Bars that belong together.
pub(crate) struct Group {
    pub(crate) title: String,
    pub(crate) bars: Vec<(&'static str, f64)>,
}

/// Draws groups of bars, each to a scale of its own, one below the other.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn draw(path: &Path, title: &str, groups: &[Group]) -> Result<(), String> {
    let lines: i32 = groups.iter().map(|group| 1 + group.bars.len() as i32).sum();
    let height = 50 + lines * BAR + 14 * groups.len() as i32;
    let area = SVGBackend::new(path, (WIDTH as u32, height as u32)).into_drawing_area();
    paint(&area, title, groups).map_err(|error| format!("{}: {error}", path.display()))
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

fn paint(area: &Area<'_>, title: &str, groups: &[Group]) -> Drawn {
    area.fill(&WHITE)?;
    write(area, title, (12, 14), 21, HPos::Left)?;
    let mut top = 44;
    for group in groups {
        write(area, &group.title, (12, top), 17, HPos::Left)?;
        top += BAR;
        let most = group.bars.iter().map(|bar| bar.1).fold(f64::MIN_POSITIVE, f64::max);
        for (name, value) in &group.bars {
            bar(area, top, name, *value, most)?;
            top += BAR;
        }
        top += 14;
    }
    Ok(area.present()?)
}

fn bar(area: &Area<'_>, top: i32, name: &str, value: f64, most: f64) -> Drawn {
    let end = LEFT + (f64::from(RIGHT - LEFT) * value.max(0.0) / most) as i32;
    let color = if name.starts_with(WALRELAY) { OURS } else { THEIRS };
    write(area, name, (LEFT - 8, top), 16, HPos::Right)?;
    area.draw(&Rectangle::new([(LEFT, top), (end.max(LEFT + 1), top + BAR - 6)], color.filled()))?;
    write(area, &show(value), (end + 6, top), 16, HPos::Left)
}

fn write(area: &Area<'_>, text: &str, at: (i32, i32), size: i32, side: HPos) -> Drawn {
    let style = ("sans-serif", size).into_font().color(&INK).pos(Pos::new(side, VPos::Top));
    Ok(area.draw(&Text::new(text.to_owned(), at, style))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_drawn() {
        let scratch = crate::Scratch::new("plot");
        let path = scratch.join("plot.svg");
        let groups =
            [Group { title: "MB/s".to_owned(), bars: vec![(WALRELAY, 4000.0), ("cp & others", 0.5)] }];
        draw(&path, "Speed", &groups).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        assert!(svg.contains("4000") && svg.contains("cp &amp; others") && svg.contains("</svg>"), "{svg}");
    }
}
