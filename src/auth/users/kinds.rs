//! What the secrets of those who exist look like, so that those who do not can be made to look the same.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use super::Secret;

/// How many secrets there are of each kind.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Kinds {
    /// Passwords in clear text and MD5 hashes: an MD5 challenge where the method is `md5`.
    md5: usize,
    /// Verifiers, by their iterations.
    scram: BTreeMap<NonZeroU32, usize>,
}

impl Kinds {
    /// One more like this.
    pub fn add(&mut self, secret: &Secret) {
        match secret {
            Secret::Password(_) | Secret::Md5(_) => self.md5 += 1,
            Secret::Scram(verifier) => *self.scram.entry(verifier.iterations()).or_default() += 1,
        }
    }

    /// One less, which was added before.
    pub fn remove(&mut self, secret: &Secret) {
        match secret {
            Secret::Password(_) | Secret::Md5(_) => self.md5 = self.md5.saturating_sub(1),
            Secret::Scram(verifier) => {
                if let Some(count) = self.scram.get_mut(&verifier.iterations()) {
                    *count -= 1;
                }
                self.scram.retain(|_, count| *count > 0);
            }
        }
    }

    /// Those of both.
    pub fn with(mut self, other: &Kinds) -> Kinds {
        self.md5 += other.md5;
        for (iterations, count) in &other.scram {
            *self.scram.entry(*iterations).or_default() += count;
        }
        self
    }

    /// The iterations that most verifiers have; `None` if there are none.
    pub fn iterations(&self) -> Option<NonZeroU32> {
        self.scram.iter().max_by_key(|(_, count)| **count).map(|(iterations, _)| *iterations)
    }

    /// Whether most get an MD5 challenge where the method is `md5`; `None` if there is nobody.
    pub fn mostly_md5(&self) -> Option<bool> {
        let scram: usize = self.scram.values().sum();
        (self.md5 + scram > 0).then_some(self.md5 > scram)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::scram::Verifier;
    use super::*;

    fn scram(iterations: u32) -> Secret {
        Secret::Scram(Verifier::from_password(b"x", b"salt", NonZeroU32::new(iterations).unwrap()))
    }

    #[test]
    fn the_most_common_kind_counts() {
        let mut kinds = Kinds::default();
        assert_eq!((kinds.iterations(), kinds.mostly_md5()), (None, None));
        [scram(2), scram(2), scram(3)].iter().for_each(|secret| kinds.add(secret));
        assert_eq!((kinds.iterations(), kinds.mostly_md5()), (NonZeroU32::new(2), Some(false)));
        let mut others = Kinds::default();
        [scram(3), scram(3)].iter().for_each(|secret| others.add(secret));
        (0..6).for_each(|_| others.add(&Secret::Password("p".to_owned())));
        let all = kinds.clone().with(&others);
        assert_eq!((all.iterations(), all.mostly_md5()), (NonZeroU32::new(3), Some(true)));
        [scram(2), scram(2), scram(3)].iter().for_each(|secret| kinds.remove(secret));
        assert_eq!(kinds, Kinds::default());
    }
}
