//! Exact ratios for rates that no one wrote down.

use std::cmp::Ordering;
use std::time::Duration;

use model::Rate;

/// Invocations per nanosecond, exact and in lowest terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ratio {
    invocations: u128,
    per_ns: u128,
}

impl Ratio {
    pub(crate) const ZERO: Self = Self { invocations: 0, per_ns: 1 };

    /// `None` for a denominator of zero.
    pub(crate) fn new(invocations: u128, per_ns: u128) -> Option<Self> {
        if per_ns == 0 {
            return None;
        }
        let divisor = gcd(invocations, per_ns);
        Some(Self { invocations: invocations / divisor, per_ns: per_ns / divisor })
    }

    /// The numerator.
    #[must_use]
    pub const fn invocations(self) -> u128 {
        self.invocations
    }

    /// The denominator, nanoseconds.
    #[must_use]
    pub const fn per_ns(self) -> u128 {
        self.per_ns
    }

    /// `None` when the exact sum does not fit.
    pub(crate) fn plus(self, other: Self) -> Option<Self> {
        let divisor = gcd(self.per_ns, other.per_ns);
        let left = self.invocations.checked_mul(other.per_ns / divisor)?;
        let right = other.invocations.checked_mul(self.per_ns / divisor)?;
        Self::new(left.checked_add(right)?, (self.per_ns / divisor).checked_mul(other.per_ns)?)
    }

    /// `None` when `other` is larger or the exact difference does not fit.
    pub(crate) fn minus(self, other: Self) -> Option<Self> {
        let divisor = gcd(self.per_ns, other.per_ns);
        let left = self.invocations.checked_mul(other.per_ns / divisor)?;
        let right = other.invocations.checked_mul(self.per_ns / divisor)?;
        Self::new(left.checked_sub(right)?, (self.per_ns / divisor).checked_mul(other.per_ns)?)
    }

    /// By continued fractions, so that no product overflows.
    pub(crate) fn compare(self, other: Self) -> Ordering {
        let (mut left, mut right) = ((self.invocations, self.per_ns), (other.invocations, other.per_ns));
        loop {
            let whole = (left.0 / left.1).cmp(&(right.0 / right.1));
            if whole.is_ne() {
                return whole;
            }
            match (left.0 % left.1, right.0 % right.1) {
                (0, 0) => return Ordering::Equal,
                (0, _) => return Ordering::Less,
                (_, 0) => return Ordering::Greater,
                // a/b < c/d exactly when d/c < b/a.
                (l, r) => (left, right) = ((right.1, r), (left.1, l)),
            }
        }
    }

    /// The rate itself, `None` outside 0.01/s to 10,000/s or when its exact ratio is too fine.
    #[must_use]
    pub fn exact_rate(self) -> Option<Rate> {
        let per_ns = u64::try_from(self.per_ns).ok()?;
        Rate::new(u64::try_from(self.invocations).ok()?, Duration::from_nanos(per_ns)).ok()
    }

    /// Per second, for display.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a display value")]
    pub fn per_second_f64(self) -> f64 {
        self.invocations as f64 * 1e9 / self.per_ns as f64
    }
}

const fn gcd(mut a: u128, mut b: u128) -> u128 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ratios_compare_like_their_cross_products(a in 0_u64.., b in 1_u64.., c in 0_u64.., d in 1_u64..) {
            let ratio = |n: u64, d: u64| Ratio::new(n.into(), d.into()).unwrap();
            let crossed = (u128::from(a) * u128::from(d)).cmp(&(u128::from(c) * u128::from(b)));
            prop_assert_eq!(ratio(a, b).compare(ratio(c, d)), crossed);
            prop_assert_eq!(ratio(a, b).compare(ratio(a, b)), Ordering::Equal);
        }
    }
}
