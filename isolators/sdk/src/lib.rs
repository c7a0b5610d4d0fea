//! coracle-isolator
