//! A query as it is written: names are names, nothing is known of columns and types.

/// `WITH … SELECT … ORDER BY … LIMIT …`
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Query {
    pub(super) with: Vec<Cte>,
    pub(super) body: Body,
    pub(super) order: Vec<Sort>,
    pub(super) limit: Option<Expr>,
    pub(super) offset: Option<Expr>,
}

/// A common table expression.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Cte {
    pub(super) alias: Alias,
    pub(super) query: Query,
}

#[derive(Clone, PartialEq, Debug)]
pub(super) enum Body {
    Select(Box<Select>),
    Values(Vec<Vec<Expr>>),
    Nested(Box<Query>),
    Set { operator: SetOperator, all: bool, left: Box<Body>, right: Box<Body> },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SetOperator {
    Union,
    Intersect,
    Except,
}

impl SetOperator {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            SetOperator::Union => "UNION",
            SetOperator::Intersect => "INTERSECT",
            SetOperator::Except => "EXCEPT",
        }
    }
}

#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Select {
    pub(super) distinct: Distinct,
    pub(super) items: Vec<Item>,
    pub(super) from: Vec<From>,
    pub(super) condition: Option<Expr>,
    /// `None` without GROUP BY.
    pub(super) group: Option<Vec<Expr>>,
    pub(super) having: Option<Expr>,
}

#[derive(Clone, PartialEq, Debug, Default)]
pub(super) enum Distinct {
    #[default]
    No,
    Yes,
    On(Vec<Expr>),
}

/// Of a SELECT list.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Item {
    Star,
    StarOf(String),
    Value { value: Expr, label: Option<String> },
}

#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Alias {
    pub(super) name: String,
    pub(super) columns: Vec<String>,
}

/// What stands behind FROM.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum From {
    Table { schema: Option<String>, name: String, alias: Option<Alias> },
    Function { call: Expr, alias: Option<Alias> },
    Query { query: Box<Query>, alias: Option<Alias> },
    Join { kind: JoinKind, left: Box<From>, right: Box<From>, on: On },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum JoinKind {
    Inner,
    Left,
    Right,
    Full,
}

#[derive(Clone, PartialEq, Debug)]
pub(super) enum On {
    /// CROSS JOIN
    Nothing,
    Condition(Expr),
    Using(Vec<String>),
    Natural,
}

#[derive(Clone, PartialEq, Debug)]
pub(super) struct Sort {
    pub(super) value: Expr,
    pub(super) descending: bool,
    pub(super) nulls_first: bool,
}

/// A type as it is written, without its schema.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct TypeName {
    pub(super) name: String,
    /// What stands in parentheses behind it.
    pub(super) modifiers: Vec<i64>,
    pub(super) is_array: bool,
}

