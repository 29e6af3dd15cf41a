//! Inputs and faults that others have met in public, played on the real daemon and real services.

mod bytes;
mod dead_letters;
mod large;
mod late;
mod purchases;
mod recreated;
