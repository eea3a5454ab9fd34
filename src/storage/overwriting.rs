//! Determines which file systems overwrite bytes in place.
//!
//! The log guarantees that a completion finds space: it reserves existing bytes of the file and overwrites them later. A
//! copy-on-write file system writes the new bytes elsewhere, and may be full by then. Some file systems always copy. On
//! btrfs, a file can be excluded while it is empty. Others copy only those blocks that the file shares with a copy of it.

/// The magic number of btrfs in `statfs`. Btrfs overwrites a file in place if it is marked "no copy on write".
pub(super) const BTRFS: u32 = 0x9123_683E;
/// The magic number of overlayfs, which hides the file system below it and passes the flags of files through to it.
pub(super) const OVERLAY: u32 = 0x794C_7630;
const ZFS: u32 = 0x2FC1_2FC1;
const BCACHEFS: u32 = 0xCA45_1A4E;
const NILFS: u32 = 0x0000_3434;

/// Whether a file system of this type copies a file on write. `is_nocow` is whether the file is marked "no copy on write".
pub(super) fn copies_on_write(file_system: u32, is_nocow: bool) -> bool {
    match file_system {
        BTRFS => !is_nocow,
        ZFS | BCACHEFS | NILFS => true,
        _ => false,
    }
}

/// Whether the file system may support the mark "no copy on write".
pub(super) fn may_support_nocow(file_system: u32) -> bool {
    matches!(file_system, BTRFS | OVERLAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_that_copy_on_write_are_recognized() {
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
        assert!(may_support_nocow(BTRFS) && may_support_nocow(OVERLAY));
        assert!(!may_support_nocow(EXT4) && !may_support_nocow(ZFS));
    }
}
