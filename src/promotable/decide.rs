//! Who should be promoted, and what would be lost by it: of what is known, without asking anybody.

use std::cmp::Reverse;

use walrelay_proto::{Lsn, SystemId, TimelineHistory, TimelineId};

/// Where somebody's WAL ends, and the way there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct End {
    /// The cluster.
    pub system_id: SystemId,
    /// The timelines on the way.
    pub history: TimelineHistory,
    /// The first position that is not there.
    pub lsn: Lsn,
}

/// A relay, as far as it has answered.
pub type Relay = Result<End, String>;

/// A server that may be promoted, as far as it has answered.
pub type Candidate = Result<Standing, String>;

/// What a candidate is and has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Standing {
    /// Everything that it has received or replayed.
    pub end: End,
    /// Not a primary already.
    pub is_standby: bool,
}

/// What would be lost with a promotion now, without a drain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Loss {
    /// Nothing that any of the relays has.
    Nothing,
    /// At least this.
    Some(Lack),
    /// It cannot be known.
    Unknown(String),
}

/// What a relay has and a candidate has not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lack {
    /// The relay's number.
    pub relay: usize,
    /// Up to here both have the same.
    pub from: Lsn,
    /// End of what the relay has.
    pub to: Lsn,
    /// The candidate has something else behind that: its ways have parted from the relay's.
    pub has_parted: bool,
}

impl Lack {
    /// How much it is.
    pub fn bytes(&self) -> u64 {
        self.to.since(self.from)
    }
}

/// All of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Decision {
    /// What each candidate would lose, in the order of the candidates.
    pub losses: Vec<Loss>,
    /// The candidates' numbers, the best first: by the timeline that they have come to, then by position. Who is no
    /// standby, or has not answered, is not among them.
    pub order: Vec<usize>,
}

impl Decision {
    /// The one to promote.
    pub fn best(&self) -> Option<usize> {
        self.order.first().copied()
    }

    /// 0: the best candidate loses nothing; 1: it would; 2: that cannot be known.
    pub fn exit_code(&self) -> u8 {
        match self.best().and_then(|best| self.losses.get(best)) {
            Some(Loss::Nothing) => 0,
            Some(Loss::Some(_)) => 1,
            Some(Loss::Unknown(_)) | None => 2,
        }
    }
}

/// Weighs candidates by what the relays have.
pub fn decide(relays: &[Relay], candidates: &[Candidate]) -> Decision {
    let mut order: Vec<usize> =
        (0..candidates.len()).filter(|number| standing(&candidates[*number]).is_some()).collect();
    order.sort_by_key(|number| Reverse(standing(&candidates[*number]).map(rank)));
    Decision { losses: candidates.iter().map(|candidate| loss(relays, candidate)).collect(), order }
}

fn standing(candidate: &Candidate) -> Option<&Standing> {
    candidate.as_ref().ok().filter(|standing| standing.is_standby)
}

/// A timeline that was begun later counts more than any position: that is where recovery would go.
fn rank(standing: &Standing) -> (TimelineId, Lsn) {
    (standing.end.history.tli(), standing.end.lsn)
}

fn loss(relays: &[Relay], candidate: &Candidate) -> Loss {
    let standing = match candidate {
        Ok(standing) => standing,
        Err(reason) => return Loss::Unknown(reason.clone()),
    };
    let (mut worst, mut unknown): (Option<Lack>, Option<String>) = (None, None);
    for (number, relay) in relays.iter().enumerate() {
        match relay.as_ref().map_err(Clone::clone).and_then(|relay| lack(number, relay, &standing.end)) {
            Ok(lack) if lack.bytes() > worst.as_ref().map_or(0, Lack::bytes) => worst = Some(lack),
            Ok(_) => {}
            Err(reason) => unknown = unknown.or(Some(reason)),
        }
    }
    match (worst, unknown) {
        // More may be lost, but not less.
        (Some(lack), _) => Loss::Some(lack),
        (None, Some(reason)) => Loss::Unknown(reason),
        (None, None) if relays.is_empty() => Loss::Unknown("there is no relay to compare with".to_owned()),
        (None, None) => Loss::Nothing,
    }
}

