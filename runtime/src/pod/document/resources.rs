//! Limits and requests, in quantities as Kubernetes writes them: a number and a suffix (`500m`, `64Mi`, `2G`).

use serde::{Deserialize, Serialize};

/// Limits (what may be used at most) and requests (what is to be had when others want it, too).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Resources {
    /// The most.
    pub limits: Amounts,
    /// The least.
    pub requests: Amounts,
}

/// Amounts, as Kubernetes writes quantities.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Amounts {
    /// Processors: `500m` is a half.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Quantity>,
    /// Bytes: `64Mi`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
    /// Processes and threads; ours, not Kubernetes'.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<Quantity>,
}

impl Resources {
    /// These, and those of `before` that they do not name.
    pub fn over(self, before: &Self) -> Self {
        Self { limits: self.limits.over(&before.limits), requests: self.requests.over(&before.requests) }
    }
}

impl Amounts {
    fn over(self, before: &Self) -> Self {
        Self {
            cpu: self.cpu.or_else(|| before.cpu.clone()),
            memory: self.memory.or_else(|| before.memory.clone()),
            pids: self.pids.or_else(|| before.pids.clone()),
        }
    }
}

/// A quantity: a number, or a string of a number and a suffix.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Quantity {
    /// Plain.
    Number(f64),
    /// With a suffix.
    Text(String),
}

/// What each suffix multiplies by. Two letters stand before one, which is the end of some.
const SUFFIXES: [(&str, f64); 16] = [
    ("Ki", 1024.0),
    ("Mi", 1048576.0),
    ("Gi", 1073741824.0),
    ("Ti", 1099511627776.0),
    ("Pi", 1125899906842624.0),
    ("Ei", 1152921504606846976.0),
    ("n", 1e-9),
    ("u", 1e-6),
    ("m", 0.001),
    ("k", 1e3),
    ("M", 1e6),
    ("G", 1e9),
    ("T", 1e12),
    ("P", 1e15),
    ("E", 1e18),
    ("", 1.0),
];

impl Quantity {
    /// The amount; `None` for what is no quantity, or below zero.
    pub fn amount(&self) -> Option<f64> {
        let text = match self {
            Self::Number(number) => return Some(*number).filter(|n| n.is_finite() && *n >= 0.0),
            Self::Text(text) => text,
        };
        let (number, factor) =
            SUFFIXES.iter().find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, factor)))?;
        let (digits, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
        let digits = digits.strip_prefix('+').unwrap_or(digits);
        let power = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        let is_plain = digits.bytes().all(|b| b.is_ascii_digit() || b == b'.')
            && power.bytes().all(|b| b.is_ascii_digit())
            // A suffix or an exponent (Kubernetes, "Quantity").
            && (*factor == 1.0 || exponent == "0");
        number.parse::<f64>().ok().filter(|n| is_plain && n.is_finite()).map(|number| number * factor)
    }

    /// The amount as a whole number, rounded up.
    pub fn whole(&self) -> Option<i64> {
        self.amount().map(f64::ceil).filter(|n| *n < 9e18).map(|n| n as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_have_suffixes() {
        let text = |text: &str| Quantity::Text(text.to_owned());
        for (quantity, amount) in [
            (text("500m"), 0.5),
            (text("64Mi"), 67108864.0),
            (text("1.5Gi"), 1610612736.0),
            (text("2k"), 2000.0),
            (text("7"), 7.0),
            (text("+7"), 7.0),
            (text("1e3"), 1000.0),
            (text("12E6"), 12e6),
            (text("1e-1"), 0.1),
            (text("1E"), 1e18),
            (text("500000u"), 0.5),
            (Quantity::Number(0.25), 0.25),
        ] {
            assert_eq!(quantity.amount(), Some(amount));
        }
        for bad in ["", "m", "-1", "1e", "e3", "1e3Mi", "1e1e1", "1 Mi", "inf", "1Xi"] {
            assert_eq!(text(bad).amount(), None, "{bad}");
        }
    }
}
