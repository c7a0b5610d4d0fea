//! coracle-isolator-volume
