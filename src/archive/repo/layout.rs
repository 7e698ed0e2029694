//! Where in a target each object lies.
//!
//! | | `plain` | `barman`, `barman-cloud` |
//! |---|---|---|
//! | WAL, `.partial`, `.backup` | `<name>` | `wals/<first 16 digits>/<name>` |
//! | history | `<name>` | `wals/<name>` |
//! | checksum | `<name>.sha256` | `walrelay/<name>.sha256` |
//! | pieces of an unfinished segment | `<segment>.chunks/<piece>` | `walrelay/<segment>.chunks/<piece>` |
//! | content that differs | `<name>.conflict-<sum>` | `walrelay/<name>.conflict-<sum>` |
//! | what was damaged | `<name>.damaged-<sum>` | `walrelay/<name>.damaged-<sum>` |
//!
//! Objects carry the suffixes of their [`Format`]; in a Barman server's directory compression has none,
//! because Barman finds it by content. What only walrelay knows stays out of Barman's `wals`.

use super::codec::Format;
use super::name::{ChunkName, FileKind, FileName};

/// How a target arranges its objects.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Layout {
    /// As in `pg_wal`: one directory.
    #[default]
    Plain,
    /// A Barman server's directory.
    Barman,
    /// What barman-cloud-wal-archive writes and barman-cloud-wal-restore reads.
    BarmanCloud,
}

/// Why an object lies aside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Aside {
    /// Another content came first.
    Conflict,
    /// It did not match its checksum when it was replaced.
    Damaged,
}

impl Aside {
    fn label(self) -> &'static str {
        match self {
            Aside::Conflict => ".conflict-",
            Aside::Damaged => ".damaged-",
        }
    }
}

/// What a path stands for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Item {
    /// A file of WAL, a history or a label.
    File(FileName, Format),
    /// The checksum of a file.
    Sidecar(FileName),
    /// A piece of an unfinished segment.
    Chunk(ChunkName, Format),
    /// Content kept aside.
    Aside(FileName, Aside, Format),
    /// Somebody else's.
    Unknown,
}

impl Layout {
    /// The name in a configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Layout::Plain => "plain",
            Layout::Barman => "barman",
            Layout::BarmanCloud => "barman-cloud",
        }
    }

    /// Whether names do not show the compression.
    pub fn hides_compression(self) -> bool {
        self == Layout::Barman
    }

    /// Path of a file.
    pub fn file(self, name: &FileName, format: Format) -> String {
        let suffix = format.suffix();
        match (self, name.kind()) {
            (Layout::Plain, _) => format!("{name}{suffix}"),
            (_, FileKind::History) => format!("wals/{name}{suffix}"),
            (_, _) => format!("wals/{}/{name}{suffix}", &name.as_str()[..16]),
        }
    }

    /// The directory that files lie in, or in directories of.
    pub fn dir_of_files(self) -> &'static str {
        match self {
            Layout::Plain => "",
            Layout::Barman | Layout::BarmanCloud => "wals",
        }
    }

    /// Path of a file's checksum.
    pub fn sidecar(self, name: &FileName) -> String {
        format!("{}{name}.sha256", self.own())
    }

    /// Directory of the pieces of a segment.
    pub fn chunk_dir(self, segment: &FileName) -> String {
        format!("{}{segment}.chunks", self.own())
    }

    /// Where files lie whose names come after this one, and pieces of them: directories, and the path in each that all of
    /// them come after. Others may be there, too.
    pub fn places_after(self, name: &FileName) -> Vec<(&'static str, String)> {
        match self {
            Layout::Plain => vec![("", name.to_string())],
            Layout::Barman | Layout::BarmanCloud => {
                // Histories lie beside the directories of the segments.
                let files = self.file(name, Format::PLAIN);
                vec![("wals", files), ("walrelay", format!("{}{name}", self.own()))]
            }
        }
    }

    /// Path of a piece.
    pub fn chunk(self, chunk: &ChunkName, format: Format) -> String {
        format!("{}/{}{}", self.chunk_dir(&chunk.segment), chunk.file_name(), format.suffix())
    }

    /// Path of content kept aside; `sum` tells it from other such content.
    pub fn aside(self, name: &FileName, why: Aside, sum: &str, format: Format) -> String {
        format!("{}{name}{}{sum}{}", self.own(), why.label(), format.suffix())
    }

    /// What a path stands for.
    pub fn parse(self, path: &str) -> Item {
        self.parse_file(path).or_else(|| self.parse_own(path)).unwrap_or(Item::Unknown)
    }

    fn parse_file(self, path: &str) -> Option<Item> {
        let (name, format) = Format::split(path.rsplit('/').next()?);
        let name = FileName::parse(name)?;
        (self.file(&name, format) == path).then_some(Item::File(name, format))
    }

    fn parse_own(self, path: &str) -> Option<Item> {
        let rest = path.strip_prefix(self.own())?;
        if let Some((dir, piece)) = rest.split_once('/') {
            let segment = segment(dir.strip_suffix(".chunks")?)?;
            let (piece, format) = Format::split(piece);
            return Some(Item::Chunk(ChunkName::parse(&segment, piece)?, format));
        }
        if let Some(name) = rest.strip_suffix(".sha256") {
            return FileName::parse(name).map(Item::Sidecar);
        }
        [Aside::Conflict, Aside::Damaged].into_iter().find_map(|why| {
            let (name, sum) = rest.split_once(why.label())?;
            Some(Item::Aside(FileName::parse(name)?, why, Format::split(sum).1))
        })
    }

    fn own(self) -> &'static str {
        match self {
            Layout::Plain => "",
            Layout::Barman | Layout::BarmanCloud => "walrelay/",
        }
    }
}

