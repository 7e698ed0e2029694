//! A query whose names and types are known.

use super::aggregate::Aggregate;
use super::ast::{JoinKind, SetOperator};
use super::node::Node;
use super::value::{Type, Value};

/// Values side by side.
pub(super) type Row = Vec<Value>;

/// A column of a result.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Output {
    pub(super) name: String,
    pub(super) kind: Type,
}

#[derive(Clone, Debug)]
pub(super) struct QueryPlan {
    /// Common table expressions, each with its number, before all else.
    pub(super) ctes: Vec<(usize, QueryPlan)>,
    pub(super) body: BodyPlan,
    /// By values of the rows, some of which are there to sort only.
    pub(super) sort: Vec<SortKey>,
    pub(super) limit: Option<Node>,
    pub(super) offset: Option<Node>,
    /// What is left of each row.
    pub(super) outputs: Vec<Output>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SortKey {
    pub(super) at: usize,
    pub(super) descending: bool,
    pub(super) nulls_first: bool,
}

#[derive(Clone, Debug)]
pub(super) enum BodyPlan {
    Select(Box<SelectPlan>),
    Values(Vec<Vec<Node>>),
    Nested(Box<QueryPlan>),
    Set { operator: SetOperator, all: bool, left: SidePlan, right: SidePlan },
}

/// One side of a UNION, and what its columns become.
#[derive(Clone, Debug)]
pub(super) struct SidePlan {
    pub(super) plan: Box<QueryPlan>,
    pub(super) casts: Vec<(Type, Type)>,
}

#[derive(Clone, Debug)]
pub(super) struct SelectPlan {
    /// Each with how many columns there are up to its end.
    pub(super) from: Vec<(Source, usize)>,
    /// What must hold as soon as so many of the sources have given their columns; one more than there are sources.
    pub(super) filters: Vec<Vec<Node>>,
    pub(super) group: Option<Group>,
    pub(super) values: Vec<Node>,
    pub(super) distinct: DistinctPlan,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum DistinctPlan {
    No,
    /// By so many of the first values.
    First(usize),
    /// By these, after sorting.
    On(Vec<usize>),
}

/// Rows become one for each key; the new row has the keys, then the aggregates.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) keys: Vec<Node>,
    pub(super) aggregates: Vec<Aggregate>,
    pub(super) having: Option<Node>,
    /// Without GROUP BY there is a row even of no rows.
    pub(super) is_whole: bool,
}

#[derive(Clone, Debug)]
pub(super) enum Source {
    /// A view, by its number among those that are read.
    View(usize),
    /// A common table expression, by its number.
    Cte(usize),
    Query(Box<QueryPlan>),
    /// A function's value, or one row of what a function returns.
    Row(Vec<Node>),
    Join {
        kind: JoinKind,
        left: Box<Source>,
        left_width: usize,
        right: Box<Source>,
        right_width: usize,
        on: Option<Node>,
    },
}
