//! Which columns can be named, and what is said of those that cannot.

use crate::wire::{PgError, sqlstate};

use super::{Node, Result, Type, Typed};

/// A column that can be named.
#[derive(Clone, Debug)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) kind: Type,
    pub(super) node: Node,
}

/// Something behind FROM, by the name it goes by.
#[derive(Clone, Debug)]
pub(super) struct Relation {
    pub(super) name: String,
    pub(super) columns: Vec<Column>,
}

/// What FROM, or a part of it, gives.
#[derive(Clone, Debug, Default)]
pub(super) struct Part {
    pub(super) relations: Vec<Relation>,
    /// What can be named without a table, and what `*` stands for.
    pub(super) visible: Vec<Column>,
    /// Columns of a row.
    pub(super) width: usize,
}

/// A query's columns, and those of the queries around it.
#[derive(Debug)]
pub(super) struct Scope<'p> {
    pub(super) part: Part,
    parent: Option<&'p Scope<'p>>,
}

impl Column {
    fn moved(mut self, by: usize) -> Column {
        self.node = moved(self.node, by);
        self
    }

    fn lifted(&self, up: usize) -> Typed {
        let lift = &mut |node: &Node| {
            Ok(match node {
                Node::Column { at, .. } => Some(Node::Column { up, at: *at }),
                _ => None,
            })
        };
        // Columns of a scope are columns of its rows, or the first of two that is not NULL.
        let node = self.node.clone().replace(lift).unwrap_or_else(|_| Node::null());
        Typed { node, kind: self.kind }
    }
}

/// The same for rows in which so many columns come before.
pub(super) fn moved(node: Node, by: usize) -> Node {
    let shift = &mut |node: &Node| {
        Ok(match node {
            Node::Column { up: 0, at } => Some(Node::Column { up: 0, at: at + by }),
            _ => None,
        })
    };
    node.replace(shift).unwrap_or_else(|_| Node::null())
}

impl Part {
    /// Both, the columns of the other behind those of this one.
    pub(super) fn beside(mut self, other: Part) -> Result<Part> {
        let by = self.width;
        for relation in other.relations {
            if self.relations.iter().any(|known| known.name == relation.name) {
                let text = format!("table name \"{}\" specified more than once", relation.name);
                return Err(PgError::error(sqlstate::DUPLICATE_ALIAS, text));
            }
            let columns = relation.columns.into_iter().map(|column| column.moved(by)).collect();
            self.relations.push(Relation { name: relation.name, columns });
        }
        self.visible.extend(other.visible.into_iter().map(|column| column.moved(by)));
        self.width += other.width;
        Ok(self)
    }
}

impl<'p> Scope<'p> {
    pub(super) fn new(part: Part, parent: Option<&'p Scope<'p>>) -> Scope<'p> {
        Scope { part, parent }
    }

    pub(super) fn empty(parent: Option<&'p Scope<'p>>) -> Scope<'p> {
        Scope::new(Part::default(), parent)
    }

    /// This one, then those around it, each with how many it is up.
    fn levels(&self) -> impl Iterator<Item = (usize, &Scope<'p>)> {
        std::iter::successors(Some(self), |scope| scope.parent).enumerate()
    }

    /// A column, and how many queries up it is.
    pub(super) fn column(&self, parts: &[String]) -> Result<(Typed, usize)> {
        match parts {
            [name] => self.unqualified(name),
            [.., table, name] => self.of_table(table, name),
            [] => Err(no_column("", None)),
        }
    }

    fn unqualified(&self, name: &str) -> Result<(Typed, usize)> {
        for (up, scope) in self.levels() {
            if let Some(found) = only(&scope.part.visible, name)? {
                return Ok((found.lifted(up), up));
            }
        }
        Err(no_column(name, self.nearest(name)))
    }

    fn of_table(&self, table: &str, name: &str) -> Result<(Typed, usize)> {
        for (up, scope) in self.levels() {
            let Some(relation) = scope.part.relations.iter().find(|relation| relation.name == table) else {
                continue;
            };
            let found = only(&relation.columns, name)?.ok_or_else(|| {
                let text = format!("column {table}.{name} does not exist");
                with_hint(PgError::error(sqlstate::UNDEFINED_COLUMN, text), self.nearest(name))
            })?;
            return Ok((found.lifted(up), up));
        }
        Err(no_table(table))
    }

    /// The relation of that name in this query itself.
    pub(super) fn relation(&self, name: &str) -> Result<&Relation> {
        self.part.relations.iter().find(|relation| relation.name == name).ok_or_else(|| no_table(name))
    }

    /// The column that somebody may have meant, with its table.
    fn nearest(&self, name: &str) -> Option<String> {
        // PG: MAX_FUZZY_DISTANCE, and no more than half of the letters.
        let most = 3.min(name.chars().count() / 2);
        let relations = self.part.relations.iter();
        let columns = relations.flat_map(|it| it.columns.iter().map(move |column| (&it.name, &column.name)));
        let near = columns.map(|(table, column)| (distance(name, column), table, column));
        let (_, table, column) =
            near.filter(|(distance, ..)| *distance <= most).min_by_key(|(distance, ..)| *distance)?;
        Some(format!("{table}.{column}"))
    }

    /// What a column of this query's rows is called.
    pub(super) fn name_of(&self, at: usize) -> String {
        let is_it = |column: &&Column| column.node == Node::Column { up: 0, at };
        let of = |relation: &Relation| {
            relation.columns.iter().find(is_it).map(|column| format!("{}.{}", relation.name, column.name))
        };
        self.part.relations.iter().find_map(of).unwrap_or_else(|| format!("column{}", at + 1))
    }
}

fn only<'c>(columns: &'c [Column], name: &str) -> Result<Option<&'c Column>> {
    let mut found = columns.iter().filter(|column| column.name == name);
    let first = found.next();
    if found.next().is_some() {
        let text = format!("column reference \"{name}\" is ambiguous");
        return Err(PgError::error(sqlstate::AMBIGUOUS_COLUMN, text));
    }
    Ok(first)
}

pub(super) fn no_column(name: &str, nearest: Option<String>) -> PgError {
    let text = format!("column \"{name}\" does not exist");
    with_hint(PgError::error(sqlstate::UNDEFINED_COLUMN, text), nearest)
}

fn with_hint(error: PgError, nearest: Option<String>) -> PgError {
    match nearest {
        Some(nearest) => error.with_hint(format!("Perhaps you meant to reference the column \"{nearest}\".")),
        None => error,
    }
}

fn no_table(name: &str) -> PgError {
    PgError::error(sqlstate::UNDEFINED_TABLE, format!("missing FROM-clause entry for table \"{name}\""))
}

/// How many letters have to be put in, taken out or changed. Names are cut: nobody means a column by a long text.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<_>, Vec<_>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (at, a) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], at + 1);
        for (to, b) in b.iter().enumerate() {
            let changed = diagonal + usize::from(a != b);
            diagonal = row[to + 1];
            row[to + 1] = changed.min(row[to] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
