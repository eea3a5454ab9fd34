//! Which file systems overwrite bytes in place.
//!
//! The log guarantees that a completion finds space: it reserves existing bytes of the file and overwrites them later. A
//! copy-on-write file system writes those bytes elsewhere and can be full then. Some always copy; on btrfs a file can be
//! excluded while it is empty; and some copy only blocks that a copy of the file shares.

/// The magic number of btrfs in `statfs`. It overwrites files that are marked "no copy on write" in place.
pub(super) const BTRFS: u32 = 0x9123_683E;
/// The magic number of overlayfs, which hides the file system below and passes the flags of files through to it.
pub(super) const OVERLAY: u32 = 0x794C_7630;
const ZFS: u32 = 0x2FC1_2FC1;
const BCACHEFS: u32 = 0xCA45_1A4E;
const NILFS: u32 = 0x0000_3434;

/// Whether a file system of this type copies a file on write. `is_nocow`: the file is marked "no copy on write".
pub(super) fn copies_on_write(file_system: u32, is_nocow: bool) -> bool {
    match file_system {
        BTRFS => !is_nocow,
        ZFS | BCACHEFS | NILFS => true,
        _ => false,
    }
}

/// Whether the file system may know the mark "no copy on write".
pub(super) fn knows_nocow(file_system: u32) -> bool {
    matches!(file_system, BTRFS | OVERLAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_on_write_file_systems_and_their_exceptions_are_known() {
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
