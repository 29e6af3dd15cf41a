//! Inputs and faults that others have met in public, played on the real daemon and real services.

mod anew;
mod bytes;
mod dead_letters;
mod large;
mod late;
mod purchases;
