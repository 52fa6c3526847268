//! `libpmemha_preload.so`: captures what an unmodified program makes persistent.
