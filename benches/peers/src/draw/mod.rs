pub fn run(_: &crate::arguments::Arguments) {}
