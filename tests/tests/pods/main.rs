//! Pods: containers with a life in common, and the supervisor that looks after them.

mod life;
