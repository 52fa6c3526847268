//! A destination's side: whatever crashes, its image is a prefix of what landed, and nothing acknowledged is lost.

mod archive;
mod crash;
mod follow;
mod hostile;
mod oracle;
mod promotion;
mod space;
mod stream;
