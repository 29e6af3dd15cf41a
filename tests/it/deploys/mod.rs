//! Deploys on a real Kafka and Redis: a rolling restart under load, and the cut-over from the old
//! service (behaviour sections 8.6 and 8.7).

mod cut_over;
mod fleet;
mod pauses;
mod rolling;
mod shadow;
mod traffic;
mod verdict;
