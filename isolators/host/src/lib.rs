//! coracle-isolator-host
