//! The calls of the contract, by number.

/// A call of the contract. Its number is its place among the functions of the table, and never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Verb {
    /// The options of the configuration are given.
    Configure,
    /// A runtime looks after what an earlier one left.
    Recover,
    /// A container is about to be made.
    Prepare,
    /// A process is about to be started.
    Process,
    /// The plan is final.
    Validate,
    /// The container's process exists and waits.
    Isolate,
    /// Another process exists and waits.
    Join,
    /// Somebody watches.
    Watch,
    /// What is watched has become readable.
    Limitation,
    /// There are new limits.
    Update,
    /// Somebody asks what is used.
    Usage,
    /// Somebody asks what there is to know.
    Status,
    /// The container is gone.
    Cleanup,
    /// There are new shares of the processor's cache.
    UpdateIntelRdt,
    /// A launch has failed.
    GiveBack,
    /// What the plan's mounts and devices come from is to be made.
    Provide,
}

/// What a call is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Given {
    /// A document.
    Text,
    /// A container.
    Container,
    /// A container and a document.
    Both,
}

impl Verb {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 16] = [
        Self::Configure,
        Self::Recover,
        Self::Prepare,
        Self::Process,
        Self::Validate,
        Self::Isolate,
        Self::Join,
        Self::Watch,
        Self::Limitation,
        Self::Update,
        Self::Usage,
        Self::Status,
        Self::Cleanup,
        Self::UpdateIntelRdt,
        Self::GiveBack,
        Self::Provide,
    ];

    /// The verb with this number.
    pub fn of_number(number: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }

    /// Its number.
    pub fn number(self) -> u32 {
        self as u32
    }

    /// Its name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Configure => "configure",
            Self::Recover => "recover",
            Self::Prepare => "prepare",
            Self::Process => "process",
            Self::Validate => "validate",
            Self::Isolate => "isolate",
            Self::Join => "join",
            Self::Watch => "watch",
            Self::Limitation => "limitation",
            Self::Update => "update",
            Self::Usage => "usage",
            Self::Status => "status",
            Self::Cleanup => "cleanup",
            Self::UpdateIntelRdt => "update_intel_rdt",
            Self::GiveBack => "give_back",
            Self::Provide => "provide",
        }
    }

    /// What it is given.
    pub fn given(self) -> Given {
        match self {
            Self::Configure
            | Self::Recover
            | Self::Prepare
            | Self::Process
            | Self::Validate
            | Self::Cleanup
            | Self::GiveBack
            | Self::Provide => Given::Text,
            Self::Isolate | Self::Join | Self::Watch | Self::Limitation | Self::Usage | Self::Status => {
                Given::Container
            }
            Self::Update | Self::UpdateIntelRdt => Given::Both,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_places_in_the_table() {
        for (number, verb) in Verb::ALL.into_iter().enumerate() {
            assert_eq!(verb.number() as usize, number);
            assert_eq!(Verb::of_number(verb.number()), Some(verb));
        }
        assert_eq!(Verb::of_number(16), None);
    }
}
