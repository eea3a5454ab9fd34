//! Whether a file system writes changed bytes in their place: what the promise rests on that a completion finds room.
//!
//! The log sets room aside in bytes of the file that exist, and overwrites them. A file system that copies on write puts
//! those bytes elsewhere, and can be full then. Some do so always, some can be told not to for a file that holds nothing
//! yet, and some do so only for blocks that a copy of the file shares.

/// What `statfs` calls btrfs. Its files can be told apart: one that was made "no copy on write" is overwritten in place.
pub(super) const BTRFS: u32 = 0x9123_683E;
/// A file system on top of another one, which is not named. It hands the flags of files through.
pub(super) const OVERLAY: u32 = 0x794C_7630;
const ZFS: u32 = 0x2FC1_2FC1;
const BCACHEFS: u32 = 0xCA45_1A4E;
const NILFS: u32 = 0x0000_3434;

/// Whether a file system of this type copies on write, where a file is marked "no copy on write" or not.
pub(super) fn copies_on_write(file_system: u32, is_nocow: bool) -> bool {
    match file_system {
        BTRFS => !is_nocow,
        ZFS | BCACHEFS | NILFS => true,
        _ => false,
    }
}

/// Whether a new file may be marked "no copy on write".
pub(super) fn knows_nocow(file_system: u32) -> bool {
    matches!(file_system, BTRFS | OVERLAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_that_copies_on_write_is_known_and_a_file_that_was_told_not_to_be_copied() {
        const EXT4: u32 = 0xEF53;
        const XFS: u32 = 0x5846_5342;
        for is_nocow in [false, true] {
            assert_eq!(copies_on_write(BTRFS, is_nocow), !is_nocow);
            for always in [ZFS, BCACHEFS, NILFS] {
                assert!(copies_on_write(always, is_nocow));
            }
            for in_place in [EXT4, XFS, OVERLAY] {
                assert!(!copies_on_write(in_place, is_nocow));
            }
        }
        assert!(knows_nocow(BTRFS) && knows_nocow(OVERLAY) && !knows_nocow(EXT4) && !knows_nocow(ZFS));
    }
}
