//! coracle-isolator-cgroup