#[derive(Clone, PartialEq, Debug)]
pub(super) enum Expr {
    Null,
    Bool(bool),
    /// Digits, perhaps with a fraction and an exponent.
    Number(String),
    String(String),
    /// `$1`
    Parameter(usize),
    /// `column`, `table.column`
    Column(Vec<String>),
    Cast(Box<Expr>, TypeName),
    Unary(String, Box<Expr>),
    Binary(String, Box<Expr>, Box<Expr>),
    And(Vec<Expr>),
    Or(Vec<Expr>),
    Not(Box<Expr>),
    /// `IS [NOT] NULL`
    IsNull {
        value: Box<Expr>,
        negated: bool,
    },
    /// `IS [NOT] TRUE`, `FALSE`, `UNKNOWN`
    IsBool {
        value: Box<Expr>,
        wanted: Option<bool>,
        negated: bool,
    },
    IsDistinct {
        left: Box<Expr>,
        right: Box<Expr>,
        negated: bool,
    },
    Like {
        value: Box<Expr>,
        pattern: Box<Expr>,
        escape: Option<Box<Expr>>,
        any_case: bool,
        negated: bool,
    },
    Between {
        value: Box<Expr>,
        low: Box<Expr>,
        high: Box<Expr>,
        symmetric: bool,
        negated: bool,
    },
    InList {
        value: Box<Expr>,
        list: Vec<Expr>,
        negated: bool,
    },
    /// `value operator ANY (query)`; IN and NOT IN among them.
    AnyOf {
        operator: String,
        value: Box<Expr>,
        query: Box<Query>,
        all: bool,
    },
    /// `value operator ANY (ARRAY[…])`
    AnyInList {
        operator: String,
        value: Box<Expr>,
        list: Vec<Expr>,
        all: bool,
    },
    Case {
        operand: Option<Box<Expr>>,
        branches: Vec<(Expr, Expr)>,
        otherwise: Option<Box<Expr>>,
    },
    Call(Call),
    /// A function that is written without parentheses, like `CURRENT_USER`.
    Word(&'static str),
    Exists(Box<Query>),
    Scalar(Box<Query>),
}

#[derive(Clone, PartialEq, Debug)]
pub(super) struct Call {
    pub(super) name: String,
    pub(super) arguments: Vec<Expr>,
    /// `count(*)`
    pub(super) star: bool,
    pub(super) distinct: bool,
    pub(super) order: Vec<Sort>,
    pub(super) filter: Option<Box<Expr>>,
}

impl Call {
    pub(super) fn new(name: impl Into<String>, arguments: Vec<Expr>) -> Call {
        Call { name: name.into(), arguments, star: false, distinct: false, order: Vec::new(), filter: None }
    }
}

/// What a column without a name is called.
pub(super) const UNNAMED: &str = "?column?";

impl Expr {
    /// The name of a column without a label (PostgreSQL: `FigureColname`).
    pub(super) fn label(&self) -> String {
        self.own_label().map_or_else(|| UNNAMED.to_owned(), |(name, _)| name)
    }

    /// With whether it is more than the name of a type. The casts and cases in each other are as many as the parser lets be.
    fn own_label(&self) -> Option<(String, bool)> {
        let strong = |name: &str| Some((name.to_owned(), true));
        match self {
            Expr::Column(parts) => strong(parts.last()?),
            Expr::Call(call) => strong(&call.name),
            Expr::Word(word) => strong(word),
            Expr::Cast(inner, to) => match inner.own_label() {
                Some((name, true)) => Some((name, true)),
                _ => Some((to.own_name().to_owned(), false)),
            },
            Expr::Case { otherwise, .. } => match otherwise.as_ref().and_then(|it| it.own_label()) {
                Some((name, true)) => Some((name, true)),
                _ => Some(("case".to_owned(), false)),
            },
            Expr::Exists(_) => strong("exists"),
            Expr::Scalar(query) => query.first_label().map(|name| (name, true)),
            _ => None,
        }
    }
}

impl TypeName {
    /// The name of the type in `pg_type`.
    pub(super) fn own_name(&self) -> &str {
        match self.name.as_str() {
            "boolean" => "bool",
            "int" | "integer" => "int4",
            "bigint" => "int8",
            "smallint" => "int2",
            "float" | "double precision" => "float8",
            "real" => "float4",
            "decimal" => "numeric",
            "character varying" => "varchar",
            "character" | "char" => "bpchar",
            "timestamp with time zone" => "timestamptz",
            "timestamp without time zone" => "timestamp",
            name => name,
        }
    }
}

impl Query {
    fn first_label(&self) -> Option<String> {
        let mut body = &self.body;
        loop {
            match body {
                Body::Select(select) => match select.items.first()? {
                    Item::Value { label: Some(label), .. } => return Some(label.clone()),
                    Item::Value { value, label: None } => return Some(value.label()),
                    Item::Star | Item::StarOf(_) => return None,
                },
                Body::Values(_) => return Some("column1".to_owned()),
                Body::Nested(query) => body = &query.body,
                Body::Set { left, .. } => body = left,
            }
        }
    }
}
