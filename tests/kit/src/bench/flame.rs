//! Flame graphs: the stacks that perf has seen, as rectangles in SVG. Each is as wide as what was seen of a function and of all that it
//! called; who calls is below. (The libraries for that have a licence that `deny.toml` does not know.)

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Of the picture, pixels.
const WIDTH: f64 = 1200.0;
const HEIGHT: usize = 16;
/// Of a letter.
const LETTER: f64 = 6.5;
/// What is narrower is not shown.
const LEAST: f64 = 0.4;
/// Deeper is not shown.
const DEEPEST: usize = 60;

/// A function, called by the one above it.
#[derive(Debug, Default)]
struct Frame {
    samples: u64,
    called: BTreeMap<String, Frame>,
}

/// Draws what `perf script -F comm,ip,sym` says.
pub(crate) fn draw(title: &str, script: &str) -> String {
    let mut root = Frame::default();
    for sample in script.split("\n\n") {
        root.add(stack(sample));
    }
    let depth = root.depth().min(DEEPEST) + 1;
    let height = (depth + 2) * HEIGHT;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"monospace\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fffdf5\"/><text x=\"6\" y=\"13\">{}: {} samples</text>\n",
        escape(title),
        root.samples
    );
    let scale = WIDTH / root.samples.max(1) as f64;
    root.draw_called(&mut svg, 0.0, depth, scale, root.samples.max(1));
    svg += "</svg>\n";
    svg
}

/// A sample's functions, the first caller first: the thread.
fn stack(sample: &str) -> Vec<String> {
    let mut lines = sample.lines().filter(|line| !line.trim().is_empty());
    let Some(thread) = lines.next() else { return Vec::new() };
    let function = |line: &str| {
        let name = line.trim().split_once(' ').map_or("[unknown]", |(_, name)| name.trim());
        name.split("+0x").next().unwrap_or(name).to_owned()
    };
    let mut stack: Vec<String> = lines.map(function).collect();
    stack.push(thread.trim().to_owned());
    stack.reverse();
    stack
}

impl Frame {
    fn add(&mut self, stack: Vec<String>) {
        if stack.is_empty() {
            return;
        }
        self.samples += 1;
        stack.into_iter().take(DEEPEST).fold(self, |frame, name| {
            let called = frame.called.entry(name).or_default();
            called.samples += 1;
            called
        });
    }

    fn depth(&self) -> usize {
        self.called.values().map(|called| 1 + called.depth()).max().unwrap_or(0)
    }

    fn draw_called(&self, svg: &mut String, mut x: f64, row: usize, scale: f64, all: u64) {
        for (name, called) in &self.called {
            let width = called.samples as f64 * scale;
            if width >= LEAST && row > 0 {
                called.draw(svg, name, (x, row, width), all);
                called.draw_called(svg, x, row - 1, scale, all);
            }
            x += width;
        }
    }

    fn draw(&self, svg: &mut String, name: &str, (x, row, width): (f64, usize, f64), all: u64) {
        let (y, part) = (row * HEIGHT, 100.0 * self.samples as f64 / all as f64);
        let shade = name.bytes().fold(7_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte)));
        let colour = format!("hsl({},75%,{}%)", 20 + shade % 35, 62 + shade / 64 % 14);
        let letters = ((width - 4.0) / LETTER) as usize;
        let shown: String = if letters < 3 { String::new() } else { name.chars().take(letters).collect() };
        let _ = writeln!(
            svg,
            "<g><title>{0}: {part:.2} %</title><rect x=\"{x:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"{1}\" fill=\"{colour}\"/>\
             <text x=\"{2:.1}\" y=\"{3}\">{4}</text></g>",
            escape(name),
            HEIGHT - 1,
            x + 2.0,
            y + HEIGHT - 4,
            escape(&shown)
        );
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_calls_is_below_and_as_wide_as_what_it_calls() {
        let sample =
            |leaf: &str| format!("walreceiver 12 \n\tffff {leaf}\n\t55aa walrelay::<a>::run+0x1f\n\n");
        let svg = draw("live", &[sample("copy"), sample("copy"), sample("sync")].concat());
        assert!(svg.contains("live: 3 samples"), "{svg}");
        for (name, part) in [
            ("walreceiver 12", "100.00"),
            ("walrelay::&lt;a&gt;::run", "100.00"),
            ("copy", "66.67"),
            ("sync", "33.33"),
        ] {
            assert!(svg.contains(&format!("<title>{name}: {part} %</title>")), "{name}: {svg}");
        }
        let row = |name: &str| {
            let at = svg.split(&format!("<title>{name}")).nth(1).and_then(|rest| rest.split("y=\"").nth(1));
            at.and_then(|rest| rest.split('"').next()?.parse::<usize>().ok())
        };
        assert!(row("copy") < row("walrelay") && row("walrelay") < row("walreceiver"));
    }

    #[test]
    fn nothing_seen_is_an_empty_picture() {
        assert!(draw("stored", "").ends_with("</svg>\n"));
    }
}
