//! coracle-isolator-linux