fn segment(text: &str) -> Option<FileName> {
    FileName::parse(text).filter(|name| name.kind() == FileKind::Segment)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUTS: [Layout; 3] = [Layout::Plain, Layout::Barman, Layout::BarmanCloud];

    fn name(text: &str) -> FileName {
        FileName::parse(text).unwrap()
    }

    #[test]
    fn barmans_directories() {
        let file = |text| Layout::BarmanCloud.file(&name(text), Format::PLAIN);
        assert_eq!(file("000000020000000A000000FF"), "wals/000000020000000A/000000020000000A000000FF");
        assert_eq!(file("00000002.history"), "wals/00000002.history");
    }

    #[test]
    fn every_path_says_what_it_is() {
        let names = ["000000020000000A000000FF", "000000020000000A000000FF.partial", "00000002.history"];
        for layout in LAYOUTS {
            for (name, format) in names.into_iter().flat_map(|it| Format::all().map(move |f| (name(it), f))) {
                let item = Item::File(name.clone(), format);
                assert_eq!(layout.parse(&layout.file(&name, format)), item);
                assert_eq!(layout.parse(&layout.sidecar(&name)), Item::Sidecar(name.clone()));
                for why in [Aside::Conflict, Aside::Damaged] {
                    let path = layout.aside(&name, why, "0123456789abcdef", format);
                    assert_eq!(layout.parse(&path), Item::Aside(name.clone(), why, format));
                }
            }
            let chunk = ChunkName::of(&name(names[0]), 8192, b"abc");
            let path = layout.chunk(&chunk, Format::PLAIN);
            assert_eq!(layout.parse(&path), Item::Chunk(chunk, Format::PLAIN));
        }
    }

    #[test]
    fn what_others_keep_there_is_left_alone() {
        for layout in LAYOUTS {
            for path in
                ["", "/", "x", "base/20260101/data.tar", "wals/xlog.db", "wals/00/000000010000000000000001"]
            {
                assert_eq!(layout.parse(path), Item::Unknown, "{path}");
            }
        }
        assert_eq!(Layout::Barman.parse("000000010000000000000001"), Item::Unknown);
    }

    #[test]
    fn fuzz_layout() {
        bolero::check!().for_each(|bytes: &[u8]| {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            LAYOUTS.iter().for_each(|layout| drop(layout.parse(text)));
        });
    }
}
