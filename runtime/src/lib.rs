//! coracle
