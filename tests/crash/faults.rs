//! Every call fails.