fn lack(number: usize, relay: &End, candidate: &End) -> Result<Lack, String> {
    if relay.system_id != candidate.system_id {
        return Err(format!(
            "it is of another cluster than the relay: its system identifier is {}, the relay's is {}",
            candidate.system_id, relay.system_id
        ));
    }
    let Some((_, parting)) = relay.history.parting(&candidate.history) else {
        return Err("it has no timeline in common with the relay".to_owned());
    };
    let both = relay.lsn.min(candidate.lsn);
    let from = parting.map_or(both, |at| at.min(both));
    Ok(Lack { relay: number, from, to: relay.lsn, has_parted: candidate.lsn > from && relay.lsn > from })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A history as its file has it: `1 at 0x100, 2 at 0x200` for timeline 3.
    fn end(tli: u32, ancestors: &[(u32, u64)], lsn: u64) -> End {
        let content: String =
            ancestors.iter().map(|(tli, at)| format!("{tli}\t{}\tx\n", Lsn::new(*at))).collect();
        let tli = TimelineId::new(tli).unwrap();
        let history = match tli {
            TimelineId::FIRST => TimelineHistory::first(),
            tli => TimelineHistory::parse(tli, content.as_bytes()).unwrap(),
        };
        End { system_id: SystemId(7), history, lsn: Lsn::new(lsn) }
    }

    fn first(lsn: u64) -> End {
        end(1, &[], lsn)
    }

    fn standby(end: End) -> Candidate {
        Ok(Standing { end, is_standby: true })
    }

    fn away() -> String {
        "it cannot be reached".to_owned()
    }

    /// The exit code, the best candidate, and what that lacks: from where, how many bytes, with which relay.
    type Seen = (u8, Option<usize>, Option<(u64, u64, usize)>);

    #[track_caller]
    fn check(relays: &[Relay], candidates: &[Candidate], expected: Seen) -> Decision {
        let decision = decide(relays, candidates);
        let lack = decision.best().and_then(|best| match &decision.losses[best] {
            Loss::Some(lack) => Some((lack.from.as_u64(), lack.bytes(), lack.relay)),
            _ => None,
        });
        assert_eq!((decision.exit_code(), decision.best(), lack), expected, "{decision:?}");
        decision
    }

    #[test]
    fn who_has_most_is_promoted_and_what_it_lacks_is_told() {
        let candidates = [standby(first(0x150)), standby(first(0x200)), Err(away())];
        check(&[Ok(first(0x200))], &candidates, (0, Some(1), None));
        // A relay that is behind takes nothing away.
        check(&[Ok(first(0x100)), Ok(first(0x1f0))], &candidates, (0, Some(1), None));
        let decision =
            check(&[Ok(first(0x210)), Ok(first(0x240))], &candidates, (1, Some(1), Some((0x200, 0x40, 1))));
        assert!(matches!(&decision.losses[0], Loss::Some(lack) if lack.bytes() == 0xf0 && !lack.has_parted));
        assert_eq!((&decision.losses[2], &decision.order[..]), (&Loss::Unknown(away()), &[1, 0][..]));
    }

    #[test]
    fn what_is_not_known_is_not_taken_for_nothing() {
        let one = [standby(first(0x200))];
        check(&[Ok(first(0x200)), Err(away())], &one, (2, Some(0), None));
        // But what is known to be lost is lost.
        check(&[Err(away()), Ok(first(0x201))], &one, (1, Some(0), Some((0x200, 1, 1))));
        check(&[Ok(first(0x200))], &[Err(away())], (2, None, None));
        check(&[], &one, (2, Some(0), None));
        let foreign = End { system_id: SystemId(8), ..first(0x200) };
        check(&[Ok(foreign)], &one, (2, Some(0), None));
    }

    #[test]
    fn a_primary_is_no_candidate() {
        let primary = Ok(Standing { end: first(0x300), is_standby: false });
        check(&[Ok(first(0x200))], &[primary, standby(first(0x200))], (0, Some(1), None));
    }

    #[test]
    fn the_timeline_comes_before_the_position() {
        let second = [(1, 0x100)];
        let candidates = [standby(first(0x300)), standby(end(2, &second, 0x180))];
        let decision =
            check(&[Ok(end(2, &second, 0x190))], &candidates, (1, Some(1), Some((0x180, 0x10, 0))));
        // The other one has gone on where nobody follows it.
        let Loss::Some(lack) = &decision.losses[0] else { panic!("{decision:?}") };
        assert_eq!((lack.from, lack.bytes(), lack.has_parted), (Lsn::new(0x100), 0x90, true));
        // A relay that was not there yet when the timeline was left.
        check(&[Ok(first(0x100))], &candidates, (0, Some(1), None));
        // One that has more of the old timeline than the new one took along: that is lost already.
        check(&[Ok(first(0x120))], &candidates, (1, Some(1), Some((0x100, 0x20, 0))));
    }

    #[test]
    fn timelines_of_one_number_may_be_two() {
        let relay = Ok(end(2, &[(1, 0x100)], 0x200));
        let other = standby(end(2, &[(1, 0x180)], 0x200));
        let decision = check(&[relay], &[other], (1, Some(0), Some((0x100, 0x100, 0))));
        assert!(matches!(&decision.losses[0], Loss::Some(lack) if lack.has_parted));
    }

    #[test]
    fn a_candidate_that_is_behind_on_the_way_has_not_parted() {
        let relay = Ok(end(3, &[(1, 0x100), (2, 0x200)], 0x280));
        let decision = check(&[relay], &[standby(first(0x80))], (1, Some(0), Some((0x80, 0x200, 0))));
        assert!(matches!(&decision.losses[0], Loss::Some(lack) if !lack.has_parted));
    }
}
