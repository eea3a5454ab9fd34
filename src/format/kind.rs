//! Kinds of records.

use crate::hash::Domain;

/// The bit of a kind that allows a reader to skip a record whose kind it does not know.
const IGNORABLE: u8 = 0x80;

/// The kind of a record: how it changed the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// An attempt began.
    Begun,
    /// The operation is done.
    Completed,
    /// The last attempt certainly had no effect.
    Released,
    /// An operator removed everything that was recorded about the key.
    Forgotten,
    /// The value contains the bytes of a record that failed its checksum when its segment was reclaimed.
    Unreadable,
    /// An attempt at a step began.
    StepBegun,
    /// A step is done. With an empty name, the record holds the input of the operation.
    StepCompleted,
    /// The last attempt at a step certainly had no effect.
    StepReleased,
    /// The value contains the bytes of a step's record that failed its checksum when its segment was reclaimed.
    StepUnreadable,
    /// A message of the outbox.
    Message,
    /// A message was acknowledged.
    Acknowledged,
    /// The value contains the bytes of a message that failed its checksum when its segment was reclaimed.
    MessageUnreadable,
    /// A kind of a later format version that a reader may skip.
    Ignorable,
}

impl Kind {
    /// Decodes a kind. None if the kind is unknown and a reader must not skip it.
    pub(crate) fn from_byte(byte: u8) -> Option<Kind> {
        match byte {
            1 => Some(Kind::Begun),
            2 => Some(Kind::Completed),
            3 => Some(Kind::Released),
            4 => Some(Kind::Forgotten),
            5 => Some(Kind::Unreadable),
            16 => Some(Kind::StepBegun),
            17 => Some(Kind::StepCompleted),
            18 => Some(Kind::StepReleased),
            19 => Some(Kind::StepUnreadable),
            32 => Some(Kind::Message),
            33 => Some(Kind::Acknowledged),
            34 => Some(Kind::MessageUnreadable),
            unknown if unknown & IGNORABLE != 0 => Some(Kind::Ignorable),
            _ => None,
        }
    }

    /// Encodes the kind.
    pub(crate) fn to_byte(self) -> u8 {
        match self {
            Kind::Begun => 1,
            Kind::Completed => 2,
            Kind::Released => 3,
            Kind::Forgotten => 4,
            Kind::Unreadable => 5,
            Kind::StepBegun => 16,
            Kind::StepCompleted => 17,
            Kind::StepReleased => 18,
            Kind::StepUnreadable => 19,
            Kind::Message => 32,
            Kind::Acknowledged => 33,
            Kind::MessageUnreadable => 34,
            Kind::Ignorable => IGNORABLE,
        }
    }

    /// Returns what the hash of such a record identifies. None for a kind that this version does not know.
    ///
    /// The kind alone determines it, also in a footer, so that a lookup in one domain never takes a record of another for
    /// an answer.
    #[inline]
    pub(crate) fn domain(self) -> Option<Domain> {
        match self {
            Kind::Begun | Kind::Completed | Kind::Released | Kind::Forgotten | Kind::Unreadable => {
                Some(Domain::Key)
            }
            Kind::StepBegun | Kind::StepCompleted | Kind::StepReleased | Kind::StepUnreadable => {
                Some(Domain::Step)
            }
            Kind::Message | Kind::Acknowledged | Kind::MessageUnreadable => Some(Domain::Message),
            Kind::Ignorable => None,
        }
    }

    /// Whether the record carries the bytes of an unreadable one.
    pub(crate) fn is_carrier(self) -> bool {
        matches!(self, Kind::Unreadable | Kind::StepUnreadable | Kind::MessageUnreadable)
    }
}
